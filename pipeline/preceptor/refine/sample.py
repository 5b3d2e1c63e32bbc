"""Golden's calibration pairs, and which of them a search may see: the split is by query and never moves one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from preceptor.contracts import PAIRS, content_id
from preceptor.errors import InputError
from preceptor.policy import Policy, load_golden
from preceptor.policy.document import GOLDEN_DIR

SPLIT: Final = "calibration"

MIN_QUERIES: Final = 6
"""A bootstrap over fewer queries than this says little of the noise."""

_OPTIMISE_SHARE: Final = 0.5
_FIRST_SHARE: Final = 0.75


@dataclass(frozen=True, kw_only=True)
class Item:
    """A golden pair: its PAIRS row, its grades by dimension, and why."""

    pair: Mapping[str, str]
    grades: Mapping[str, int]
    grader_id: str
    reason: str | None

    @property
    def pair_id(self) -> str:
        """The pair's id."""
        return self.pair["pair_id"]

    @property
    def query_id(self) -> str:
        """What the pair was sampled by."""
        return self.pair["query_id"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Calibration pairs in three parts that share no query: what a search sees, and two measurements it never saw."""

    optimise: tuple[Item, ...]
    first: tuple[Item, ...]
    second: tuple[Item, ...]


def load_calibration(policy: Policy, golden: Path | None = None) -> pa.Table:
    """The GOLDEN rows of ``golden/calibration.jsonl`` in the policy's directory, or of the file `golden`.

    No other file is opened. InputError where that file is missing, holds pairs of another split, or none.
    """
    file = golden or policy.path / GOLDEN_DIR / f"{SPLIT}.jsonl"
    if not file.is_file():
        raise InputError(
            f"{file}: no such file. Refinement reads golden's calibration pairs from one file and opens no other: "
            f"name it {SPLIT}.jsonl, or give --golden FILE."
        )
    table = load_golden(file, policy)
    others = sorted(set(table["split"].to_pylist()) - {SPLIT})
    if others:
        raise InputError(
            f"{file}: holds pairs of split {', '.join(others)}; a prompt may be refined on '{SPLIT}' alone. "
            "Move them to files of their own."
        )
    if not table.num_rows:
        raise InputError(f"{file}: holds no pair. Add graded pairs.")
    return table


def items_of(golden: pa.Table) -> tuple[Item, ...]:
    """The pairs of a GOLDEN table with their grades, in its order."""
    found: dict[str, list[dict[str, object]]] = {}
    for row in golden.to_pylist():
        found.setdefault(row["pair_id"], []).append(row)
    return tuple(
        Item(
            pair={name: rows[0][name] for name in PAIRS.names},  # type: ignore[misc]
            grades={str(row["dimension"]): int(row["grade"]) for row in rows},  # type: ignore[call-overload]
            grader_id=str(rows[0]["grader_id"]),
            reason=next((str(row["reason"]) for row in rows if row["reason"]), None),
        )
        for rows in found.values()
    )


def parts_of(items: Iterable[Item]) -> Parts:
    """Half of the queries to optimise on and a quarter for each measurement, by a hash of the query alone.

    A query never moves between the parts, whatever is added: what one search has seen, the next one's test has not.
    InputError where a part holds fewer than `MIN_QUERIES` queries.
    """
    found: dict[str, list[Item]] = {"optimise": [], "first": [], "second": []}
    for item in items:
        point = int(content_id("refine", item.query_id), 16) / 2**64
        found["optimise" if point < _OPTIMISE_SHARE else "first" if point < _FIRST_SHARE else "second"].append(item)
    num_queries = {name: len({item.query_id for item in part}) for name, part in found.items()}
    if min(num_queries.values()) < MIN_QUERIES:
        counted = ", ".join(f"{name} {num}" for name, num in num_queries.items())
        raise InputError(
            f"a gain can be told from noise with {MIN_QUERIES} calibration queries in each part or more, "
            f"got {counted}. Grade pairs of more queries."
        )
    return Parts(**{name: tuple(part) for name, part in found.items()})
