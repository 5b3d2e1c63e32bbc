"""A judge without a model, for tests and for trying a pipeline: the same pair always gets the same grade."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from preceptor.contracts import NUM_GRADES, content_id
from preceptor.judge.replies import NO_GRADE, Answers, Reply, Workers, asked_of, graded, rejected

_CONFIDENCE: Final = 0.8
_LABEL_MASS: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class FakeJudge:
    """Grades by content hash, or from `known` grades by (pair_id, dimension); pairs in `poison` get prose for a reply.

    `poison_share` poisons that share of all other pairs, also by hash.
    """

    dimensions: tuple[str, ...]
    judge_id: str = "fake"
    known: Mapping[tuple[str, str], int] = field(default_factory=dict)
    poison: frozenset[str] = frozenset()
    poison_share: float = 0.0
    heads: tuple[str, ...] = ()

    @property
    def workers(self) -> Workers | None:
        """None: it answers at once, in the process that asks."""
        return None

    def open(self) -> FakeJudge:
        """Itself: there is nothing to start."""
        return self

    async def grade(self, pairs: pa.Table) -> Answers:
        """Answers in the order of `pairs`."""
        asked = [(pair["pair_id"], name) for pair in pairs.to_pylist() for name in asked_of(pair, self.dimensions)]
        return Answers(replies=tuple(self.answer(pair_id, name) for pair_id, name in asked))

    def answer(self, pair_id: str, dimension: str) -> Reply:
        """The reply for one pair and dimension; always the same."""
        if pair_id in self.poison or _unit(pair_id, "poison") < self.poison_share:
            return rejected(pair_id, dimension, NO_GRADE, raw="As a fake judge I would rather not say.")
        grade = self.known.get((pair_id, dimension))
        if grade is None:
            grade = int(_unit(pair_id, dimension) * NUM_GRADES)
        spread = (1 - _CONFIDENCE) / (NUM_GRADES - 1)
        masses = [_LABEL_MASS * (_CONFIDENCE if each == grade else spread) for each in range(NUM_GRADES)]
        return graded(pair_id, dimension, masses)


def _unit(*parts: str) -> float:
    return int(content_id("fake", *parts), 16) / 2**64
