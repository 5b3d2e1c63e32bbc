"""A grading round: which pairs go to whom, and which of them have a grade that is known already.

It is kept in the policy's ``golden/rounds/``, because the files that graders get must not tell the two apart; like
every sub-folder of ``golden/`` it is sealed from what tunes a judge.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from preceptor.errors import InputError
from preceptor.policy.document import GOLDEN_DIR

ROUNDS: Final = "rounds"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One pair for two people. `known` has the grades it is known to have, where it is a vigilance item."""

    id: str
    pair: Mapping[str, str]
    graders: tuple[str, ...]
    known: Mapping[str, int] | None


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """How many pairs of one stratum there were, were asked for, and were taken. `name` has one value a column."""

    name: tuple[str, ...]
    num_available: int
    num_asked: int
    num_taken: int

    @property
    def num_lacking(self) -> int:
        """Pairs that were asked for and are not there."""
        return self.num_asked - self.num_taken


@dataclass(frozen=True, kw_only=True)
class Round:
    """The tasks of one export, in the order in which graders see them."""

    id: str
    policy_version: str
    dimensions: tuple[str, ...]
    graders: tuple[str, ...]
    seed: int
    columns: tuple[str, ...]
    strata: tuple[Stratum, ...]
    skipped: Mapping[str, int]
    tasks: tuple[Task, ...]


def round_file(policy: Path, id: str) -> Path:
    """Where the round of this id is kept in the policy."""
    return policy / GOLDEN_DIR / ROUNDS / f"{id}.json"


def round_json(round_: Round) -> str:
    """The text of the round's file."""
    return json.dumps(dataclasses.asdict(round_), ensure_ascii=False, indent=1) + "\n"


def find_round(policy: Path, id: str) -> Round | None:
    """The round of this id, or None where the policy has none; InputError where its file is damaged."""
    file = round_file(policy, id)
    # Ids come from files of other people.
    if not id.isalnum() or not file.is_file():
        return None
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        names = ("dimensions", "graders", "columns")
        return Round(
            **{
                **raw,
                **{name: tuple(raw[name]) for name in names},
                "strata": tuple(Stratum(**{**item, "name": tuple(item["name"])}) for item in raw["strata"]),
                "tasks": tuple(Task(**{**item, "graders": tuple(item["graders"])}) for item in raw["tasks"]),
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: not a grading round ({error}). Restore it from version control.") from error


def strata_table(round_: Round) -> str:
    """One line for each stratum: what there is, what was asked, what it got, what it lacks."""
    head = (*round_.columns, "available", "asked", "got", "lacks")
    lines = [
        (*item.name, item.num_available, item.num_asked, item.num_taken, item.num_lacking or "")
        for item in round_.strata
    ]
    cells = [tuple(map(str, line)) for line in (head, *lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    num_names = len(round_.columns)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < num_names else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )
