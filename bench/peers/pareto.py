"""Two figures of which more is better: which points no other beats, and how much they reach together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from preceptor.evaluation.metrics import ndcg_at

Point = tuple[float, float]


def dominates(one: Point, other: Point) -> bool:
    """Whether `one` is at least as good in both figures and better in one."""
    return one[0] >= other[0] and one[1] >= other[1] and one != other


def front(points: Mapping[str, Point]) -> list[str]:
    """The names of the points that no other dominates, by rising first figure."""
    kept = [name for name, point in points.items() if not any(dominates(other, point) for other in points.values())]
    return sorted(kept, key=lambda name: points[name])


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """The area between `reference` and what `points` reach: of all that at least one of them beats in both figures.

    What does not beat the reference adds nothing. Source: Zitzler and Thiele, "Multiobjective evolutionary algorithms:
    a comparative case study and the strength Pareto approach" (1999).
    """
    area, reached = 0.0, reference[1]
    for x, y in sorted(points, reverse=True):
        if x > reference[0] and y > reached:
            area += (x - reference[0]) * (y - reached)
            reached = y
    return area


def widest(points: Mapping[str, Point], reference: Point) -> str:
    """The name of the point whose own hypervolume is the greatest: a compromise that weighs neither figure."""
    return max(points, key=lambda name: hypervolume([points[name]], reference))


def random_ndcg(lists: Iterable[Sequence[int]]) -> float:
    """Expected mean NDCG@10 of a random order of each list of grades; lists without a positive grade do not count.

    Over the rotations of an order each document stands once at every rank, so their mean is that of all orders.
    """
    found = [
        np.mean([ndcg_at(grades, np.roll(np.arange(len(grades)), turn)) for turn in range(len(grades))])
        for grades in lists
        if max(grades) > 0
    ]
    return float(np.mean(found)) if found else float("nan")
