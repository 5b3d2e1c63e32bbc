"""A judge's agreement with itself: pairs it is asked again, and asked with the policy's dimensions in reverse order.

Both happen in the block that asks for the pair's label, in the same engine, so that no model is started for them. Their
answers are LABELS in the stage's folders ``again/`` and ``reordered/``; they are never labels of the stage. A row that
is taken over from an earlier version is not asked, and not asked again either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preceptor.contracts import GOLDEN, LABELS, content_id, read_table, rows_to_table, write_table
from preceptor.judge.agreement import EVERY_SLICE, agreement_table, cells_to_json
from preceptor.judge.fake import FakeJudge
from preceptor.judge.hosted import HostedJudge
from preceptor.judge.openai_judge import EndpointGrader, OpenAIJudge
from preceptor.judge.replies import ASK, Answers, Grader, Judge, Usage, Workers, label_rows
from preceptor.judge.vllm_judge import VllmGrader, VllmJudge
from preceptor.policy import Policy

AGAIN: Final = "again"
REORDERED: Final = "reordered"
MOST_PAIRS: Final = 20
"""So many pairs are asked again, at most half of those a judge is calibrated on."""


def sample_pairs(golden: pa.Table) -> frozenset[str]:
    """The ids of the pairs of `golden` to ask again: the first by a hash, `MOST_PAIRS` or half of all."""
    ids = sorted(set(golden.column("pair_id").to_pylist()), key=lambda pair_id: content_id("consistency", pair_id))
    return frozenset(ids[: max(1, min(MOST_PAIRS, len(ids) // 2))])


def reordered(judge: Judge, policy: Policy) -> Judge | None:
    """`judge` asked from `policy` with its dimensions in reverse order; None where no words are read, or not by us."""
    turned = replace(policy, rubric=replace(policy.rubric, dimensions=policy.rubric.dimensions[::-1]))
    if isinstance(judge, VllmJudge):
        return replace(judge, policy=turned, dimensions=judge.dimensions[::-1])
    if isinstance(judge, OpenAIJudge):
        return replace(judge, policy=turned, dimensions=judge.dimensions[::-1])
    if isinstance(judge, FakeJudge):
        return replace(judge, dimensions=judge.dimensions[::-1])
    return None


def examined(judge: Judge, policy: Policy, *, sample: frozenset[str], out: Path) -> Judge:
    """`judge`, which also answers twice about the pairs of `sample`, into the stage directory `out`.

    One that looks its answers up, in stored logits or in files, is returned as it is: it would repeat itself.
    """
    if not isinstance(judge, VllmJudge | OpenAIJudge | FakeJudge | HostedJudge):
        return judge
    return Examined(judge=judge, turned=reordered(judge, policy), policy_version=policy.version, sample=sample, out=out)


@dataclass(frozen=True, kw_only=True)
class Examined:
    """A judge that asks itself again about the pairs of `sample`; its replies are those of `judge`."""

    judge: Judge
    turned: Judge | None
    policy_version: str
    sample: frozenset[str]
    out: Path

    @property
    def judge_id(self) -> str:
        """That of the judge."""
        return self.judge.judge_id

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Those of the judge."""
        return self.judge.dimensions

    @property
    def heads(self) -> tuple[str, ...]:
        """Those of the judge."""
        return self.judge.heads

    @property
    def asking(self) -> str:
        """The judge's words."""
        return self.judge.asking

    @property
    def workers(self) -> Workers | None:
        """Those of the judge."""
        return self.judge.workers

    def open(self) -> ExaminedGrader:
        """The judge and its reordered self, with one engine or client between them."""
        first = self.judge.open()
        graders = {AGAIN: first}
        if self.turned is not None:
            graders[REORDERED] = _beside(first, self.turned)
        return ExaminedGrader(judge=self, first=first, graders=graders)


@dataclass(frozen=True, kw_only=True)
class ExaminedGrader:
    """The first grader gives the replies; `graders` then answer about the sample, each into its folder."""

    judge: Examined
    first: Grader
    graders: Mapping[str, Grader]

    async def grade(self, pairs: pa.Table) -> Answers:
        """The first grader's answers; the usage is that of all."""
        answers = await self.first.grade(pairs)
        sampled = pairs.filter(pc.is_in(pairs.column("pair_id"), value_set=pa.array(sorted(self.judge.sample))))
        usage: Usage = answers.usage
        if sampled.num_rows:
            for name, grader in self.graders.items():
                found = await grader.grade(sampled)
                usage += found.usage
                self._keep(name, sampled, found)
        return replace(answers, usage=usage)

    def _keep(self, name: str, asked: pa.Table, answers: Answers) -> None:
        labels, _ = label_rows(
            answers.replies,
            stage=name,
            judge_id=self.judge.judge_id,
            policy_version=self.judge.policy_version,
            prompt_hashes={},
        )
        # A block that is computed again writes the same file.
        columns = [column for column in ("pair_id", ASK) if column in asked.column_names]
        which = content_id(json.dumps(asked.select(columns).to_pylist()))
        write_table(rows_to_table(labels, LABELS), self.judge.out / name / f"part-{which}.parquet", LABELS)


def self_agreement(golden: pa.Table, labels: pa.Table, out: Path) -> dict[str, Any] | None:
    """How the judge's other answers in `out` agree with its `labels` of the pairs in `golden`; None without any.

    ``pair_ids`` is the sample. ``again`` and, where the judge reads the policy's words, ``reordered`` hold a cell for
    each dimension (`agreement_table`, the labels in golden's place), and ``prob_shift``, the mean and the largest
    total variation between the two distributions.
    """
    found: dict[str, Any] = {}
    pair_ids = set[str]()
    for name in (AGAIN, REORDERED):
        if not any((out / name).glob("*.parquet")):
            continue
        others = read_table(out / name, LABELS)
        pair_ids.update(others.column("pair_id").to_pylist())
        cells = agreement_table(_as_golden(golden, labels), others)
        whole = [cell for cell in cells if cell.slice == EVERY_SLICE]
        found[name] = {"cells": cells_to_json(whole), "prob_shift": _prob_shift(labels, others)}
    return {"pair_ids": sorted(pair_ids), **found} if found else None


def _beside(first: Grader, judge: Judge) -> Grader:
    if isinstance(first, VllmGrader) and isinstance(judge, VllmJudge):
        return first.reading(judge)
    if isinstance(first, EndpointGrader) and isinstance(judge, OpenAIJudge):
        return first.reading(judge)
    return judge.open()


def _as_golden(golden: pa.Table, labels: pa.Table) -> pa.Table:
    """`golden` with the labels' grades; rows without a label are left out."""
    grades = {(row["pair_id"], row["dimension"]): row["grade"] for row in labels.to_pylist()}
    rows = {(row["pair_id"], row["dimension"]): row for row in golden.to_pylist()}
    return rows_to_table(({**row, "grade": grades[key]} for key, row in rows.items() if key in grades), GOLDEN)


def _prob_shift(labels: pa.Table, others: pa.Table) -> dict[str, float]:
    probs = {(row["pair_id"], row["dimension"]): row["probs"] for row in labels.to_pylist()}
    shifts = [
        float(np.abs(np.subtract(row["probs"], probs[key])).sum() / 2)
        for row in others.to_pylist()
        if (key := (row["pair_id"], row["dimension"])) in probs
    ]
    return {"mean": float(np.mean(shifts)), "most": max(shifts)} if shifts else {}
