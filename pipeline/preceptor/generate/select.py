"""Which documents of a query's pool are worth labelling: strata by predicted grade, and hard negatives.

A predicted grade is a guess from similarity, made to spread the labels over all grades; nobody judged it. Similarities
are put on a scale where 0 is the mean over random documents and 1 the median best match of the query's style.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from preceptor.generate.texts import Indices, Vectors

STEPS: Final = (0.3, 0.5, 0.7, 0.85)
"""Where predicted grades 1, 2, 3 and 4 begin on the scale."""

SOURCE: Final = "source"
STRATUM: Final = "stratum"
FILLED: Final = "filled"
OTHER_PLACE: Final = "hard: other place"
OTHER_TITLE: Final = "hard: other title"
HIGH_RANK: Final = "hard: rank 10 to 50"
HARD: Final = (OTHER_PLACE, OTHER_TITLE, HIGH_RANK)
HARD_RANKS: Final = 50
"""Hard negatives are looked for among so many of the most similar documents."""
_FIRST_HIGH_RANK: Final = 10
_ANYWHERE: Final = {"remote", "anywhere", "home", "nationwide", "worldwide"}
_LEVEL: Final = re.compile(
    r"senior|junior|lead|head|chief|principal|trainee|apprentice|graduate|assistant|deputy|manager|officer|specialist"
    r"|worker|and|of|the|in|for|i+|&"
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Similarities of one query style: the mean to random documents, the median best match."""

    low: float
    high: float

    def predicted(self, similarities: Vectors) -> npt.NDArray[np.int64]:
        """The predicted grade of each similarity, 0 to 4."""
        return np.digitize((similarities - self.low) / max(self.high - self.low, 1e-6), STEPS)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """One query's documents, each once: their indices, similarities, predicted grades, and ranks, counted from 1, or 0
    for those that came by chance and not by search. `kinds` are reasons why the search's first are hard negatives."""

    documents: Indices
    similarities: Vectors
    grades: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int64]
    kinds: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A chosen document: its place in the pool and what it was chosen as."""

    place: int
    kind: str


def choose(
    pool: Pool, *, num: int, strata: Mapping[int, float], hard_share: float, source: int | None, rng: random.Random
) -> list[Choice]:
    """At most `num` documents of `pool`, none twice, by falling similarity.

    The document the query was born from, at `source` in the pool, comes along and counts for its stratum. A stratum
    that has too few gives its places to the nearest that has more; those are called ``filled``.
    """
    taken: dict[int, str] = {} if source is None else {source: SOURCE}
    num_hard = round_by_chance(num * hard_share, rng)
    for place in hard_negatives(pool, num=num_hard, without=set(taken), rng=rng):
        taken[place] = pool.kinds.get(place, HIGH_RANK)
    quotas = share_out(num - num_hard, strata, rng)
    if source is not None:
        grade = int(pool.grades[source])
        spent = grade if quotas.get(grade) else max((g for g in quotas if quotas[g]), default=grade)
        quotas[spent] = max(0, quotas.get(spent, 0) - 1)
    left = {grade: _shuffled(np.flatnonzero(pool.grades == grade), taken, rng) for grade in range(len(STEPS) + 1)}
    short: list[int] = []
    for grade, quota in quotas.items():
        found, left[grade] = left[grade][:quota], left[grade][quota:]
        taken.update(dict.fromkeys(found, STRATUM))
        short += [grade] * (quota - len(found))
    for grade in short:
        nearest = min(
            (other for other in left if left[other]), key=lambda other: (abs(other - grade), other), default=None
        )
        if nearest is not None:
            taken[left[nearest].pop(0)] = FILLED
    order = sorted(taken, key=lambda place: (-float(pool.similarities[place]), int(pool.documents[place])))
    return [Choice(place=place, kind=taken[place]) for place in order]


def share_out(num: int, shares: Mapping[int, float], rng: random.Random) -> dict[int, int]:
    """`num` places over `shares`, whole; what does not divide falls by chance: shares hold over many queries."""
    exact = {key: num * share for key, share in shares.items()}
    counts = {key: int(value) for key, value in exact.items()}
    # Efraimidis and Spirakis (2006): the largest u^(1/weight) are a weighted sample without replacement.
    keys = {key: rng.random() ** (1 / max(exact[key] - counts[key], 1e-9)) for key in exact}
    for key in sorted(keys, key=lambda key: -keys[key])[: num - sum(counts.values())]:
        counts[key] += 1
    return counts


def round_by_chance(value: float, rng: random.Random) -> int:
    """`value` rounded up or down so that its mean over many draws is `value`."""
    return int(value) + (rng.random() < value - int(value))


def hard_negatives(pool: Pool, *, num: int, without: set[int], rng: random.Random) -> list[int]:
    """Places of `num` documents that search ranks high and that differ in what was asked, or rank 10 to 50 at least."""
    differ = [place for place in pool.kinds if place not in without]
    high = np.flatnonzero((pool.ranks >= _FIRST_HIGH_RANK) & (pool.ranks <= HARD_RANKS)).tolist()
    others = [place for place in high if place not in without and place not in pool.kinds]
    return [*rng.sample(differ, min(num, len(differ))), *rng.sample(others, len(others))][:num]


def kind_of_difference(asked_title: str, asked_place: str, title: str, place: str) -> str | None:
    """Why a similar document is not what was asked: another place, another title; None where fields do not say so.

    All four are as they are typed, and empty where not known. Titles differ where they share no word that says what the
    work is; a posting for any place is in no other place.
    """
    if asked_place and place and place not in _ANYWHERE and asked_place not in place and place not in asked_place:
        return OTHER_PLACE
    asked, offered = _work_words(asked_title), _work_words(title)
    return OTHER_TITLE if asked and offered and not asked & offered else None


def _work_words(title: str) -> set[str]:
    return {word for word in title.split() if not _LEVEL.fullmatch(word)}


def _shuffled(places: npt.NDArray[np.int64], taken: Mapping[int, str], rng: random.Random) -> list[int]:
    found = [place for place in places.tolist() if place not in taken]
    rng.shuffle(found)
    return found


def scale_of(best: Sequence[float], chance: Sequence[float]) -> Scale:
    """The scale on which a style's best matches are 1 and chance is 0."""
    return Scale(low=float(np.mean(chance)), high=float(np.median(best)))
