"""What the tests of labelling share: a small corpus whose constructed truth a fake judge knows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from preceptor.contracts import (
    OVERALL,
    make_pair,
)
from preceptor.judge import FakeJudge, Judge, Reply, calibrate
from preceptor.judge.replies import TIMEOUT, rejected
from preceptor.policy import load_policy
from preceptor.recipe import POLICY_DIR, JudgeConfig
from preceptor.record import Record

POLICY = load_policy(POLICY_DIR)
NUM_ASKED = len(POLICY.rubric.names)
"""Rows of a pair that a judge is asked for; the overall grade is one more."""


def pool(num: int, *, per_query: int = 4, split: str = "train") -> list[dict[str, Any]]:
    return [
        make_pair(f"{split} query {n // per_query}", "a welder", f"posting {n}", slice="s", split=split)
        for n in range(num)
    ]


def truth_of(pair_id: str) -> dict[str, int]:
    grades = {name: FakeJudge(dimensions=(), judge_id="t").answer(pair_id, name) for name in POLICY.rubric.names}
    chosen = {name: int(np.argmax(reply.probs or ())) for name, reply in grades.items()}
    return {**chosen, OVERALL: POLICY.rubric.aggregate(chosen)}


def judge_config(**changes: Any) -> JudgeConfig:
    defaults = {"floor": 0.6, "max_reject_share": 0.5, "num_calibration_pairs": 30}
    return JudgeConfig(kind="fake", model="m", **{**defaults, **changes})


GOOD_FAKE = FakeJudge(dimensions=POLICY.rubric.names, judge_id="good")


def contrarian() -> FakeJudge:
    pairs = pool(40, split="calibration")
    known = {(pair["pair_id"], name): 4 - truth_of(pair["pair_id"])[name] for pair in pairs for name in ("role", "pay")}
    return replace(GOOD_FAKE, judge_id="contrarian", known=known)


def calibrated(corpus: Record, tmp_path: Path, judge: Judge, **changes: Any) -> Record:
    out = tmp_path / "calibrate" / judge.judge_id
    return calibrate(judge_config(**changes), policy=POLICY_DIR, corpus=corpus, judge=judge, out=out)


@dataclass(frozen=True, kw_only=True)
class Counting(FakeJudge):
    """A judge that remembers what it was asked."""

    asked: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, pair_id: str, dimension: str) -> Reply:
        self.asked.append((pair_id, dimension))
        return super().answer(pair_id, dimension)


@dataclass(frozen=True, kw_only=True)
class Flaky(FakeJudge):
    """A judge that times out on each row for its first `num_faults` tries."""

    num_faults: int
    tries: Counter[tuple[str, str]] = field(default_factory=Counter)

    def answer(self, pair_id: str, dimension: str) -> Reply:
        self.tries[pair_id, dimension] += 1
        if self.tries[pair_id, dimension] <= self.num_faults:
            return rejected(pair_id, dimension, TIMEOUT)
        return super().answer(pair_id, dimension)
