"""The calibration lines of a policy's golden files, with the place of each. No other split is kept in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from preceptor.contracts import make_pair
from preceptor.golden import tuning_rows
from preceptor.policy import Policy, load_golden
from preceptor.policy.document import GOLDEN_DIR
from preceptor.policy.golden import golden_files
from preceptor.policy.jsonl import read_lines
from preceptor.workbench.writes import read_exact

SPLIT: Final = "calibration"
"""The one split that is shown: what is measured on the holdout must not have been looked at."""


@dataclass(frozen=True, kw_only=True)
class GoldenLine:
    """One golden pair of the calibration split: its object as written, and its text, file (inside the policy), line."""

    file: str
    number: int
    text: str
    content: Mapping[str, Any]


def calibration_lines(policy: Path) -> dict[str, GoldenLine]:
    """The calibration lines of the policy's golden files, by pair_id. Lines that cannot be read are lint's matter."""
    found: dict[str, GoldenLine] = {}
    for file in golden_files(policy / GOLDEN_DIR):
        text = read_exact(file)
        lines = text.split("\n")
        for number, raw, broken in read_lines(text):
            texts = [raw.get(name) for name in ("query", "profile", "document")]
            if broken or raw.get("split") != SPLIT or not all(isinstance(part, str) for part in texts):
                continue
            pair = make_pair(*(str(part) for part in texts), slice="", split=SPLIT)
            name = f"{GOLDEN_DIR}/{file.name}"
            found[pair["pair_id"]] = GoldenLine(file=name, number=number, text=lines[number - 1], content=raw)
    return found


def golden_now(policy: Policy, *, lines: Iterable[str], corpus: Path, judged: Iterable[str]) -> pa.Table:
    """GOLDEN rows of the `judged` pairs as the policy's files grade them now.

    `lines` holds the pair_ids of the files' calibration lines. Where none of the judged pairs is among them, golden is
    the corpus's own (crosswalks, say) and its rows are the truth; otherwise a pair that the files no longer hold has
    left golden.
    """
    wanted = set(judged)
    if wanted.isdisjoint(lines):
        return calibration_of(tuning_rows(corpus / "golden", split=SPLIT), wanted)
    return calibration_of(load_golden(policy.path / GOLDEN_DIR, policy), wanted)


def calibration_of(golden: pa.Table, pair_ids: set[str]) -> pa.Table:
    """The GOLDEN rows of those pairs, as far as they are of the calibration split."""
    chosen = pc.and_(
        pc.equal(golden.column("split"), SPLIT),
        pc.is_in(golden.column("pair_id"), value_set=pa.array(sorted(pair_ids), type=pa.string())),
    )
    return golden.filter(chosen)
