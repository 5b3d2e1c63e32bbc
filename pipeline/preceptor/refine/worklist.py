"""Disagreements of golden and the judge as a worklist: the policy is unclear, the label is wrong, or the judge is.

The first rule that applies decides; each says what it saw.

1. Graders gave the pair different grades on the dimension: **policy unclear**.
2. The judge is sure, and errs in this direction on at least 3 in 10 of the slice's other pairs and twice as often as
   elsewhere, or on 4 in 10 of the nearest pairs and twice as often as on all: **judge wrong**.
3. The judge wavers (golden's grade is at least half as probable as its own, or it answered otherwise when asked again),
   or it and golden mix up the same two neighbouring grades in both directions, each on at least 1 in 10 of the pairs
   with either: **policy unclear**.
4. The judge is as sure as on nine in ten of the pairs that it gave this grade and golden agrees on, and of the nearest
   pairs that it gave this grade golden agrees on at least 8 in 10: a lone grade, which its neighbours contradict.
   **Label wrong**.
5. Otherwise: **judge wrong**.

An overall grade that golden's own grades do not aggregate to is a wrong label; other differences in overall are left
out where a dimension of the pair differs, which explains them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from preceptor.contracts import OVERALL
from preceptor.judge.agreement import Disagreement, disagreements
from preceptor.policy import Rubric
from preceptor.refine.neighbours import Embed, Vectors, groups_of, similarities, terms_of

NUM_NEIGHBOURS: Final = 10
MIN_OTHERS: Final = 4
"""A share of fewer pairs than this is no evidence."""

WAVERING: Final = 0.5
SLICE_SHARE: Final = 0.3
NEAR_SHARE: Final = 0.4
LIFT: Final = 2.0
MIXED_SHARE: Final = 0.1
BACKED_SHARE: Final = 0.8
SURE_SHARE: Final = 0.1


class Cause(StrEnum):
    """What a disagreement is put down to, in the order in which it is worked off."""

    POLICY = "policy unclear"
    LABEL = "label wrong"
    JUDGE = "judge wrong"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A disagreement, what it is put down to, and what was seen; `group` gathers those that are alike."""

    disagreement: Disagreement
    cause: Cause
    evidence: tuple[str, ...]
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class _Dimension:
    """All N grades of one dimension that golden and the judge both gave, as arrays of shape (N,).

    `numbers` are the pairs' row numbers in `alike`, the similarities of all pairs.
    """

    numbers: npt.NDArray[np.int64]
    slices: npt.NDArray[np.str_]
    golden: npt.NDArray[np.int64]
    judge: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    alike: Vectors

    @cached_property
    def direction(self) -> npt.NDArray[np.int64]:
        """1 where the judge is above golden, -1 where below, 0 where they agree."""
        return np.sign(self.judge - self.golden)

    def nearest(self, number: int, among: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """The places of those `among` all that are nearest to pair `number`, at most `NUM_NEIGHBOURS`."""
        places = np.flatnonzero(among)
        order = np.argsort(-self.alike[number, self.numbers[places]], kind="stable")
        return places[order[:NUM_NEIGHBOURS]]

    def share(self, places: npt.NDArray[Any], direction: int) -> float:
        """How many of those at `places` the judge errs on in `direction`."""
        found = self.direction[places]
        return float((found == direction).mean()) if len(found) else 0.0


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What else was seen of rows: (pair_id, dimension) to the grades of graders, and to the judge's second answer."""

    graders: Mapping[tuple[str, str], frozenset[int]]
    again: Mapping[tuple[str, str], int]


def worklist(
    golden: pa.Table,
    labels: pa.Table,
    rubric: Rubric,
    *,
    embed: Embed,
    again: pa.Table | None = None,
    gradings: pa.Table | None = None,
    seed: int = 17,
) -> tuple[Task, ...]:
    """A task for each disagreement of `golden` (GOLDEN) and one judge's `labels` (LABELS), by cause and then by group.

    `again` are LABELS of the same judge asked a second time; `gradings` a GOLDEN table with a row for each grader.
    Within a cause the largest group stands first, in it the largest distance.
    """
    seen = _Seen(graders=_by_grader(gradings), again=_grades(again))
    found = [one for one in disagreements(golden, labels) if one.dimension != OVERALL]
    dimensions, number_of, vectors = _dimensions(golden, labels, embed)
    tasks = [_task(one, dimensions[one.dimension], number_of, seen) for one in found]
    tasks += _overall_tasks(golden, labels, rubric, {one.pair["pair_id"] for one in found})
    grouped = _grouped(tasks, vectors, number_of, seed=seed)
    sizes = Counter((task.cause, task.group) for task in grouped)
    order = list(Cause)
    return tuple(
        sorted(
            grouped,
            key=lambda task: (
                order.index(task.cause),
                -sizes[task.cause, task.group],
                task.group,
                -task.disagreement.distance,
                -task.disagreement.confidence,
                task.disagreement.pair["pair_id"],
            ),
        )
    )


def text_of(pair: Mapping[str, str]) -> str:
    """What makes two pairs alike."""
    return f"{pair['query']}. {pair['profile']} {pair['document']}"


def _task(one: Disagreement, dimension: _Dimension, number_of: Mapping[str, int], seen: _Seen) -> Task:
    number, key = number_of[one.pair["pair_id"]], (one.pair["pair_id"], one.dimension)
    wavers = list(_wavering(one, seen.again.get(key)))
    said = (
        f"judge {one.judge_grade} ({one.confidence:.0%}), golden {one.golden_grade} ({one.probs[one.golden_grade]:.0%})"
    )
    if len(grades := seen.graders.get(key, frozenset())) > 1:
        return _put(one, Cause.POLICY, said, f"graders gave {', '.join(map(str, sorted(grades)))}")
    systematic = [] if wavers else list(_systematic(one, number, dimension))
    if systematic:
        return _put(one, Cause.JUDGE, said, *systematic)
    unclear = [*wavers, *_mixed_up(one, dimension)]
    if unclear:
        return _put(one, Cause.POLICY, said, *unclear)
    is_alone, what = _alone(one, number, dimension)
    return _put(one, Cause.LABEL if is_alone else Cause.JUDGE, said, what)


def _put(one: Disagreement, cause: Cause, *evidence: str) -> Task:
    return Task(disagreement=one, cause=cause, evidence=evidence)


def _wavering(one: Disagreement, again: int | None) -> Iterator[str]:
    if one.probs[one.golden_grade] >= WAVERING * one.confidence:
        yield "the judge finds golden's grade at least half as probable as its own"
    if again is not None and again != one.judge_grade:
        yield f"asked again, the judge said {again}"


def _systematic(one: Disagreement, number: int, dimension: _Dimension) -> Iterator[str]:
    """How often the judge errs in this direction around the pair, where that is often."""
    direction = 1 if one.judge_grade > one.golden_grade else -1
    way, others = ("high" if direction > 0 else "low"), dimension.numbers != number
    inside = others & (dimension.slices == one.pair["slice"])
    outside = others & ~inside
    here, there, num = dimension.share(inside, direction), dimension.share(outside, direction), int(inside.sum())
    if num >= MIN_OTHERS and here >= SLICE_SHARE and here >= LIFT * there:
        yield f"judge too {way} on {here:.0%} of {num} others in slice {one.pair['slice']}, elsewhere on {there:.0%}"
    near, everywhere = dimension.nearest(number, others), dimension.share(others, direction)
    around = dimension.share(near, direction)
    if len(near) >= MIN_OTHERS and around >= NEAR_SHARE and around >= LIFT * everywhere:
        yield f"judge too {way} on {around:.0%} of the {len(near)} nearest pairs, on {everywhere:.0%} of all"


def _mixed_up(one: Disagreement, dimension: _Dimension) -> Iterator[str]:
    """Whether golden and the judge confuse these two grades in both directions."""
    low, high = sorted((one.golden_grade, one.judge_grade))
    if high - low > 1:
        return
    golden, judge = dimension.golden, dimension.judge
    one_way, other_way = int(((golden == low) & (judge == high)).sum()), int(((golden == high) & (judge == low)).sum())
    num = int((np.isin(golden, (low, high)) | np.isin(judge, (low, high))).sum())
    if min(one_way, other_way) >= max(MIXED_SHARE * num, 2):
        yield f"grades {low} and {high} are mixed up in both directions, {one_way} and {other_way} times on {num} pairs"


def _alone(one: Disagreement, number: int, dimension: _Dimension) -> tuple[bool, str]:
    """Whether golden's grade stands alone against a judge that is sure, and what was seen."""
    same = (dimension.numbers != number) & (dimension.judge == one.judge_grade)
    near, agreed = dimension.nearest(number, same), same & (dimension.direction == 0)
    backed = int((dimension.direction[near] == 0).sum())
    usual = float(np.quantile(dimension.confidence[agreed], SURE_SHARE)) if agreed.any() else 1.0
    is_sure = one.confidence >= usual
    what = (
        f"golden agrees with {backed} of the {len(near)} nearest pairs that the judge graded {one.judge_grade}; where "
        f"it agrees the judge is {usual:.0%} sure or more on nine in ten"
    )
    return is_sure and len(near) >= MIN_OTHERS and backed >= BACKED_SHARE * len(near), what


def _overall_tasks(golden: pa.Table, labels: pa.Table, rubric: Rubric, explained: set[str]) -> Iterator[Task]:
    by_pair: dict[str, dict[str, int]] = {}
    for row in golden.select(["pair_id", "dimension", "grade"]).to_pylist():
        by_pair.setdefault(row["pair_id"], {})[row["dimension"]] = row["grade"]
    for one in disagreements(golden, labels):
        grades = by_pair[one.pair["pair_id"]]
        if one.dimension != OVERALL:
            continue
        said = f"judge {one.judge_grade} ({one.confidence:.0%}), golden {one.golden_grade}"
        if set(rubric.names) <= grades.keys() and (derived := rubric.aggregate(grades)) != one.golden_grade:
            yield _put(one, Cause.LABEL, said, f"golden's own grades aggregate to {derived}")
        elif one.pair["pair_id"] not in explained:
            wavers = list(_wavering(one, None))
            yield _put(one, Cause.POLICY if wavers else Cause.JUDGE, said, *wavers, "no dimension of the pair differs")


def _dimensions(
    golden: pa.Table, labels: pa.Table, embed: Embed
) -> tuple[dict[str, _Dimension], dict[str, int], Vectors]:
    judged = {(row["pair_id"], row["dimension"]): row for row in labels.to_pylist()}
    rows = [row for row in golden.to_pylist() if (row["pair_id"], row["dimension"]) in judged]
    pairs = {row["pair_id"]: row for row in rows}
    number_of = {pair_id: number for number, pair_id in enumerate(pairs)}
    vectors = embed([text_of(pair) for pair in pairs.values()]) if pairs else np.empty((0, 1))
    alike = similarities(vectors)
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["dimension"], []).append(row)
    dimensions = {}
    for name, own in found.items():
        told = [judged[row["pair_id"], name] for row in own]
        dimensions[name] = _Dimension(
            numbers=np.array([number_of[row["pair_id"]] for row in own]),
            slices=np.array([row["slice"] for row in own]),
            golden=np.array([row["grade"] for row in own]),
            judge=np.array([label["grade"] for label in told]),
            confidence=np.array([label["probs"][label["grade"]] for label in told]),
            alike=alike,
        )
    return dimensions, number_of, vectors


def _grouped(tasks: Sequence[Task], vectors: Vectors, number_of: Mapping[str, int], *, seed: int) -> list[Task]:
    """`tasks` with the name of their group: cause, dimension and direction, and pairs that are alike."""
    gathered: dict[tuple[Any, ...], list[Task]] = {}
    for task in tasks:
        one = task.disagreement
        gathered.setdefault((task.cause, one.dimension, one.judge_grade > one.golden_grade), []).append(task)
    named = []
    for (_, dimension, is_high), own in gathered.items():
        pairs = [task.disagreement.pair for task in own]
        groups = groups_of(vectors[[number_of[pair["pair_id"]] for pair in pairs]], seed=seed)
        terms = terms_of([text_of(pair) for pair in pairs], groups)
        head = f"{dimension}, judge {'higher' if is_high else 'lower'}"
        named += [
            replace(task, group=f"{head}: {terms[group]}" if terms[group] else head)
            for task, group in zip(own, groups, strict=True)
        ]
    return named


def _grades(labels: pa.Table | None) -> dict[tuple[str, str], int]:
    rows = [] if labels is None else labels.select(["pair_id", "dimension", "grade"]).to_pylist()
    return {(row["pair_id"], row["dimension"]): row["grade"] for row in rows}


def _by_grader(gradings: pa.Table | None) -> dict[tuple[str, str], frozenset[int]]:
    rows = [] if gradings is None else gradings.select(["pair_id", "dimension", "grade"]).to_pylist()
    found: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        found.setdefault((row["pair_id"], row["dimension"]), set()).add(row["grade"])
    return {key: frozenset(grades) for key, grades in found.items()}
