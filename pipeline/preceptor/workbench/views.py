"""The board as the JSON that the page reads. Texts go out as they are; the page sets them as text, never as markup."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

from preceptor.contracts import OVERALL, content_id
from preceptor.evaluation.metrics import Interval
from preceptor.judge.agreement import Cell, Disagreement
from preceptor.policy.document import RUBRIC
from preceptor.workbench.decisions import AMEND
from preceptor.workbench.edits import declared_graders
from preceptor.workbench.session import Board, Session
from preceptor.workbench.writes import read_exact

TEACHER: Final = "teacher:"
"""What the id of a tuned teacher begins with; it was tuned under words and reads none."""

_SHORT: Final = 140


def state_json(session: Session, board: Board) -> dict[str, Any]:
    """The policy, the calibration, and what waits to be judged again."""
    rubric, calibration = board.policy.rubric, board.calibration
    return {
        "policy_id": content_id(str(session.policy.resolve())),
        "name": rubric.name,
        "policy_version": board.policy.version,
        "grade_names": list(rubric.grade_names),
        "dimensions": [
            {"name": one.name, "title": one.title, "question": one.question, "weight": one.weight}
            for one in rubric.dimensions
        ],
        "overall": OVERALL,
        "calibration": {
            "version": calibration.version,
            "policy_version": calibration.policy_version,
            "finished_at": calibration.finished_at,
            "judge_id": calibration.metrics["judge_id"],
            "reads_policy": not calibration.metrics["judge_id"].startswith(TEACHER),
            "floor": calibration.metrics.get("floor"),
            "passed": calibration.metrics.get("passed"),
        },
        "graders": list(declared_graders(read_exact(session.policy / RUBRIC))),
        "findings": {
            name: sum(finding.severity == name for finding in board.findings) for name in ("error", "warning")
        },
        "stale": list(board.stale),
        "waiting": [brief(entry) for entry in board.waiting],
    }


def cell_json(cell: Cell) -> dict[str, Any]:
    """A cell with what is undefined as null."""
    return {
        "dimension": cell.dimension,
        "slice": cell.slice,
        "num": cell.num,
        **{name: _interval_json(getattr(cell, name)) for name in ("linear", "quadratic", "binarised")},
        "exact": _defined(cell.exact),
        "within_one": _defined(cell.within_one),
        "leniency": _defined(cell.leniency),
        "label_mass": _defined(cell.label_mass),
        "confusion": [list(row) for row in cell.confusion],
    }


def cards_json(board: Board) -> list[dict[str, Any]]:
    """One short entry for each disagreement, the widest apart first; the overall grade, which follows, comes last."""
    ordered = sorted(board.disagreements.values(), key=lambda one: one.dimension == OVERALL)
    return [_card_brief(board, one) for one in ordered]


def card_json(board: Board, pair_id: str, dimension: str) -> dict[str, Any] | None:
    """Everything that one disagreement is decided by; None where golden and judge agree, or know no such pair."""
    one = board.disagreements.get((pair_id, dimension))
    if one is None:
        return None
    rubric = board.policy.rubric
    label = board.judged[pair_id, dimension]
    task = board.worklist.get((pair_id, dimension))
    line = board.lines.get(pair_id)
    known = {name: board.judged.get((pair_id, name)) for name in (*rubric.names, OVERALL)}
    return {
        **_card_brief(board, one),
        **{name: one.pair[name] for name in ("query", "profile", "document")},
        "question": rubric.overall_question if dimension == OVERALL else rubric.dimension(dimension).question,
        "anchors": None if dimension == OVERALL else list(rubric.dimension(dimension).anchors),
        "grader_id": one.grader_id,
        "golden_reason": one.golden_reason,
        "golden_grades": dict(board.graded[pair_id]),
        "judge_grades": {name: row["grade"] for name, row in known.items() if row is not None},
        "probs": list(one.probs),
        "label_mass": label["label_mass"],
        "rationale": one.rationale,
        "task": None if task is None else asdict(task),
        "refusals": _refusals(board, one, line is not None),
        "revision": board.revision(pair_id, dimension),
        "num_log": len(board.log),
        "log": log_json(board.log_of(pair_id, dimension)),
    }


def brief(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A log entry without the texts of a pair that became a precedent."""
    before = entry.get("before")
    if isinstance(before, Mapping):
        before = {key: value for key, value in before.items() if key not in ("profile", "document")}
    return {**entry, "before": before}


def log_json(entries: Iterable[tuple[int, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Log entries with their places."""
    return [{**brief(entry), "place": place} for place, entry in entries]


def _card_brief(board: Board, one: Disagreement) -> dict[str, Any]:
    pair_id = one.pair["pair_id"]
    task = board.worklist.get((pair_id, one.dimension))
    mine = [entry for entry in board.waiting if entry.get("pair_id") == pair_id and entry["dimension"] == one.dimension]
    return {
        "pair_id": pair_id,
        "dimension": one.dimension,
        "slice": one.pair["slice"],
        "golden": one.golden_grade,
        "judge": one.judge_grade,
        "query": one.pair["query"],
        "short": one.pair["document"][:_SHORT],
        "kind": None if task is None else task.kind,
        "decided": [entry["kind"] for entry in mine],
        "reworded": any(entry["kind"] == AMEND and entry["dimension"] == one.dimension for entry in board.waiting),
    }


def _refusals(board: Board, one: Disagreement, has_line: bool) -> dict[str, str]:
    """Why a decision cannot be taken on this card, by decision; nothing where it can."""
    found = {}
    complete = board.graded[one.pair["pair_id"]].keys() >= set(board.policy.rubric.names)
    if one.dimension == OVERALL:
        found["amend"] = "The overall grade has no anchors: it follows from the dimensions. Amend one of those."
        if complete:
            found["correct"] = "The overall grade follows from the dimensions. Correct the dimension that is wrong."
    if not has_line:
        for name in ("precedent", "correct"):
            found[name] = "This grade comes from the corpus, not from a file of the policy."
    return found


def _interval_json(interval: Interval) -> dict[str, float | None]:
    return {name: _defined(getattr(interval, name)) for name in ("value", "low", "high")}


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
