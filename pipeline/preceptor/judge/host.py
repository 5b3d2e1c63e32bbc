"""The `host` stage: a tuned teacher in vLLM's pooling runner gives the raw logits that its labels will come from.

One engine start serves the calibration, the pool and the gate: their pairs go through in one stream, and what the
teacher says of them is stored once. Whether it may label is decided afterwards, on the calibration pairs.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from preceptor.contracts import PAIRS, REJECTS, TEACHER_SCORES, iter_tables, rows_to_table
from preceptor.errors import InputError
from preceptor.judge.hosted import HostedJudge, read_checkpoint, teacher_id
from preceptor.judge.pool import lay_pool
from preceptor.judge.replies import Answers, Reply, Workers, asked_of, graded, rejected
from preceptor.judge.shards import judge_pool
from preceptor.judge.tally import usage_metrics
from preceptor.judge.watch import Watch
from preceptor.logits import softmax
from preceptor.policy import UNASKED
from preceptor.ranker.score_stage import collect_pairs
from preceptor.recipe import EngineConfig, PairSet
from preceptor.record import Record, begin


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """Which pairs a hosted teacher scores, in which engine, and how many it may fail on."""

    sets: tuple[PairSet, ...]
    engine: EngineConfig
    max_reject_share: float


def host(config: HostConfig, *, corpus: Record, teacher: Record, watch: Watch | None = None, out: Path) -> Record:
    """The record of the teacher's raw logits in ``scores/`` and of the pairs it failed on in ``rejects/``.

    Every pair of the sets is in one of the two. A rerun computes only blocks that are not whole. Raises
    RejectCeilingError above `config.max_reject_share`, StageFailed where the engine stops early.
    """
    run = begin(
        "host", replace(config, engine=config.engine.deciding), out=out, inputs={"corpus": corpus, "teacher": teacher}
    )
    if run.record is not None:
        return run.record
    pairs = collect_pairs(corpus, config.sets)
    if not pairs:
        raise InputError(f"{corpus.path}: no pair in {', '.join(config.sets)}. Nothing to score; check the corpus.")
    checkpoint = read_checkpoint(teacher.path / "model")
    judge = HostedJudge(
        judge_id=teacher_id(teacher),
        checkpoint=checkpoint,
        # A pair is scored or not: one head stands for all.
        dimensions=checkpoint.grade_heads[:1],
        engine=config.engine,
        heads=tuple(checkpoint.heads),
    )
    pool = lay_pool([rows_to_table(pairs, PAIRS)], out / "pool", num_pairs=len(pairs))
    tally = judge_pool(judge, pool, run=run, policy=None, max_reject_share=config.max_reject_share, watch=watch)
    shutil.rmtree(pool.path)
    return run.finish(
        num_rows_in=tally.num_pairs,
        num_rows_kept=tally.num_labels,
        rejected=tally.rejected,
        metrics=usage_metrics(tally),
    )


@dataclass(frozen=True, kw_only=True)
class StoredJudge:
    """A hosted teacher as a judge, from the logits it left: the softmax of each grade head, label mass 1."""

    judge_id: str
    dimensions: tuple[str, ...]
    scores: Path
    asking: str = UNASKED

    @property
    def heads(self) -> tuple[str, ...]:
        """None: the raw logits are stored already."""
        return ()

    @property
    def workers(self) -> Workers | None:
        """None: it looks up, in the process that asks."""
        return None

    def open(self) -> StoredGrader:
        """The judge with its logits in memory."""
        return StoredGrader(self)


class StoredGrader:
    """The stored logits of the grade heads, by pair, and why the others have none."""

    def __init__(self, judge: StoredJudge) -> None:
        self.judge = judge
        self.heads: dict[str, dict[str, list[float]]] = {}
        for table in iter_tables(judge.scores / "scores", TEACHER_SCORES):
            for row in table.to_pylist():
                if row["head"] in judge.dimensions:
                    self.heads.setdefault(row["pair_id"], {})[row["head"]] = row["logits"]
        self.reasons = {
            row["id"].partition("/")[0]: row["reason"]
            for table in iter_tables(judge.scores / "rejects", REJECTS)
            for row in table.to_pylist()
        }

    async def grade(self, pairs: pa.Table) -> Answers:
        """Answers to `pairs`; a pair without stored logits is a reject with the reason it got then."""
        asked = [
            (pair["pair_id"], name) for pair in pairs.to_pylist() for name in asked_of(pair, self.judge.dimensions)
        ]
        return Answers(replies=tuple(self._reply(pair_id, name) for pair_id, name in asked))

    def _reply(self, pair_id: str, dimension: str) -> Reply:
        logits = self.heads.get(pair_id, {}).get(dimension)
        if logits is None:
            return rejected(pair_id, dimension, self.reasons.get(pair_id, "not scored"))
        return graded(pair_id, dimension, softmax(logits))


def stored_judge(scores: Record, teacher: Record) -> StoredJudge:
    """The judge that `teacher` is, speaking through the logits of the `host` stage's record `scores`."""
    return StoredJudge(
        judge_id=teacher_id(teacher),
        dimensions=read_checkpoint(teacher.path / "model").grade_heads,
        scores=scores.path,
    )
