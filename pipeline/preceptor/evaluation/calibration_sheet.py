"""Whether distillation kept the teachers' calibration: their calibration errors beside the student's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from preceptor.contracts import ACTIONS, OVERALL
from preceptor.evaluation.metrics import Interval
from preceptor.evaluation.sheets import Sheet, interval_words

TEACHER_OF: Final = {OVERALL: "relevance_teacher", **dict.fromkeys(ACTIONS, "engagement_teacher")}
"""Whose calibration the student's head is to keep."""

_CAPTION: Final = (
    "Expected calibration error on the holdout, 0 is perfect, with 95 % bootstrap intervals over queries: of actions "
    "their probability at the position shown, of overall the mean over the five grades. A resample repeats rows, which "
    "raises the error: an interval may lie above its value."
)


def calibration_sheets(gate: Sequence[Mapping[str, Any]]) -> tuple[Sheet, ...]:
    """The table of each head's calibration error before and after distillation, from GATE_REPORT rows.

    A head that was measured of one of the two alone is left out; without any there is no table.
    """
    errors = {(row["system"], row["head"]): _interval(row) for row in gate if row["metric"] == "ece"}
    rows = tuple(_rows(errors))
    header = ("head", "before: its teacher", "after: the student", "rise")
    return (Sheet(title="Calibration kept", caption=_CAPTION, header=header, rows=rows),) if rows else ()


def _rows(errors: Mapping[tuple[str, str], Interval]) -> Iterator[tuple[str, ...]]:
    for head, teacher in TEACHER_OF.items():
        before, after = errors.get((teacher, head)), errors.get(("student", head))
        if before is not None and after is not None:
            words = (" ".join(interval_words(side)).strip() for side in (before, after))
            yield head, *words, f"{after.value - before.value:+.3f}"


def _interval(row: Mapping[str, Any]) -> Interval:
    low, high = (math.nan if row[end] is None else row[end] for end in ("low", "high"))
    return Interval(value=row["value"], low=low, high=high, num_groups=row["num_queries"])
