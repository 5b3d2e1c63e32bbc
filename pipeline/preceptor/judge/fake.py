"""A judge without a model, for tests, benchmarks and trying a pipeline: the same pair always gets the same grade."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa

from preceptor.contracts import NUM_GRADES, content_id
from preceptor.judge.replies import NO_GRADE, Answers, Reply, Workers, asked_of, graded, rejected
from preceptor.policy import ANSWER, Policy, prompt_hash

_CONFIDENCE: Final = 0.8
_LABEL_MASS: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class FakeJudge:
    """Grades by content hash, or from `known` grades by (pair_id, dimension); pairs in `poison` get prose for a reply.

    Of the `known` grades, it gives the share `slips` one off, chosen by hash. With a `policy` all that is chosen by
    hash depends on the wording too: where an anchor changes, other grades of its dimension slip. `poison_share` poisons
    that share of all other pairs, also by hash. With `workers` it answers in Ray actors, as an engine does; a block
    takes `latency_s` seconds. A pair in `deadly` kills the process that asks about it. What is asked goes to the file
    `log`, a line of pair ids for each block.
    """

    dimensions: tuple[str, ...]
    judge_id: str = "fake"
    known: Mapping[tuple[str, str], int] = field(default_factory=dict)
    slips: float = 0.0
    policy: Policy | None = None
    poison: frozenset[str] = frozenset()
    poison_share: float = 0.0
    heads: tuple[str, ...] = ()
    asking: str = ANSWER
    workers: Workers | None = None
    latency_s: float = 0.0
    deadly: frozenset[str] = frozenset()
    log: Path | None = None

    def open(self) -> FakeJudge:
        """Itself: there is nothing to start."""
        return self

    async def grade(self, pairs: pa.Table) -> Answers:
        """Answers in the order of `pairs`."""
        rows = pairs.to_pylist()
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(" ".join(pair["pair_id"] for pair in rows) + "\n")
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        if any(pair["pair_id"] in self.deadly for pair in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        asked = [(pair["pair_id"], name) for pair in rows for name in asked_of(pair, self.dimensions)]
        return Answers(replies=tuple(self.answer(pair_id, name) for pair_id, name in asked))

    def answer(self, pair_id: str, dimension: str) -> Reply:
        """The reply for one pair and dimension; always the same."""
        if pair_id in self.poison or _unit(pair_id, "poison") < self.poison_share:
            return rejected(pair_id, dimension, NO_GRADE, raw="As a fake judge I would rather not say.")
        grade = self.known.get((pair_id, dimension))
        wording = () if self.policy is None else (prompt_hash(self.policy, dimension, asking=self.asking),)
        if grade is None:
            grade = int(_unit(pair_id, dimension, *wording) * NUM_GRADES)
        elif _unit("slip", pair_id, dimension, *wording) < self.slips:
            grade += 1 if grade == 0 or (grade < NUM_GRADES - 1 and _unit("way", pair_id, dimension) < 0.5) else -1
        spread = (1 - _CONFIDENCE) / (NUM_GRADES - 1)
        masses = [_LABEL_MASS * (_CONFIDENCE if each == grade else spread) for each in range(NUM_GRADES)]
        return graded(pair_id, dimension, masses)


def _unit(*parts: str) -> float:
    return int(content_id("fake", *parts), 16) / 2**64
