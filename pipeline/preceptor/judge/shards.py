"""A judge over a whole pool: its blocks handed to workers, its shards closed one by one, exactly once each.

A shard whose blocks are all whole is closed: their parts become ``labels/part-SHARD.parquet``, ``rejects/`` (and for a
hosted teacher ``scores/``) likewise, and, written last, its record ``shards/SHARD.json``. The driver holds counts and
tickets, no ids and no texts.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import pyarrow as pa

from preceptor.contracts import OVERALL, conform, read_parquet, write_table
from preceptor.errors import RejectCeilingError, SpendCeilingError, StageFailed
from preceptor.judge.blocks import Ticket, Work, done_file, known_of, part_file, rows_of
from preceptor.judge.judges import prompt_hashes
from preceptor.judge.pool import Pool, Shard, read_blocks
from preceptor.judge.progress import Progress
from preceptor.judge.replies import Judge
from preceptor.judge.reuse import Forecast
from preceptor.judge.tally import Tally, tally_of
from preceptor.judge.tickets import answer_tickets
from preceptor.judge.watch import Watch
from preceptor.policy import Policy
from preceptor.record import StageRun, write_json

MAX_ATTEMPTS: Final = 3


def judge_pool(
    judge: Judge,
    pool: Pool,
    *,
    run: StageRun,
    policy: Policy | None,
    max_reject_share: float,
    max_attempts: int = MAX_ATTEMPTS,
    max_cost_usd: float | None = None,
    watch: Watch | None = None,
) -> Tally:
    """The tally of `pool`, after judging what no earlier run has answered and closing every shard under `run.out`.

    Raises RejectCeilingError as soon as more than `max_reject_share` of all rows are certain to be rejects,
    SpendCeilingError at `max_cost_usd`, once the blocks in work are whole, and StageFailed where the judge stops or
    stalls; what is written by then stays for a rerun.
    """
    work = Work(
        stage=run.stage,
        judge=judge,
        policy=policy,
        prompt_hashes={} if policy is None else prompt_hashes(judge, policy),
        pool=pool,
        out=run.out,
        run_id=uuid.uuid4().hex,
        max_attempts=max_attempts,
    )
    work.stop_file.unlink(missing_ok=True)
    closed = {shard: tally for shard in pool.shards if (tally := _closed(work, shard)) is not None}
    opened = {shard: _done_blocks(work, shard) for shard in pool.shards if shard not in closed}
    for ticket in _tickets(pool, opened):
        # A block whose rejects another try may cure would pass for whole with the worker.
        done_file(work, ticket).unlink(missing_ok=True)
    total = sum(closed.values(), Tally())
    total = sum((tally for blocks in opened.values() for tally in blocks.values()), total)
    guard = Guard(judge=judge, pool=pool, policy=policy, max_reject_share=max_reject_share, max_cost_usd=max_cost_usd)
    guard.hold(total)
    waiting = {shard: pool.num_blocks(shard) - len(blocks) for shard, blocks in opened.items()}
    for shard in [shard for shard, num in waiting.items() if not num]:
        _close(work, shard)
    if any(waiting.values()):
        total = _stream(work, opened, waiting, total, guard, watch)
    shutil.rmtree(work.out / "open", ignore_errors=True)
    return total


def forecast(judge: Judge, pool: Pool, *, out: Path, stage: str, policy: Policy) -> Forecast:
    """How many (pair, dimension) rows `judge_pool` would ask anew, reuse, or ask again; it asks nothing."""
    work = Work(
        stage=stage,
        judge=judge,
        policy=policy,
        prompt_hashes=prompt_hashes(judge, policy),
        pool=pool,
        out=out,
        run_id="",
        max_attempts=MAX_ATTEMPTS,
    )
    num_new, num_reused, num_stale = 0, 0, 0
    for shard in pool.shards:
        if _closed(work, shard) is not None:
            num_reused += pool.num_pairs[shard.index] * len(judge.dimensions)
            continue
        known, done = known_of(work, shard), _done_blocks(work, shard)
        for block, pairs in enumerate(read_blocks(pool, shard)):
            rows = frozenset(rows_of(pairs, judge))
            if block in done:
                num_reused += len(rows)
                continue
            reused, stale = len(rows & known.replies.keys()), len(rows & known.stale)
            num_reused, num_stale = num_reused + reused, num_stale + stale
            num_new += len(rows) - reused - stale
    return Forecast(num_new=num_new, num_reused=num_reused, num_stale=num_stale)


class Guard:
    """The ceilings of a run: how many rows may be rejects, and what it may cost."""

    def __init__(
        self, *, judge: Judge, pool: Pool, policy: Policy | None, max_reject_share: float, max_cost_usd: float | None
    ) -> None:
        rows_per_pair = len(judge.dimensions) + (policy is not None and OVERALL not in judge.dimensions)
        self.judge = judge
        self.num_rows = rows_per_pair * sum(pool.num_pairs)
        self.max_reject_share = max_reject_share
        self.max_cost_usd = max_cost_usd

    def hold(self, total: Tally) -> None:
        """Nothing, or RejectCeilingError, or SpendCeilingError."""
        if total.num_rejected > self.max_reject_share * self.num_rows:
            counts = ", ".join(f"{reason}: {num:,}" for reason, num in _by_count(total.rejected))
            raise RejectCeilingError(
                f"{self.judge.judge_id}: {total.num_rejected:,} of {self.num_rows:,} rows rejected, over "
                f"max_reject_share {self.max_reject_share:g} ({counts}). Read rejects/ and open/*/rejects-*, mend the "
                "cause and run again, or raise the share in the recipe."
            )
        if self.is_spent(total):
            raise SpendCeilingError(
                f"{self.judge.judge_id}: {total.usage.cost_usd:.2f} USD spent of max_cost_usd {self.max_cost_usd:.2f}. "
                f"{total.num_pairs:,} pairs are whole and kept. Raise max_cost_usd and run the same command to go on."
            )

    def is_spent(self, total: Tally) -> bool:
        """Whether the money is gone and work is left."""
        return (
            self.max_cost_usd is not None
            and total.usage.cost_usd >= self.max_cost_usd
            and self.num_rows > total.num_labels + total.num_rejected
        )


def _stream(
    work: Work,
    opened: Mapping[Shard, Mapping[int, Tally]],
    waiting: dict[Shard, int],
    total: Tally,
    guard: Guard,
    watch: Watch | None,
) -> Tally:
    """The whole tally, after answering the blocks that are missing and closing each shard with its last block."""
    tickets = _tickets(work.pool, opened)
    num_pairs = sum(work.pool.num_pairs) - total.num_pairs
    with (
        Progress(
            stage=work.stage,
            num_rows=num_pairs * len(work.judge.dimensions),
            judge=work.judge.judge_id,
            watch=watch,
        ) as progress,
        closing(answer_tickets(work, tickets)) as answered,
    ):
        for ticket, tally in answered:
            if tally is None:
                continue
            total += tally
            progress.add(tally.num_pairs * len(work.judge.dimensions), tally.rejected, tally.usage)
            waiting[ticket.shard] -= 1
            if not waiting[ticket.shard]:
                _close(work, ticket.shard)
            if guard.is_spent(total):
                # The blocks in work are paid for: they come in before the run ends.
                work.stop_file.touch()
            else:
                guard.hold(total)
    guard.hold(total)
    num_left = sum(waiting.values())
    if num_left:
        raise StageFailed(f"{work.judge.judge_id} stopped with {num_left:,} blocks open. Run the same command again.")
    return total


def _tickets(pool: Pool, opened: Mapping[Shard, Mapping[int, Tally]]) -> list[Ticket]:
    return [
        Ticket(shard=shard, block=block)
        for shard, done in opened.items()
        for block in range(pool.num_blocks(shard))
        if block not in done
    ]


def _record(work: Work, shard: Shard) -> Path:
    return work.out / "shards" / f"{shard.name}.json"


def _closed(work: Work, shard: Shard) -> Tally | None:
    """The tally of a closed shard; None where it is open, or where another try may cure some of its rejects."""
    file = _record(work, shard)
    if not file.is_file():
        return None
    tally = tally_of(json.loads(file.read_text()))
    return None if tally.may_improve else tally


def _done_blocks(work: Work, shard: Shard) -> dict[int, Tally]:
    """The whole blocks of an open shard. One with rejects that another try may cure is not whole."""
    found = {}
    for block in range(work.pool.num_blocks(shard)) if work.folder(shard).is_dir() else ():
        file = done_file(work, Ticket(shard=shard, block=block))
        if not file.is_file():
            continue
        tally = tally_of(json.loads(file.read_text()))
        if not tally.may_improve:
            found[block] = tally
    return found


def _close(work: Work, shard: Shard) -> None:
    """Gather the shard's parts into one file of each kind and write its record."""
    tickets = [Ticket(shard=shard, block=block) for block in range(work.pool.num_blocks(shard))]
    tally = sum((tally_of(json.loads(done_file(work, ticket).read_text())) for ticket in tickets), Tally())
    # A record from before is no longer true while its files are replaced.
    _record(work, shard).unlink(missing_ok=True)
    for kind, schema in work.kinds.items():
        parts = [part_file(work, ticket, kind) for ticket in tickets]
        table = pa.concat_tables([conform(read_parquet(part), schema, where=part) for part in parts])
        write_table(table, work.out / kind / f"part-{shard.name}.parquet", schema)
    write_json(_record(work, shard), tally.to_json())
    shutil.rmtree(work.folder(shard))


def _by_count(rejected: Mapping[str, int]) -> Sequence[tuple[str, int]]:
    return sorted(rejected.items(), key=lambda item: -item[1])
