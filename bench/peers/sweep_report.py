"""What a sweep of students measured, as Markdown tables, as a row of bench/RESULTS.md, and as a plot."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from bench.peers.pareto import Point, front, hypervolume, widest
from preceptor.contracts import OVERALL
from preceptor.evaluation.metrics import Interval

OWN: Final = "the recipe's own"
NDCG: Final = "student overall ndcg@10"
AUC: Final = "student click auc"
KEPT: Final = ("student overall retention ndcg@10", "student click retention auc")
CHANGE: Final = "change of "
Kind = Literal["own", "sweep", "ablation"]
Values = Mapping[str, Interval]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of a point: means over its seeds, of values and of the ends of their intervals."""

    name: str
    kind: Kind
    num_pairs: int
    num_targets: int
    """Heads of pairs that some teacher spoke of."""
    values: Values
    seeds: tuple[Point, ...]
    """Click AUC and NDCG@10 of each seed."""

    @property
    def point(self) -> Point:
        """Click AUC and NDCG@10."""
        return self.values[AUC].value, self.values[NDCG].value


def averaged(found: Sequence[Values]) -> dict[str, Interval]:
    """Of each measure the mean over seeds of its value and of both ends of its interval."""
    return {
        name: Interval(
            value=float(np.mean([values[name].value for values in found])),
            low=float(np.mean([values[name].low for values in found])),
            high=float(np.mean([values[name].high for values in found])),
            num_groups=item.num_groups,
        )
        for name, item in found[0].items()
    }


def tables(rows: Sequence[Row], *, steps: int, num_seeds: int, reference: Point) -> str:
    """Sweep and ablations as two Markdown tables, the recipe's own student first in both."""
    own = rows[0].values
    kept = {row.name: row.point for row in rows if row.kind != "ablation"}
    on_front = front(kept)
    before = {head: own[name].value for head, name in teachers_ece().items() if name in own}
    head = [
        f"{steps} steps each, {_seeds(num_seeds)}; "
        f"{own[NDCG].num_groups} held-out queries of graded pairs, {own[AUC].num_groups} of impressions",
        f"teachers: NDCG@10 {own['relevance_teacher overall ndcg@10'].value:.4f}, click AUC "
        f"{own['engagement_teacher click auc'].value:.4f}; calibration error before, "
        + ", ".join(f"{name} {value:.4f}" for name, value in before.items()),
        f"reference: NDCG@10 {reference[1]:.4f} of a random order, AUC 0.5",
    ]
    lines = ["\n".join(head)]
    for kind in ("sweep", "ablation"):
        told = [row for row in rows if row.kind in ("own", kind)]
        if len(told) > 1 or (kind == "sweep" and len(rows) == 1):
            lines.append("\n".join([*_heading(), *(_cells(row, on_front) for row in told)]))
    return "\n\n".join(lines)


def teachers_ece() -> dict[str, str]:
    """The gate's names of the calibration error of each teacher's head, by the head."""
    return {OVERALL: "relevance_teacher overall ece", "click": "engagement_teacher click ece"}


def _seeds(num: int) -> str:
    return f"means of {num} seeds ± their standard deviation" if num > 1 else "one seed"


def _heading() -> list[str]:
    columns = (
        "student",
        "pairs",
        "targets",
        "NDCG@10",
        "of the teacher's",
        "against the recipe's own",
        "click AUC",
        "of the teacher's",
        "against the recipe's own",
        "ECE overall, after",
        "ECE click, after",
        "front",
    )
    return [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 2)} --- |"]


def _cells(row: Row, on_front: Sequence[str]) -> str:
    values = row.values
    cells = [row.name, f"{row.num_pairs:,}", f"{row.num_targets:,}"]
    for name, kept, figures in zip((NDCG, AUC), KEPT, reversed(list(zip(*row.seeds, strict=True))), strict=True):
        spread = f" ± {np.std(figures, ddof=1):.4f}" if len(figures) > 1 else ""
        changed = percent(values.get(CHANGE + kept), "{:+.1%}")
        cells += [f"{values[name].value:.4f}{spread}", percent(values[kept], "{:.1%}"), changed]
    cells += [f"{values[f'student {head} ece'].value:.4f}" for head in (OVERALL, "click")]
    return f"| {' | '.join([*cells, 'yes' if row.name in on_front else ''])} |"


def percent(found: Interval | None, form: str) -> str:
    """`found` with its interval, each in the format `form`; nothing where there is none."""
    if found is None:
        return ""
    value, low, high = (form.format(part) for part in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def summary(rows: Sequence[Row], *, command: str, reference: Point) -> str:
    """The sweep as a row of bench/RESULTS.md."""
    swept = {row.name: row.point for row in rows if row.kind != "ablation"}
    own = rows[0]
    ideal = teachers_point(own)
    area, whole = hypervolume(swept.values(), reference), hypervolume([ideal], reference)
    share = f", {area / whole:.1%} of the two teachers'" if whole else ""
    of_own = hypervolume([own.point], reference)
    place = "on the front" if own.name in front(swept) else "not on the front"
    best = widest(swept, reference) if area else "none, no point beats the reference in both"
    figures = (
        f"hypervolume {area:.5f}{share} (reference AUC 0.5, NDCG@10 {reference[1]:.4f} of a random order); "
        f"the recipe's own {of_own:.5f}, {place}; front: {', '.join(front(swept))}; "
        f"greatest hypervolume of its own: {best}"
    )
    today = datetime.date.today().isoformat()
    return f"| {today} | the mix swept, {len(swept)} points | `{command}` | MACHINE | {figures} |"


def teachers_point(row: Row) -> Point:
    """Click AUC of the engagement teacher, NDCG@10 of the relevance teacher."""
    return row.values["engagement_teacher click auc"].value, row.values["relevance_teacher overall ndcg@10"].value


def plot(rows: Sequence[Row], file: Path, *, reference: Point) -> Path:
    """`file`, after drawing NDCG@10 against click AUC: sweep, front, ablations, the recipe's own and the teachers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    swept = {row.name: row.point for row in rows if row.kind != "ablation"}
    figure, axis = pyplot.subplots(figsize=(9, 6.5))
    looks = {"own": ("*", "tab:red", 15), "sweep": ("o", "tab:blue", 6), "ablation": ("s", "0.6", 4)}
    for row in rows:
        marker, colour, size = looks[row.kind]
        axis.plot(*row.point, marker, color=colour, markersize=size, zorder=3)
        axis.annotate(row.name, row.point, (6, 4), textcoords="offset points", fontsize=7, color=colour)
        if row.kind == "own":
            # Of one point alone: on the same queries those of all are about as wide, and would hide the points.
            (left, right), (low, high) = ((row.values[name].low, row.values[name].high) for name in (AUC, NDCG))
            axis.plot((left, right), (row.point[1],) * 2, color=colour, alpha=0.2)
            axis.plot((row.point[0],) * 2, (low, high), color=colour, alpha=0.2)
    corners = [swept[name] for name in front(swept)]
    axis.step([x for x, _ in corners], [y for _, y in corners], where="pre", color="tab:blue", linewidth=1)
    axis.plot(*teachers_point(rows[0]), "P", color="black", markersize=9)
    axis.annotate("both teachers", teachers_point(rows[0]), (6, 4), textcoords="offset points", fontsize=7)
    area = hypervolume(swept.values(), reference)
    axis.set_title(f"hypervolume {area:.5f} over AUC 0.5 and NDCG@10 {reference[1]:.3f} of a random order", fontsize=9)
    axis.set_xlabel("click AUC, held-out impressions")
    axis.set_ylabel("NDCG@10, held-out graded pairs")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return file
