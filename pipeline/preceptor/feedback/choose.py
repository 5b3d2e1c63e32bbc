"""Which of many pairs to label next: where heads disagree, what is unlike anything labelled, slices short of golden."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Kind = Literal["golden", "disagreement", "novelty"]

_ROWS: Final = 2048
"""Rows of a block of cosines: 2,048 x 100,000 of them are 1.6 GB."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidate at `index`, what it was chosen as, its place there from 1 on, and what decided."""

    index: int
    kind: Kind
    rank: int
    value: float


def disagreements(expected_grade: Floats, actions: Mapping[str, Floats]) -> tuple[Floats, list[str]]:
    """([num], names): how far apart the relevance head and an action head rank each pair, 0 to 1, and which action.

    Heads have scales of their own, so each is replaced by its percentile among the pairs; the action that differs most
    counts. A pair without a probability (NaN) does not count for that action.
    """
    relevance = percentiles(expected_grade)
    gaps = np.zeros(len(expected_grade))
    names = [""] * len(expected_grade)
    for action in sorted(actions):
        known = np.flatnonzero(~np.isnan(actions[action]))
        differ = np.abs(percentiles(actions[action][known]) - relevance[known])
        for index, gap in zip(known.tolist(), differ.tolist(), strict=True):
            if gap > gaps[index]:
                gaps[index], names[index] = gap, action
    return gaps, names


def percentiles(values: Floats) -> Floats:
    """The share of the other values below each, [num], 0 to 1; equal values share the middle of their places."""
    if len(values) < 2:
        return np.full(len(values), 0.5)
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, side="left")
    through = np.searchsorted(ordered, values, side="right")
    return (below + through - 1) / 2 / (len(values) - 1)


def nearest_known(vectors: Floats, known: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
    """([num], [num]): the greatest cosine of each row with a `known` one, and which; -1 and -1 where none is known."""
    best, index = np.full(len(vectors), -1.0), np.full(len(vectors), -1, dtype=np.int64)
    if len(known):
        for start in range(0, len(vectors), _ROWS):
            cosines = vectors[start : start + _ROWS] @ known.T
            found = cosines.argmax(axis=1)
            index[start : start + _ROWS] = found
            best[start : start + _ROWS] = cosines[np.arange(len(found)), found]
    return best, index


def choose(
    pairs: Sequence[Mapping[str, Any]],
    *,
    gaps: Floats,
    vectors: Floats,
    cosines: Floats,
    short: Mapping[str, int],
    budget: Mapping[Kind, int],
    max_per_query: int,
    seed: int,
) -> list[Choice]:
    """At most `budget` pairs of each kind, no pair twice, at most `max_per_query` of a query in all.

    `pairs` have query_id, slice and split; `gaps`, `vectors` and `cosines` (to the nearest labelled pair) are theirs.
    First golden: by chance within slices that are `short` of so many, in proportion to what they lack, since a test set
    chosen for its difficulty would measure difficulty. Then the greatest gaps. Then, one after another, what is
    farthest from everything labelled or chosen (k-center greedy: Sener and Savarese, ICLR 2018, algorithm 1). The
    last two are to train on, so they come from the train split alone.
    """
    order = list(range(len(pairs)))
    # Seeded, and before anything else: it decides among equals.
    random.Random(f"{seed} pick").shuffle(order)
    taken: Counter[str] = Counter()
    chosen: dict[int, Choice] = {}

    def take(index: int, kind: Kind, rank: int, value: float) -> bool:
        query_id = pairs[index]["query_id"]
        if kind != "golden" and pairs[index]["split"] != "train":
            return False
        if index in chosen or taken[query_id] >= max_per_query:
            return False
        taken[query_id] += 1
        chosen[index] = Choice(index=index, kind=kind, rank=rank, value=value)
        return True

    rank = 0
    for slice_, num in shares(short, budget["golden"], available=Counter(pair["slice"] for pair in pairs)).items():
        left = num
        for index in (index for index in order if pairs[index]["slice"] == slice_):
            if left and take(index, "golden", rank + 1, float(short[slice_])):
                rank, left = rank + 1, left - 1
    rank = 0
    for index in sorted(order, key=lambda index: -gaps[index]):
        if rank < budget["disagreement"] and gaps[index] > 0 and take(index, "disagreement", rank + 1, gaps[index]):
            rank += 1
    near = cosines.copy()
    for index in chosen:
        near = np.maximum(near, vectors @ vectors[index])
    open_ = np.array(order, dtype=np.int64)
    rank = 0
    while rank < budget["novelty"] and len(open_):
        index = int(open_[near[open_].argmin()])
        open_ = open_[open_ != index]
        if take(index, "novelty", rank + 1, float(1 - near[index])):
            rank += 1
            near = np.maximum(near, vectors @ vectors[index])
    return list(chosen.values())


def shares(short: Mapping[str, int], budget: int, *, available: Mapping[str, int]) -> dict[str, int]:
    """`budget` over slices in proportion to what each is `short` of, never more than that or than is `available`.

    One at a time to the slice whose share is farthest behind (the highest averages of D'Hondt), so that whole numbers
    add up and what one slice cannot take goes to the others.
    """
    room = {name: min(num, available.get(name, 0)) for name, num in sorted(short.items()) if num > 0}
    given = dict.fromkeys(room, 0)
    for _ in range(min(budget, sum(room.values()))):
        name = max(
            (name for name in room if given[name] < room[name]), key=lambda name: short[name] / (given[name] + 1)
        )
        given[name] += 1
    return given
