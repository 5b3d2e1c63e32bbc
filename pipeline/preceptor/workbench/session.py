"""What one workbench works on, and the board: all that its pages show, as it stands in the files at one moment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from preceptor.contracts import GOLDEN, LABELS, OVERALL, content_id, read_table
from preceptor.errors import InputError, located
from preceptor.golden import tuning_rows
from preceptor.judge.agreement import Cell, Disagreement, agreement_table, disagreements
from preceptor.policy import ANSWER, REASONED_ANSWER, UNASKED, Finding, Policy, lint, load_policy, prompt_hash
from preceptor.policy.document import DOCUMENT, GOLDEN_DIR, PRECEDENTS, RUBRIC
from preceptor.policy.golden import golden_files
from preceptor.policy.jsonl import read_lines
from preceptor.record import Record, read_record
from preceptor.workbench.decisions import LOG, read_log, revision_of, speaks_of
from preceptor.workbench.golden_lines import SPLIT, GoldenLine, calibration_lines, calibration_of, golden_now
from preceptor.workbench.writes import read_exact

STAGE: Final = "calibrate"
WORKLIST: Final = "worklist.jsonl"
ASKED: Final = "asked.json"
"""What a recalibration was asked on: how many decisions had been taken."""

_WORDINGS: Final = (ANSWER, REASONED_ANSWER, UNASKED)
"""What prompts may end with."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """The policy's directory, the root of a recipe's stages, and the version whose calibration is the starting point.

    Calibrations made here stand beside that one as ``{version}-workbench-N``, what they were made from in `notes`.
    """

    policy: Path
    root: Path
    version: str

    @property
    def notes(self) -> Path:
        """Where golden and policy as they were at each recalibration are kept."""
        return self.root / "workbench"

    @property
    def corpus(self) -> Path:
        """The corpus that the calibration is of."""
        return self.root / "corpus" / self.version

    def version_of(self, number: int) -> str:
        """The name of the `number`-th recalibration; 0 is the calibration that was there first."""
        return self.version if number == 0 else f"{self.version}-workbench-{number}"

    def calibration(self, number: int) -> Path:
        """The stage directory of the `number`-th recalibration."""
        return self.root / STAGE / self.version_of(number)

    def newest(self) -> tuple[int, Record]:
        """The latest finished calibration and its number; InputError where there is none at all."""
        number, record = 0, read_record(self.calibration(0))
        if record is None:
            raise InputError(
                f"{self.calibration(0)}: no finished calibration. Run `preceptor run RECIPE --root {self.root}` as far "
                "as the stage calibrate, or give the --root and --version that have one."
            )
        while (later := read_record(self.calibration(number + 1))) is not None:
            number, record = number + 1, later
        return number, record


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the judge says of one pair and dimension is the policy's, golden's or its own fault (from ``refine``)."""

    kind: str
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Board:
    """Policy, golden, labels and decisions as they stand. `number` counts recalibrations; `log` is oldest first.

    `golden` is as the policy's files say now, `measured` as the latest calibration found it. `num_measured` decisions
    had been taken by then. `stamp` is the hash of the files.
    """

    stamp: str

    policy: Policy
    lines: Mapping[str, GoldenLine]
    golden: pa.Table
    measured: pa.Table
    labels: pa.Table
    number: int
    num_measured: int
    calibration: Record
    log: tuple[dict[str, Any], ...]
    worklist: Mapping[tuple[str, str], Task]

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Agreement of golden as it is now with the labels of the latest calibration."""
        return agreement_table(self.golden, self.labels)

    @cached_property
    def disagreements(self) -> Mapping[tuple[str, str], Disagreement]:
        """By pair_id and dimension, the widest apart first."""
        return {(one.pair["pair_id"], one.dimension): one for one in disagreements(self.golden, self.labels)}

    @cached_property
    def stale(self) -> tuple[str, ...]:
        """The dimensions whose wording has changed since they were judged, in the rubric's order."""
        judged: dict[str, set[str]] = {}
        for row in self.labels.select(["dimension", "prompt_hash"]).to_pylist():
            # A dimension that the rubric has lost is not judged again.
            if row["dimension"] in (*self.policy.rubric.names, OVERALL):
                judged.setdefault(row["dimension"], set()).add(row["prompt_hash"])
        # A derived overall has no prompt and an empty hash: it follows the others by itself.
        return tuple(
            name
            for name, hashes in judged.items()
            if hashes - {"", *(prompt_hash(self.policy, name, asking=asking) for asking in _WORDINGS)}
        )

    @cached_property
    def judged(self) -> Mapping[tuple[str, str], Mapping[str, Any]]:
        """LABELS rows by pair_id and dimension."""
        return {(row["pair_id"], row["dimension"]): row for row in self.labels.to_pylist()}

    @cached_property
    def graded(self) -> Mapping[str, Mapping[str, int]]:
        """Golden's grades by pair_id and dimension."""
        found: dict[str, dict[str, int]] = {}
        for row in self.golden.select(["pair_id", "dimension", "grade"]).to_pylist():
            found.setdefault(row["pair_id"], {})[row["dimension"]] = row["grade"]
        return found

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What lint says of the policy."""
        return lint(self.policy.path)

    @property
    def waiting(self) -> tuple[dict[str, Any], ...]:
        """The decisions that the latest calibration knows nothing of, oldest first."""
        return self.log[self.num_measured :]

    def revision(self, pair_id: str, dimension: str) -> str:
        """The hash of what a card of that pair and dimension lets one decide on."""
        return revision_of(self.policy, self.lines.get(pair_id), dimension)

    def log_of(self, pair_id: str, dimension: str, *, since: int = 0) -> tuple[tuple[int, dict[str, Any]], ...]:
        """The log's entries that a card of that pair and dimension is changed by, with their places from `since` on."""
        return tuple(
            (place, entry)
            for place, entry in enumerate(self.log)
            if place >= since and speaks_of(entry, pair_id=pair_id, dimension=dimension)
        )


def open_board(session: Session) -> Board:
    """The board as the files stand; PolicyError or InputError where they cannot be read."""
    number, _ = session.newest()
    while True:
        stamp = stamp_of(session, number)
        board = _board(session, number, stamp)
        if stamp_of(session, number) == stamp:
            return board
        # Edited while it was read: such a board must not be found again under either stamp.
        _board.cache_clear()


def stamp_of(session: Session, number: int) -> str:
    """A hash of every file that a board is made of, apart from finished stages, which do not change."""
    folder = session.policy
    files = [*(folder / name for name in (RUBRIC, DOCUMENT, PRECEDENTS, LOG)), *golden_files(folder / GOLDEN_DIR)]
    files += _worklists(session, number)
    return content_id(*(part for file in sorted(files) for part in (str(file), read_exact(file))))


@lru_cache(maxsize=4)
def _board(session: Session, number: int, stamp: str) -> Board:
    record = read_record(session.calibration(number))
    assert record is not None, "the newest calibration is a finished one"
    policy = load_policy(session.policy)
    lines = calibration_lines(session.policy)
    labels = read_table(record.path / "labels", LABELS)
    judged = set(labels.column("pair_id").to_pylist())
    golden = golden_now(policy, lines=lines, corpus=session.corpus, judged=judged)
    log = read_log(session.policy)
    notes = session.notes / session.version_of(number)
    measured, num_measured = golden, sum(entry["at"] < record.finished_at for entry in log)
    if number and (notes / ASKED).is_file():
        measured = read_table(notes / "golden", GOLDEN)
        num_measured = json.loads((notes / ASKED).read_text())["num_decisions"]
    elif not number:
        measured = calibration_of(tuning_rows(session.corpus / "golden", split=SPLIT), judged)
    return Board(
        stamp=stamp,
        policy=policy,
        lines=lines,
        golden=golden,
        measured=measured,
        labels=labels,
        number=number,
        num_measured=num_measured,
        calibration=record,
        log=log,
        worklist=_worklist(session, number),
    )


def _worklists(session: Session, number: int) -> list[Path]:
    """The worklists beside the latest calibration, beside the first, and where `preceptor worklist` puts them."""
    folders = dict.fromkeys((session.calibration(number), session.calibration(0), session.root / "worklist"))
    return [folder / WORKLIST for folder in folders if (folder / WORKLIST).is_file()]


def _worklist(session: Session, number: int) -> dict[tuple[str, str], Task]:
    found: dict[tuple[str, str], Task] = {}
    for file in reversed(_worklists(session, number)):
        for line, raw, broken in read_lines(read_exact(file)):
            if broken or not {"pair_id", "dimension", "cause", "evidence"} <= raw.keys():
                reason = broken or "a line needs pair_id, dimension, cause and evidence."
                raise InputError(located(f"{reason} Write the worklist again.", file=file, line=line))
            said = "; ".join(map(str, raw["evidence"]))
            found[raw["pair_id"], raw["dimension"]] = Task(kind=str(raw["cause"]), evidence=said)
    return found
