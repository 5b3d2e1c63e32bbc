"""Agreement in tables of words: a judge with golden, a judge with itself, and the same judge before and after."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from preceptor.contracts import OVERALL
from preceptor.evaluation.metrics import Interval
from preceptor.evaluation.sheets import Sheet, interval_words
from preceptor.judge.agreement import EVERY_SLICE, SUITABLE, Cell, cells_of_json
from preceptor.record import Record

_FIGURES: Final = ("grades", "quadratic", "linear", "binarised", "exact", "within 1", "leniency", "mass")
_ASKED: Final = {"again": "the same question again", "reordered": "dimensions in reverse order"}
_CAPTION: Final = (
    "Weighted kappa with golden, 95 % intervals over resampled queries; binarised: "
    f"{SUITABLE} and more against less. Leniency: mean of judge minus golden. Mass: of the five grades."
)


def judges_of(records: Mapping[str, Record]) -> dict[str, str]:
    """The calibration stages and whom each measured: a teacher only where a zero-shot judge was measured before it."""
    if "zeroshot" in records:
        return {"zeroshot": "Zero-shot judge", "calibrate": "Relevance teacher as judge"}
    return {"calibrate": "Judge"}


def agreement_sheets(records: Mapping[str, Record]) -> tuple[Sheet, ...]:
    """Of each judge that `records` measured: every cell of agreement, and its agreement with itself."""
    found: list[Sheet] = []
    for stage, judge in judges_of(records).items():
        metrics = records[stage].metrics if stage in records else {}
        cells = cells_of_json(metrics.get("agreement", ()))
        if cells:
            found.append(_whole_sheet(f"{judge}: agreement with golden", cells))
            found.append(_confusion_sheet(f"{judge}: confusion with golden", cells))
        if metrics.get("consistency"):
            found.append(_consistency_sheet(f"{judge}: agreement with itself", metrics["consistency"]))
    return tuple(found)


def terminal_sheets(records: Mapping[str, Record]) -> tuple[Sheet, ...]:
    """As `agreement_sheets`, short enough for a terminal: all slices together, and the overall grade by slice."""
    found: list[Sheet] = []
    for stage, judge in judges_of(records).items():
        metrics = records[stage].metrics if stage in records else {}
        cells = cells_of_json(metrics.get("agreement", ()))
        shown = [cell for cell in cells if cell.slice == EVERY_SLICE or cell.dimension == OVERALL]
        if shown:
            found.append(_whole_sheet(f"{judge}: agreement with golden", shown))
        if metrics.get("consistency"):
            found.append(_least_steady(_consistency_sheet(f"{judge}: agreement with itself", metrics["consistency"])))
    return tuple(found)


def change_sheet(before: Record, after: Record, *, changed: Collection[str]) -> Sheet:
    """The agreement of two calibrations side by side, by dimension; those in `changed` bear a star.

    The last columns count what was judged for the second, and what was taken over from an earlier version.
    """
    old, new = _whole(before), _whole(after)
    rows = []
    for name in dict.fromkeys([OVERALL, *new, *old]):
        both = old.get(name), new.get(name)
        judged, reused = (after.metrics.get(kind, {}).get(name, 0) for kind in ("asked", "reused"))
        rows.append(
            (
                f"{name} *" if name in changed else name,
                _arrow(both, lambda cell: _kappa(cell.quadratic)),
                _arrow(both, lambda cell: _number(cell.linear.value)),
                _arrow(both, lambda cell: _number(cell.binarised.value)),
                _arrow(both, lambda cell: _number(cell.exact)),
                _arrow(both, lambda cell: _number(cell.within_one)),
                _arrow(both, lambda cell: f"{cell.leniency:+.2f}"),
                *((f"{judged:,}", f"{reused:,}") if judged or reused else ("derived", "")),
            )
        )
    return Sheet(
        title=f"Agreement with golden, {before.path.name} -> {after.path.name}",
        caption=f"{_CAPTION} *: worded anew.",
        header=("dimension", "quadratic", "linear", "binarised", "exact", "within 1", "leniency", "judged", "reused"),
        rows=tuple(rows),
    )


def _whole(record: Record) -> dict[str, Cell]:
    cells = cells_of_json(record.metrics.get("agreement", ()))
    return {cell.dimension: cell for cell in cells if cell.slice == EVERY_SLICE}


def _whole_sheet(title: str, cells: Iterable[Cell]) -> Sheet:
    return Sheet(
        title=title,
        caption=_CAPTION,
        header=("dimension", "slice", *_FIGURES),
        rows=tuple((cell.dimension, cell.slice, *_figures(cell)) for cell in cells),
    )


def _confusion_sheet(title: str, cells: Iterable[Cell]) -> Sheet:
    whole = [cell for cell in cells if cell.slice == EVERY_SLICE]
    return Sheet(
        title=title,
        caption="How many pairs of each golden grade the judge gave 0, 1, 2, 3 and 4, in this order.",
        header=("dimension", *(f"golden {grade}" for grade in range(len(whole[0].confusion)))),
        rows=tuple(
            (cell.dimension, *(" · ".join(f"{count:,}" for count in line) for line in cell.confusion)) for cell in whole
        ),
    )


def _consistency_sheet(title: str, found: Mapping[str, Any]) -> Sheet:
    kinds = [kind for kind in _ASKED if kind in found]
    shifts = "; ".join(
        f"{_ASKED[kind]} {shift['mean']:.4f}, {shift['most']:.4f}"
        for kind in kinds
        if (shift := found[kind]["prob_shift"])
    )
    return Sheet(
        title=title,
        caption=f"{len(found['pair_ids'])} of the calibration pairs, chosen by a hash. How far the grades' "
        f"probabilities move, on average and at most: {shifts}.",
        header=("asked", "dimension", *_FIGURES),
        rows=tuple(
            (_ASKED[kind], cell.dimension, *_figures(cell))
            for kind in kinds
            for cell in cells_of_json(found[kind]["cells"])
        ),
    )


def _least_steady(sheet: Sheet) -> Sheet:
    """Of each way of asking the one dimension with the fewest equal grades."""
    exact = sheet.header.index("exact")
    rows = {how: min((row for row in sheet.rows if row[0] == how), key=lambda row: row[exact]) for how in _hows(sheet)}
    return replace(sheet, caption=f"{sheet.caption} The least steady dimension:", rows=tuple(rows.values()))


def _hows(sheet: Sheet) -> list[str]:
    return list(dict.fromkeys(row[0] for row in sheet.rows))


def _figures(cell: Cell) -> tuple[str, ...]:
    return (
        f"{cell.num:,}",
        _kappa(cell.quadratic),
        _kappa(cell.linear),
        _kappa(cell.binarised),
        _number(cell.exact),
        _number(cell.within_one),
        f"{cell.leniency:+.2f}",
        _number(cell.label_mass),
    )


def _kappa(interval: Interval) -> str:
    return " ".join(interval_words(interval)).strip()


def _arrow(both: tuple[Cell | None, Cell | None], words: Callable[[Cell], str]) -> str:
    before, after = ("-" if cell is None else words(cell) for cell in both)
    return before if before == after else f"{before} -> {after}"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "undefined"
