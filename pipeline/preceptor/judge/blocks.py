"""Judging in blocks of pairs that are written whole: what makes labelling resumable and exactly once.

A block is a run of pairs; its name is the hash of their ids, its parts are ``labels/part-NAME.parquet``, for a hosted
teacher ``scores/part-NAME.parquet``, and, written last, ``rejects/part-NAME.parquet``. A block with all its
parts is done. All open blocks flow through one stream of the judge, so that its engines start once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preceptor.contracts import (
    LABELS,
    NUM_GRADES,
    OVERALL,
    PAIRS,
    REJECTS,
    TEACHER_SCORES,
    content_id,
    read_parquet,
    rows_to_table,
    write_table,
)
from preceptor.errors import RejectCeilingError, StageFailed
from preceptor.judge.judges import prompt_hashes
from preceptor.judge.progress import Progress
from preceptor.judge.replies import ASK, Answers, Judge, Reply, is_passing, label_rows, score_rows, with_overall
from preceptor.judge.reuse import NOTHING, Asked, Earlier, Forecast, earlier_labels
from preceptor.judge.watch import Watch
from preceptor.policy import Policy
from preceptor.record import StageRun

RELEVANCE: Final = "relevance"


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some pairs (PAIRS) that are judged and written together."""

    name: str
    pairs: pa.Table

    def part(self, out: Path, kind: str) -> Path:
        """Its file of `kind`: labels, teacher_scores or rejects."""
        return out / kind / f"part-{self.name}.parquet"


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What lies in the parts of a stage: counts, the mean label mass and the overall grades' histogram."""

    num_labels: int
    rejected: dict[str, int]
    label_mass: float
    num_one_hot: int
    overall_grades: list[int]
    num_blocks_computed: int
    num_rows_reused: int


@dataclass(kw_only=True)
class _Open:
    """A block whose answers are still coming in."""

    block: Block
    waiting: set[tuple[str, str]]
    replies: list[Reply] = field(default_factory=list)
    logits: dict[str, Any] = field(default_factory=dict)


def ordered(pairs: pa.Table) -> pa.Table:
    """`pairs` without repeated pair_ids, those of one (query, profile) group next to each other."""
    order = pairs.sort_by([("query_id", "ascending"), ("profile_id", "ascending"), ("pair_id", "ascending")])
    ids = order.column("pair_id").to_numpy(zero_copy_only=False)
    first = np.ones(len(ids), dtype=bool)
    first[1:] = ids[1:] != ids[:-1]
    return order.filter(pa.array(first))


def blocks_of(pairs: pa.Table, *, pairs_per_block: int) -> list[Block]:
    """`pairs` in blocks, in order; the same pairs always give the same blocks and names."""
    slices = (pairs.slice(start, pairs_per_block) for start in range(0, pairs.num_rows, pairs_per_block))
    return [Block(name=content_id(*part.column("pair_id").to_pylist()), pairs=part) for part in slices]


def judge_blocks(
    judge: Judge,
    blocks: Sequence[Block],
    *,
    run: StageRun,
    policy: Policy,
    max_reject_share: float,
    watch: Watch | None = None,
) -> Tally:
    """The tally of all `blocks`, after judging those that are not done and writing their parts under `run.out`.

    Raises RejectCeilingError as soon as more than `max_reject_share` of all rows are certain to be rejects, and
    StageFailed where the judge stops before the last answer; the parts written by then stay for a rerun.
    """
    done = {block.name for block in blocks if _is_done(block, run.out, judge)}
    pending = [block for block in blocks if block.name not in done]
    rows_per_pair = len(judge.dimensions) + (OVERALL not in judge.dimensions)
    num_rows = rows_per_pair * sum(block.pairs.num_rows for block in blocks)
    rejected: Counter[str] = Counter()
    for block in blocks:
        if block.name in done:
            rejected.update(_reasons(block, run.out))
    _hold_ceiling(rejected, num_rows, max_reject_share, judge)
    num_reused = 0
    if pending:
        num_reused = _stream(
            judge, pending, rejected, num_rows, run=run, policy=policy, max_reject_share=max_reject_share, watch=watch
        )
    return _tally(blocks, run.out, num_computed=len(pending), num_reused=num_reused)


def forecast(judge: Judge, blocks: Sequence[Block], *, out: Path, policy: Policy) -> Forecast:
    """How many (pair, dimension) rows `judge_blocks` would ask anew, reuse, or ask again; it asks nothing."""
    pending = [block for block in blocks if not _is_done(block, out, judge)]
    known = _known(judge, pending, out=out, policy=policy)
    num_rows = len(judge.dimensions) * sum(block.pairs.num_rows for block in blocks)
    num_pending = len(judge.dimensions) * sum(block.pairs.num_rows for block in pending)
    return Forecast(
        num_new=num_pending - len(known.replies) - len(known.stale),
        num_reused=num_rows - num_pending + len(known.replies),
        num_stale=len(known.stale),
    )


def _known(judge: Judge, pending: Sequence[Block], *, out: Path, policy: Policy) -> Earlier:
    # A hosted teacher answers with its logits, which no earlier label holds.
    if judge.heads or not pending:
        return NOTHING
    pair_ids = {pair_id for block in pending for pair_id in block.pairs.column("pair_id").to_pylist()}
    return earlier_labels(out, pair_ids=pair_ids, judge_id=judge.judge_id, prompt_hashes=prompt_hashes(judge, policy))


def _stream(
    judge: Judge,
    pending: Sequence[Block],
    rejected: Counter[str],
    num_rows: int,
    *,
    run: StageRun,
    policy: Policy,
    max_reject_share: float,
    watch: Watch | None,
) -> int:
    """The number of rows that earlier versions answered, after the judge has answered the rest of the `pending` blocks.

    Each block is written as soon as its last answer is in.
    """
    known = _known(judge, pending, out=run.out, policy=policy).replies
    opened = {block.name: _opened(block, judge, known) for block in pending}
    home = {pair_id: block.name for block in pending for pair_id in block.pairs.column("pair_id").to_pylist()}
    for name in [name for name, block in opened.items() if not block.waiting]:
        rejected.update(_write(opened.pop(name), judge, run=run, policy=policy))
    if not opened:
        return len(known)
    num_waiting = sum(len(block.waiting) for block in opened.values())
    with Progress(stage=run.stage, num_rows=num_waiting, judge=judge.judge_id, watch=watch) as progress:
        for answers in judge.grade(pa.concat_tables([_to_ask(block, judge) for block in opened.values()])):
            reasons = Counter(reply.reason for reply in answers.replies if reply.reason is not None)
            progress.add(len(answers.replies), reasons, answers.usage)
            for name in _take(answers, opened, home):
                rejected.update(_write(opened.pop(name), judge, run=run, policy=policy))
                _hold_ceiling(rejected, num_rows, max_reject_share, judge)
    if opened:
        num_missing = sum(len(block.waiting) for block in opened.values())
        raise StageFailed(f"{judge.judge_id} stopped with {num_missing} rows unanswered. Run the same command again.")
    return len(known)


def _opened(block: Block, judge: Judge, known: Mapping[Asked, Reply]) -> _Open:
    rows = {(pair_id, name) for pair_id in block.pairs.column("pair_id").to_pylist() for name in judge.dimensions}
    held = sorted(rows & known.keys())
    return _Open(block=block, waiting=rows - known.keys(), replies=[known[row] for row in held])


def _to_ask(block: _Open, judge: Judge) -> pa.Table:
    """The block's pairs that wait for something, with the dimensions each waits for."""
    pairs = block.block.pairs
    asks = [
        [name for name in judge.dimensions if (pair_id, name) in block.waiting]
        for pair_id in pairs.column("pair_id").to_pylist()
    ]
    return pairs.append_column(ASK, pa.array(asks, type=pa.list_(pa.string()))).filter(pa.array(map(bool, asks)))


def _take(answers: Answers, opened: dict[str, _Open], home: dict[str, str]) -> list[str]:
    """The names of the blocks that `answers` completed. An answer that came before is dropped."""
    for pair_id, logits in answers.logits.items():
        if home[pair_id] in opened:
            opened[home[pair_id]].logits[pair_id] = logits
    complete = []
    for reply in answers.replies:
        block = opened.get(home[reply.pair_id])
        if block is None or (reply.pair_id, reply.dimension) not in block.waiting:
            continue
        block.waiting.discard((reply.pair_id, reply.dimension))
        block.replies.append(reply)
        if not block.waiting:
            complete.append(block.block.name)
    return complete


def _write(full: _Open, judge: Judge, *, run: StageRun, policy: Policy) -> Counter[str]:
    """The reject reasons of a block, after writing its parts, rejects last."""
    labels, rejects = label_rows(
        with_overall(policy.rubric, full.replies),
        stage=run.stage,
        judge_id=judge.judge_id,
        policy_version=policy.version,
        prompt_hashes=prompt_hashes(judge, policy),
    )
    if judge.heads:
        scores = rows_to_table(score_rows(full.logits, teacher=RELEVANCE), TEACHER_SCORES)
        write_table(scores, full.block.part(run.out, "scores"), TEACHER_SCORES)
    write_table(rows_to_table(labels, LABELS), full.block.part(run.out, "labels"), LABELS)
    write_table(rows_to_table(rejects, REJECTS), full.block.part(run.out, "rejects"), REJECTS)
    return Counter(row["reason"] for row in rejects)


def _is_done(block: Block, out: Path, judge: Judge) -> bool:
    kinds = ("labels", "rejects", "scores") if judge.heads else ("labels", "rejects")
    if not all(block.part(out, kind).is_file() for kind in kinds):
        return False
    return not any(is_passing(reason) for reason in _reasons(block, out))


def _reasons(block: Block, out: Path) -> list[str]:
    return read_parquet(block.part(out, "rejects"), columns=["reason"]).column("reason").to_pylist()


def _hold_ceiling(rejected: Counter[str], num_rows: int, max_reject_share: float, judge: Judge) -> None:
    total = rejected.total()
    if total <= max_reject_share * num_rows:
        return
    counts = ", ".join(f"{reason}: {count:,}" for reason, count in rejected.most_common())
    raise RejectCeilingError(
        f"{judge.judge_id}: {total:,} of {num_rows:,} rows rejected, over max_reject_share {max_reject_share:g} "
        f"({counts}). Read rejects/, mend the cause and run again, or raise the share in the recipe."
    )


def _tally(blocks: Sequence[Block], out: Path, *, num_computed: int, num_reused: int) -> Tally:
    rejected: Counter[str] = Counter()
    num_labels, num_one_hot, mass = 0, 0, 0.0
    grades = np.zeros(NUM_GRADES, dtype=np.int64)
    for block in blocks:
        rejected.update(_reasons(block, out))
        labels = read_parquet(block.part(out, "labels"), columns=["dimension", "grade", "probs", "label_mass"])
        num_labels += labels.num_rows
        mass += pc.sum(labels.column("label_mass")).as_py() or 0.0
        overall = labels.filter(pc.equal(labels.column("dimension"), OVERALL)).column("grade").to_numpy()
        grades += np.bincount(overall, minlength=NUM_GRADES)
        probs = np.array(labels.column("probs").to_pylist()).reshape(-1, NUM_GRADES)
        num_one_hot += int((probs.max(axis=1, initial=0.0) == 1.0).sum())
    return Tally(
        num_labels=num_labels,
        rejected=dict(rejected),
        label_mass=mass / num_labels if num_labels else 0.0,
        num_one_hot=num_one_hot,
        overall_grades=grades.tolist(),
        num_blocks_computed=num_computed,
        num_rows_reused=num_reused,
    )


def only_pairs(table: pa.Table) -> pa.Table:
    """The PAIRS columns of a wider table."""
    return table.select(PAIRS.names).cast(PAIRS)
