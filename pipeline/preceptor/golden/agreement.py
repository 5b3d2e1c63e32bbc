"""How far graders agree with one another, how they grade pairs whose grades are known, and the bar before "golden".

The bar is 0.80 of linear weighted kappa. LinkedIn calls a label golden once two product managers agree at a weighted
kappa of 0.8, and publishes its judge's agreement as linear kappa. Quadratic kappa would let too much through: with
grades spread evenly and every second pair one grade apart it is still 0.875, where linear kappa is 0.69. Overall, the
lower end of the 95 % interval must reach the bar, so that a lucky handful of pairs does not; each dimension must reach
it as measured, for its grades are golden rows of their own.

Kappa is taken over both orders of each two graders (neither is the truth, and names decide nothing), on first answers,
before anything is settled. Vigilance items are left out. Q queries, G = 5 grades.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from preceptor.contracts import NUM_GRADES, OVERALL
from preceptor.evaluation.metrics import Floats, Interval, kappa_of
from preceptor.golden.draft import Draft, Graded
from preceptor.golden.rounds import Task

KAPPA_FLOOR: Final = 0.80
VIGILANCE_BAR: Final = 0.70
"""The share of a grader's vigilance grades that must equal the known ones."""

EVERY_SLICE: Final = "all"

_NUM_BOOTSTRAP: Final = 1000
_SEED: Final = 17
_APART: Final = np.abs(np.arange(NUM_GRADES)[:, None] - np.arange(NUM_GRADES)[None, :])


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Agreement on one dimension in one slice over `num_pairs` doubly graded pairs; `exact` is the share of equal
    grades. Kappas are NaN where all grades are one and the same, for then agreement shows nothing."""

    dimension: str
    slice: str
    num_pairs: int
    linear: Interval
    quadratic: Interval
    exact: float


@dataclass(frozen=True, kw_only=True)
class Twosome:
    """Two graders on the pairs both graded: linear kappa of the overall grade, and the second's mean minus the
    first's over all dimensions."""

    graders: tuple[str, str]
    num_pairs: int
    linear: float
    leniency: float


@dataclass(frozen=True, kw_only=True)
class Vigilance:
    """How one grader graded known pairs: the shares of `num_grades` that are right and within one grade."""

    grader: str
    num_grades: int
    right: float
    within_one: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Everything a draft says of its graders. `cells` has 'overall' first, and of each dimension all slices first."""

    cells: tuple[Cell, ...]
    twosomes: tuple[Twosome, ...]
    vigilance: tuple[Vigilance, ...]

    def cell(self, dimension: str) -> Cell | None:
        """The dimension's cell over all slices, where any pair was graded twice."""
        return next((cell for cell in self.cells if (cell.dimension, cell.slice) == (dimension, EVERY_SLICE)), None)


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """A kappa that misses the bar. `value` is what counts: for 'overall' the lower end, else the estimate."""

    dimension: str
    value: float

    @property
    def short_by(self) -> float:
        """What lacks to the bar; all of it where kappa is undefined."""
        return KAPPA_FLOOR - (self.value if math.isfinite(self.value) else 0.0)


def agreement_of(draft: Draft) -> Agreement:
    """The agreement of the draft's graders, from their answers alone."""
    double = list(_double(draft))
    dimensions = (OVERALL, *draft.dimensions)
    slices = (EVERY_SLICE, *sorted({task.pair["slice"] for task, _ in double} - {EVERY_SLICE}))
    cells = [
        _cell(dimension, slice_, [item for item in double if slice_ in (EVERY_SLICE, item[0].pair["slice"])])
        for dimension in dimensions
        for slice_ in (slices if double else ())
    ]
    return Agreement(cells=tuple(cells), twosomes=tuple(_twosomes(double)), vigilance=tuple(_vigilance(draft)))


def shortfalls(agreement: Agreement, dimensions: Sequence[str]) -> tuple[Shortfall, ...]:
    """What misses the bar, 'overall' first and then the worst dimension first; nothing where all may be golden."""
    overall = agreement.cell(OVERALL)
    low = Shortfall(dimension=OVERALL, value=overall.linear.low if overall else math.nan)
    found = [
        Shortfall(dimension=name, value=cell.linear.value if (cell := agreement.cell(name)) else math.nan)
        for name in dimensions
    ]
    missed = sorted((one for one in found if one.short_by > 0), key=lambda one: (-one.short_by, one.dimension))
    return (*((low,) if low.short_by > 0 else ()), *missed)


def inattentive(agreement: Agreement, bar: float) -> tuple[Vigilance, ...]:
    """The graders under `bar` on vigilance items, worst first."""
    return tuple(sorted((one for one in agreement.vigilance if one.right < bar), key=lambda one: one.right))


def _double(draft: Draft) -> Iterator[tuple[Task, list[Graded]]]:
    """The tasks that two or more people graded, vigilance items aside."""
    answers = draft.by_task()
    for task in draft.tasks:
        if task.known is None and len(answers.get(task.id, ())) > 1:
            yield task, answers[task.id]


def _cell(dimension: str, slice_: str, items: Sequence[tuple[Task, list[Graded]]]) -> Cell:
    places: dict[str, int] = {}
    for task, _ in items:
        places.setdefault(task.pair["query_id"], len(places))
    by_query = np.zeros((len(places), NUM_GRADES, NUM_GRADES))
    for task, answers in items:
        for one, other in itertools.permutations([answer.grades[dimension] for answer in answers], 2):
            by_query[places[task.pair["query_id"]], one, other] += 1
    counts = by_query.sum(axis=0)
    return Cell(
        dimension=dimension,
        slice=slice_,
        num_pairs=len(items),
        linear=_interval(by_query, _APART),
        quadratic=_interval(by_query, _APART**2),
        exact=float(np.trace(counts) / counts.sum()),
    )


def _interval(by_query: Floats, cost: Floats) -> Interval:
    """Kappa of the summed (Q, G, G) counts, with its 95 % interval over resamples of whole queries.

    The draws are those of `evaluation.metrics.bootstrap`; one matrix product gives the counts of all of them.
    """
    num = len(by_query)
    picks = np.random.default_rng(_SEED).integers(num, size=(_NUM_BOOTSTRAP, num))
    flat = (picks + np.arange(_NUM_BOOTSTRAP)[:, None] * num).ravel()
    times = np.bincount(flat, minlength=_NUM_BOOTSTRAP * num).reshape(_NUM_BOOTSTRAP, num)
    resampled = kappa_of((times @ by_query.reshape(num, -1)).reshape(-1, NUM_GRADES, NUM_GRADES), cost)
    defined = resampled[~np.isnan(resampled)]
    low, high = np.percentile(defined, (2.5, 97.5)) if len(defined) else (np.nan, np.nan)
    value = float(kappa_of(by_query.sum(axis=0), cost))
    return Interval(value=value, low=float(low), high=float(high), num_groups=num)


def _twosomes(double: Iterable[tuple[Task, list[Graded]]]) -> Iterator[Twosome]:
    shared: dict[tuple[str, str], list[tuple[Graded, Graded]]] = {}
    for _, answers in double:
        ordered = sorted(answers, key=lambda answer: answer.grader)
        for one, other in itertools.combinations(ordered, 2):
            shared.setdefault((one.grader, other.grader), []).append((one, other))
    for graders, both in sorted(shared.items()):
        counts = np.zeros((NUM_GRADES, NUM_GRADES))
        for one, other in both:
            counts[one.grades[OVERALL], other.grades[OVERALL]] += 1
        apart = [
            other.grades[name] - grade for one, other in both for name, grade in one.grades.items() if name != OVERALL
        ]
        yield Twosome(
            graders=graders,
            num_pairs=len(both),
            linear=float(kappa_of(counts + counts.T, _APART)),
            leniency=float(np.mean(apart)),
        )


def _vigilance(draft: Draft) -> Iterator[Vigilance]:
    known: Mapping[str, Mapping[str, int]] = {task.id: task.known for task in draft.tasks if task.known is not None}
    apart: dict[str, list[int]] = {}
    for answer in draft.graded:
        for name in draft.dimensions if answer.task in known else ():
            apart.setdefault(answer.grader, []).append(abs(answer.grades[name] - known[answer.task][name]))
    for grader, distances in sorted(apart.items()):
        steps = np.array(distances)
        yield Vigilance(
            grader=grader,
            num_grades=len(steps),
            right=float((steps == 0).mean()),
            within_one=float((steps <= 1).mean()),
        )
