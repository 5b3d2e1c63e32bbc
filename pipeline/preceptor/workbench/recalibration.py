"""Judging again what decisions have touched, in a thread, with agreement before and after kept on disk.

``{root}/workbench/{version}/`` holds the policy and golden as they were when it was asked for, and, written last,
``result.json``. The labels are a stage of their own beside the earlier calibrations: what an earlier one still answers
is taken over by the stage itself, so that only changed dimensions are asked.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from preceptor.contracts import GOLDEN, LABELS, content_id, read_table, write_table
from preceptor.errors import InputError, PreceptorError, RecipeError, last_line
from preceptor.judge import calibrate, stored_judge
from preceptor.judge.agreement import Cell, agreement_table, disagreements
from preceptor.judge.judges import open_judge
from preceptor.judge.watch import Watch
from preceptor.local_ray import ray_cluster
from preceptor.policy import load_policy
from preceptor.policy.document import GOLDEN_DIR
from preceptor.recipe import Recipe
from preceptor.record import Record, read_record, write_json
from preceptor.workbench.decisions import LOG
from preceptor.workbench.session import ASKED, STAGE, Board, Session, open_board
from preceptor.workbench.views import cell_json
from preceptor.workbench.writes import locked

RESULT: Final = "result.json"

_COUNTERS: Final = "preceptor_label_rows_total", "preceptor_label_rows_left"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One recalibration: a copy of the policy, golden's rows as a corpus, the stage's directory, and its counter."""

    policy: Path
    golden: Record
    num_pairs: int
    out: Path
    watch: Watch


Recalibrate = Callable[[Asked], Record]
"""Judges the pairs of `golden` under `policy` into `out` as the stage `calibrate` does, and returns its record."""


def recalibration_of(recipe: Recipe, root: Path) -> Recalibrate:
    """A function that calibrates the judge of `recipe` again: the one configured, or the teacher that labels for it.

    RecipeError where the recipe has no judge.
    """
    config = recipe.judge
    if config is None:
        raise RecipeError(f"recipe {recipe.name} has no judge, so there is nothing to calibrate.")

    def run(asked: Asked) -> Record:
        scores = None if recipe.labeller == "judge" else _finished(root, "relevance_scores", recipe)
        if scores is None:
            judge = open_judge(config, load_policy(asked.policy), teacher=None, model=None)
        else:
            judge = stored_judge(scores, _finished(root, "relevance_teacher", recipe))
        with nullcontext() if judge.workers is None else ray_cluster():
            return calibrate(
                replace(config, num_calibration_pairs=asked.num_pairs),
                policy=asked.policy,
                corpus=asked.golden,
                teacher=scores,
                judge=judge,
                watch=asked.watch,
                out=asked.out,
            )

    return run


def _finished(root: Path, stage: str, recipe: Recipe) -> Record:
    record = read_record(root / stage / recipe.version)
    if record is None:
        raise InputError(f"{root / stage / recipe.version}: not finished. Run `preceptor run {recipe.name}` first.")
    return record


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a recalibration stands: rows answered of `num_rows`, or the one line that it failed with."""

    state: Literal["idle", "running", "failed", "done"]
    version: str = ""
    num_done: int = 0
    num_rows: int = 0
    error: str | None = None


class Recalibrator:
    """At most one recalibration at a time, in a thread of its own; it lives as long as the server."""

    def __init__(self, session: Session, recalibrate: Recalibrate) -> None:
        self._session = session
        self._recalibrate = recalibrate
        self._guard = threading.Lock()
        self._watch: Watch | None = None
        self._standing = Standing(state="idle")

    def start(self) -> Standing:
        """How it stands after starting one, or finding one at work."""
        with self._guard:
            if self._standing.state == "running":
                return self.standing()
            with locked(self._session.policy):
                board = open_board(self._session)
                version = self._session.version_of(board.number + 1)
                asked = _prepared(self._session, board, version)
            self._watch = asked.watch
            self._standing = Standing(state="running", version=version)
            threading.Thread(target=self._run, args=(asked, board), daemon=True, name=version).start()
            return self.standing()

    def standing(self) -> Standing:
        """How the one at work, or the last one, stands."""
        now, watch = self._standing, self._watch
        if now.state != "running" or watch is None:
            return now
        done, left = (_sum_of(watch, name) for name in _COUNTERS)
        return replace(now, num_done=done, num_rows=done + left)

    def _run(self, asked: Asked, board: Board) -> None:
        version = asked.out.name
        try:
            record = self._recalibrate(asked)
            write_json(asked.policy.parent / RESULT, _result(board, record, asked))
            self._standing = Standing(state="done", version=version)
        except PreceptorError as error:
            self._standing = Standing(state="failed", version=version, error=str(error))
        except Exception as error:
            self._standing = Standing(
                state="failed", version=version, error=f"{type(error).__name__}: {last_line(error)}"
            )
            raise


def results(session: Session) -> tuple[dict[str, Any], ...]:
    """What every finished recalibration of this session changed, newest first."""
    newest, _ = session.newest()
    files = (session.notes / session.version_of(number) / RESULT for number in range(newest, 0, -1))
    return tuple(json.loads(file.read_text()) for file in files if file.is_file())


def _prepared(session: Session, board: Board, version: str) -> Asked:
    """The recalibration of `board`, after copying what it is of: decisions may go on meanwhile."""
    folder = session.notes / version
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(session.policy, folder / "policy", ignore=shutil.ignore_patterns(".*", GOLDEN_DIR, LOG))
    write_table(board.golden, folder / "golden" / "part-000000.parquet", GOLDEN)
    write_json(folder / ASKED, {"num_decisions": len(board.log)})
    rows = board.golden.select(["pair_id", "dimension", "grade"]).to_pylist()
    golden = Record(
        stage="golden",
        version=version,
        fingerprint=content_id(*(f"{row['pair_id']} {row['dimension']} {row['grade']}" for row in rows)),
        path=folder,
        config={},
    )
    return Asked(
        policy=folder / "policy",
        golden=golden,
        num_pairs=max(len({row["pair_id"] for row in rows}), 1),
        out=session.root / STAGE / version,
        watch=Watch(),
    )


def _result(board: Board, record: Record, asked: Asked) -> dict[str, Any]:
    labels = read_table(record.path / "labels", LABELS)
    after = read_table(asked.golden.path / "golden", GOLDEN)
    was, now = (
        {(one.pair["pair_id"], one.dimension) for one in disagreements(golden, said)}
        for golden, said in ((board.measured, board.labels), (after, labels))
    )
    known = {_measured(row) for row in board.labels.to_pylist()}
    rows = [_measured(row) for row in labels.to_pylist()]
    return {
        "version": record.version,
        "earlier": board.calibration.version,
        "finished_at": record.finished_at,
        "policy_version": record.policy_version,
        "earlier_policy_version": board.calibration.policy_version,
        "num_judged": sum(row not in known and bool(row[2]) for row in rows),
        "num_kept": sum(row in known and bool(row[2]) for row in rows),
        "dimensions": list(board.stale),
        "decisions": list(board.waiting),
        "num_settled": len(was - now),
        "num_arisen": len(now - was),
        "before": _cells(board.measured, board.labels),
        "after": _cells(after, labels),
    }


def _measured(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["pair_id"], row["dimension"], row["prompt_hash"]


def _cells(golden: pa.Table, labels: pa.Table) -> list[dict[str, Any]]:
    cells: tuple[Cell, ...] = agreement_table(golden, labels)
    return [cell_json(cell) for cell in cells]


def _sum_of(watch: Watch, name: str) -> int:
    return sum(
        int(sample.value) for family in watch.registry.collect() for sample in family.samples if sample.name == name
    )
