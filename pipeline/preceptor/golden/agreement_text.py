"""The agreement of graders as text for a terminal, and the one line that says why a draft is not golden yet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from preceptor.contracts import OVERALL
from preceptor.evaluation.metrics import Interval
from preceptor.golden.agreement import (
    EVERY_SLICE,
    KAPPA_FLOOR,
    Agreement,
    Shortfall,
    Vigilance,
    inattentive,
    shortfalls,
)


def agreement_text(agreement: Agreement, *, dimensions: Sequence[str], bar: float) -> str:
    """Tables of kappa by dimension and slice, of each two graders and of vigilance, closed by the verdict."""
    blocks = [_cells(agreement), _twosomes(agreement), _vigilance(agreement, bar)]
    verdict = refusal(shortfalls(agreement, dimensions), inattentive(agreement, bar), bar)
    blocks.append(f"golden: {verdict}" if verdict else f"golden: the graders agree at {KAPPA_FLOOR:.2f} or better")
    return "\n\n".join(block for block in blocks if block)


def refusal(missed: Sequence[Shortfall], careless: Sequence[Vigilance], bar: float) -> str:
    """Why these grades may not be called golden, by how much, and which dimension is worst; '' where they may."""
    parts = []
    if missed:
        overall = [one for one in missed if one.dimension == OVERALL]
        dims = [one for one in missed if one.dimension != OVERALL]
        said = [f"the lower end of overall linear kappa is {_short(one)}" for one in overall]
        said += [f"the worst dimension is {dims[0].dimension} at {_short(dims[0])}"] if dims else []
        others = ", ".join(f"{one.dimension} {_number(one.value)}" for one in dims[1:])
        said += [f"also under it: {others}"] if others else []
        parts.append("; ".join(said))
    if careless:
        named = ", ".join(f"{one.grader} ({one.right:.2f} of {one.num_grades} grades)" for one in careless)
        parts.append(f"under the vigilance bar of {bar:.2f}: {named}")
    return "; ".join(parts)


def _short(one: Shortfall) -> str:
    if not math.isfinite(one.value):
        return "undefined (no two graders, or one grade alone: bring pairs that differ)"
    return f"{one.value:.3f}, {one.short_by:.3f} under the bar of {KAPPA_FLOOR:.2f}"


def _cells(agreement: Agreement) -> str:
    rows = [
        (
            cell.dimension if cell.slice == EVERY_SLICE else f"  {cell.slice}",
            str(cell.num_pairs),
            _interval(cell.linear),
            _interval(cell.quadratic),
            f"{cell.exact:.2f}",
        )
        for cell in agreement.cells
    ]
    return _table(("dimension, slice", "pairs", "linear kappa", "quadratic kappa", "equal"), rows)


def _twosomes(agreement: Agreement) -> str:
    rows = [
        (" and ".join(one.graders), str(one.num_pairs), _number(one.linear), f"{one.leniency:+.2f}")
        for one in agreement.twosomes
    ]
    return _table(("graders", "pairs", "linear kappa", "second minus first"), rows)


def _vigilance(agreement: Agreement, bar: float) -> str:
    rows = [
        (
            one.grader,
            str(one.num_grades),
            f"{one.right:.2f}",
            f"{one.within_one:.2f}",
            f"under {bar:.2f}" if one.right < bar else "",
        )
        for one in agreement.vigilance
    ]
    return _table(("vigilance", "grades", "right", "within one", ""), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [tuple(head), *map(tuple, rows)]
    if len(lines) == 1:
        return ""
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _interval(interval: Interval) -> str:
    if not math.isfinite(interval.value):
        return "undefined"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "undefined"
