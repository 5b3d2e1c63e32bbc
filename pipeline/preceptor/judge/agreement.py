"""How far a judge agrees with golden: one cell for each dimension and slice, and the pairs on which they differ.

C cells, Q queries, B resamples; G = 5 grades. A query is what was sampled, so a resample draws whole queries. Every
statistic of a cell is a function of its G x G confusion matrix: a resample is a sum of its queries' matrices, and all
resamples of a cell are one product of (B, Q) draws with (Q, G * G) counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from preceptor.contracts import NUM_GRADES, PAIRS
from preceptor.evaluation.metrics import Floats, Interval, kappa_of

EVERY_SLICE: Final = "all"
"""The slice of a cell that holds the pairs of every slice."""

SUITABLE: Final = 3
"""The lowest grade that binarised kappa counts as suitable."""

_GRADES: Final = np.arange(NUM_GRADES)
_APART: Final = np.abs(_GRADES[:, None] - _GRADES[None, :])
_SIGNED: Final = _GRADES[None, :] - _GRADES[:, None]
_ACROSS: Final = (_GRADES[:, None] >= SUITABLE) != (_GRADES[None, :] >= SUITABLE)

_KAPPAS: Final = ("linear", "quadratic", "binarised")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Agreement on one dimension in one slice (`EVERY_SLICE` for all of them), over `num` grades both have given.

    `linear`, `quadratic` and `binarised` are Cohen's kappa with those weights (binarised: grades from `SUITABLE` up
    against the rest), with 95 % intervals over resampled queries; NaN where both gave one and the same constant.
    `exact` and `within_one` are shares of `num`. `leniency` is the mean of judge minus golden: above 0 the judge is
    the more lenient. `label_mass` is the judge's mean. `confusion[golden][judge]` counts grades.
    """

    dimension: str
    slice: str
    num: int
    linear: Interval
    quadratic: Interval
    binarised: Interval
    exact: float
    within_one: float
    leniency: float
    label_mass: float
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """A pair (its PAIRS row) that golden and the judge grade differently on `dimension`, with what each says of it.

    `probs` are the judge's, of the five grades; `grader_id` names golden's grader.
    """

    pair: Mapping[str, str]
    dimension: str
    golden_grade: int
    judge_grade: int
    probs: tuple[float, ...]
    golden_reason: str | None
    rationale: str | None
    grader_id: str

    @property
    def distance(self) -> int:
        """Grades between the two, 1 to 4."""
        return abs(self.golden_grade - self.judge_grade)

    @property
    def confidence(self) -> float:
        """The judge's probability of the grade it gave."""
        return self.probs[self.judge_grade]


def agreement_table(
    golden: pa.Table, labels: pa.Table, *, num_bootstrap: int = 1000, seed: int = 17
) -> tuple[Cell, ...]:
    """A cell for each dimension and slice of golden that the judge graded, dimensions in golden's order.

    Of each dimension `EVERY_SLICE` comes first, then its slices by name. `golden` is a GOLDEN table, `labels` a LABELS
    table of one judge; a grade that only one of them has is left out, so that no row at all gives no cell.
    """
    return tuple(
        _cell(dimension, slice_, rows, num_bootstrap=num_bootstrap, seed=seed)
        for dimension, slices in _gathered(golden, labels).items()
        for slice_, rows in slices.items()
    )


def disagreements(golden: pa.Table, labels: pa.Table) -> tuple[Disagreement, ...]:
    """Every grade on which golden (GOLDEN) and the judge (LABELS) differ.

    The largest distance comes first, then the judge's highest confidence, then pair_id and dimension.
    """
    judged = _judged(labels)
    found = [
        Disagreement(
            pair={name: row[name] for name in PAIRS.names},
            dimension=row["dimension"],
            golden_grade=row["grade"],
            judge_grade=label["grade"],
            probs=tuple(label["probs"]),
            golden_reason=row["reason"],
            rationale=label["rationale"],
            grader_id=row["grader_id"],
        )
        for row in golden.to_pylist()
        if (label := judged.get((row["pair_id"], row["dimension"]))) is not None and label["grade"] != row["grade"]
    ]
    return tuple(sorted(found, key=lambda one: (-one.distance, -one.confidence, one.pair["pair_id"], one.dimension)))


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One grade that both gave."""

    query_id: str
    golden: int
    judge: int
    label_mass: float


def _gathered(golden: pa.Table, labels: pa.Table) -> dict[str, dict[str, list[_Row]]]:
    """The grades both gave, by dimension and slice."""
    judged = _judged(labels.select(["pair_id", "dimension", "grade", "label_mass"]))
    gathered: dict[str, dict[str, list[_Row]]] = {}
    for row in golden.select(["pair_id", "query_id", "slice", "dimension", "grade"]).to_pylist():
        label = judged.get((row["pair_id"], row["dimension"]))
        if label is None:
            continue
        both = _Row(query_id=row["query_id"], golden=row["grade"], judge=label["grade"], label_mass=label["label_mass"])
        slices = gathered.setdefault(row["dimension"], {EVERY_SLICE: []})
        slices[EVERY_SLICE].append(both)
        if row["slice"] != EVERY_SLICE:
            slices.setdefault(row["slice"], []).append(both)
    return {
        dimension: {EVERY_SLICE: slices.pop(EVERY_SLICE), **dict(sorted(slices.items()))}
        for dimension, slices in gathered.items()
    }


def _judged(labels: pa.Table) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["pair_id"], row["dimension"]): row for row in labels.to_pylist()}


def _cell(dimension: str, slice_: str, rows: Sequence[_Row], *, num_bootstrap: int, seed: int) -> Cell:
    by_query = _counts_by_query(rows)
    counts = by_query.sum(axis=0)
    drawn = _draws(len(by_query), num_bootstrap, seed) @ by_query.reshape(len(by_query), -1)
    resampled = drawn.reshape(num_bootstrap, NUM_GRADES, NUM_GRADES)
    kappas = {
        name: _interval(kappa_of(counts, cost), kappa_of(resampled, cost), num_groups=len(by_query))
        for name, cost in zip(_KAPPAS, (_APART, _APART**2, _ACROSS), strict=True)
    }
    return Cell(
        dimension=dimension,
        slice=slice_,
        num=len(rows),
        **kappas,
        exact=float(counts[_APART == 0].sum()) / len(rows),
        within_one=float(counts[_APART <= 1].sum()) / len(rows),
        leniency=float((counts * _SIGNED).sum()) / len(rows),
        label_mass=float(np.mean([row.label_mass for row in rows])),
        confusion=tuple(tuple(int(count) for count in line) for line in counts),
    )


def _counts_by_query(rows: Sequence[_Row]) -> Floats:
    """(Q, G, G) counts, golden down, queries in the order in which they come."""
    places: dict[str, int] = {}
    for row in rows:
        places.setdefault(row.query_id, len(places))
    counts = np.zeros((len(places), NUM_GRADES, NUM_GRADES))
    np.add.at(counts, ([places[row.query_id] for row in rows], [r.golden for r in rows], [r.judge for r in rows]), 1)
    return counts


@lru_cache(maxsize=32)
def _draws(num_queries: int, num_bootstrap: int, seed: int) -> Floats:
    """(B, Q): how often each query is in each resample; the draws of `evaluation.metrics.bootstrap` for this seed."""
    picks: Ints = np.random.default_rng(seed).integers(num_queries, size=(num_bootstrap, num_queries))
    flat = picks + np.arange(num_bootstrap)[:, None] * num_queries
    counted = np.bincount(flat.ravel(), minlength=num_bootstrap * num_queries)
    return counted.reshape(num_bootstrap, num_queries).astype(np.float64)


def _interval(value: Floats, resampled: Floats, *, num_groups: int) -> Interval:
    defined = resampled[~np.isnan(resampled)]
    low, high = np.percentile(defined, (2.5, 97.5)) if len(defined) else (np.nan, np.nan)
    return Interval(value=float(value), low=float(low), high=float(high), num_groups=num_groups)


def cells_to_json(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """`cells` as plain JSON types, for a record's metrics; what is undefined is null."""
    return [
        {
            **asdict(cell),
            **{name: _defined(asdict(getattr(cell, name))) for name in _KAPPAS},
            "confusion": [list(line) for line in cell.confusion],
        }
        for cell in cells
    ]


def cells_of_json(content: Iterable[Mapping[str, Any]]) -> tuple[Cell, ...]:
    """The cells that `content`, made by `cells_to_json`, stands for."""
    return tuple(
        Cell(
            **{
                **row,
                **{name: _interval_of(row[name]) for name in _KAPPAS},
                "confusion": tuple(tuple(line) for line in row["confusion"]),
            }
        )
        for row in content
    )


def _interval_of(content: Mapping[str, Any]) -> Interval:
    value, low, high = (math.nan if content[end] is None else content[end] for end in ("value", "low", "high"))
    return Interval(value=value, low=low, high=high, num_groups=content["num_groups"])


def _defined(interval: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in interval.items()}
