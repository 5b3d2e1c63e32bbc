"""The `host` stage: a tuned teacher in vLLM's pooling runner gives the raw logits that its labels will come from.

One engine start serves the calibration, the pool and the gate: their pairs go through in one stream, and what the
teacher says of them is stored once. Whether it may label is decided afterwards, on the calibration pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from preceptor.contracts import (
    PAIRS,
    REJECTS,
    TEACHER_SCORES,
    content_id,
    iter_tables,
    rows_to_table,
    write_table,
)
from preceptor.errors import InputError, RejectCeilingError, StageFailed
from preceptor.judge.hosted import read_checkpoint, score_hosted
from preceptor.judge.progress import Progress
from preceptor.judge.replies import Answers, Reply, Usage, graded, rejected, score_rows
from preceptor.judge.watch import Watch
from preceptor.logits import softmax
from preceptor.ranker.score_stage import block_up, collect_pairs
from preceptor.recipe import EngineConfig, PairSet
from preceptor.record import Record, begin

RELEVANCE: Final = "relevance"
_MAX_RAW: Final = 2000


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """Which pairs a hosted teacher scores, in which engine, and how many it may fail on."""

    sets: tuple[PairSet, ...]
    engine: EngineConfig
    max_reject_share: float


@dataclass(kw_only=True)
class _Open:
    """A block whose logits are still coming in."""

    waiting: set[str]
    logits: dict[str, Any] = field(default_factory=dict)
    rejects: list[dict[str, Any]] = field(default_factory=list)


def host(config: HostConfig, *, corpus: Record, teacher: Record, watch: Watch | None = None, out: Path) -> Record:
    """The record of the teacher's raw logits in ``scores/`` and of the pairs it failed on in ``rejects/``.

    Every pair of the sets is in one of the two. A rerun computes only blocks that are not whole. Raises
    RejectCeilingError above `config.max_reject_share`, StageFailed where the engine stops early.
    """
    run = begin("host", config, out=out, inputs={"corpus": corpus, "teacher": teacher})
    if run.record is not None:
        return run.record
    pairs = collect_pairs(corpus, config.sets)
    if not pairs:
        raise InputError(f"{corpus.path}: no pair in {', '.join(config.sets)}. Nothing to score; check the corpus.")
    blocks = {content_id(*(row["pair_id"] for row in block)): block for block in block_up(pairs)}
    missing = {name: block for name, block in blocks.items() if not _part(out, "rejects", name).is_file()}
    if missing:
        _stream(missing, teacher.path / "model", config, out, watch)
    rejected_rows = [row for table in iter_tables(out / "rejects", REJECTS) for row in table.to_pylist()]
    reasons: dict[str, int] = {}
    for row in rejected_rows:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    if len(rejected_rows) > config.max_reject_share * len(pairs):
        raise RejectCeilingError(
            f"{out}: the hosted teacher failed on {len(rejected_rows):,} of {len(pairs):,} pairs {reasons}, over "
            f"max_reject_share {config.max_reject_share:g}. Read rejects/, mend the cause, delete {out} and run again."
        )
    return run.finish(num_rows_in=len(pairs), num_rows_kept=len(pairs) - len(rejected_rows), rejected=reasons)


def _stream(
    blocks: dict[str, list[dict[str, str]]], checkpoint: Path, config: HostConfig, out: Path, watch: Watch | None
) -> None:
    """Write the parts of each block as soon as its last pair is answered; rejects last, which makes it whole."""
    home = {row["pair_id"]: name for name, block in blocks.items() for row in block}
    opened = {name: _Open(waiting={row["pair_id"] for row in block}) for name, block in blocks.items()}
    table = rows_to_table((row for block in blocks.values() for row in block), PAIRS)
    with Progress(stage="host", num_rows=len(home), watch=watch) as progress:
        for batch in score_hosted(checkpoint, table, config.engine):
            reasons = Counter(reason for _, reason, _ in batch.rejects)
            progress.add(len(batch.logits) + len(batch.rejects), reasons, Usage())
            for pair_id, logits in batch.logits.items():
                opened[home[pair_id]].logits[pair_id] = logits
            for pair_id, reason, raw in batch.rejects:
                row = {"id": pair_id, "stage": "host", "reason": reason, "raw": (raw or "")[:_MAX_RAW], "attempt": 1}
                opened[home[pair_id]].rejects.append(row)
            answered = {*batch.logits, *(pair_id for pair_id, _, _ in batch.rejects)}
            for name in {home[pair_id] for pair_id in answered}:
                opened[name].waiting -= answered
                if not opened[name].waiting:
                    _write(name, opened.pop(name), out)
    if opened:
        num_left = sum(len(block.waiting) for block in opened.values())
        raise StageFailed(f"{out}: the engine stopped with {num_left:,} pairs unanswered. Run the same command again.")


def _write(name: str, block: _Open, out: Path) -> None:
    scores = rows_to_table(score_rows(block.logits, teacher=RELEVANCE), TEACHER_SCORES)
    write_table(scores, _part(out, "scores", name), TEACHER_SCORES)
    write_table(rows_to_table(block.rejects, REJECTS), _part(out, "rejects", name), REJECTS)


def _part(out: Path, kind: str, name: str) -> Path:
    return out / kind / f"part-{name}.parquet"


@dataclass(frozen=True, kw_only=True)
class StoredJudge:
    """A hosted teacher as a judge, from the logits it left: the softmax of each grade head, label mass 1."""

    judge_id: str
    dimensions: tuple[str, ...]
    scores: Path

    @property
    def heads(self) -> tuple[str, ...]:
        """None: the raw logits are stored already."""
        return ()

    def grade(self, pairs: pa.Table) -> Iterator[Answers]:
        """Answers for `pairs`; a pair without stored logits is a reject with the reason it got then."""
        wanted: Sequence[str] = pairs.column("pair_id").to_pylist()
        heads: dict[str, dict[str, list[float]]] = {pair_id: {} for pair_id in wanted}
        for table in iter_tables(self.scores / "scores", TEACHER_SCORES):
            for row in table.to_pylist():
                if row["pair_id"] in heads:
                    heads[row["pair_id"]][row["head"]] = row["logits"]
        reasons = {
            row["id"]: row["reason"]
            for table in iter_tables(self.scores / "rejects", REJECTS)
            for row in table.to_pylist()
        }
        replies = [self._reply(pair_id, name, heads, reasons) for pair_id in wanted for name in self.dimensions]
        yield Answers(replies=tuple(replies), logits={})

    def _reply(
        self, pair_id: str, dimension: str, heads: dict[str, dict[str, list[float]]], reasons: dict[str, str]
    ) -> Reply:
        if dimension in heads[pair_id]:
            return graded(pair_id, dimension, softmax(heads[pair_id][dimension]))
        return rejected(pair_id, dimension, reasons.get(pair_id, "not scored"))


def stored_judge(scores: Record, teacher: Record) -> StoredJudge:
    """The judge that `teacher` is, speaking through the logits of the `host` stage's record `scores`."""
    return StoredJudge(
        judge_id=f"teacher:{teacher.fingerprint}",
        dimensions=read_checkpoint(teacher.path / "model").grade_heads,
        scores=scores.path,
    )
