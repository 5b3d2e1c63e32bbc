"""Blocks fanned out to workers: an actor pool of Ray Data, or this process for a judge that answers at once.

Only tickets and tallies go through Ray: a worker reads its block's pairs from the pool and writes its parts itself.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import Any, Final, cast

import pyarrow as pa

from preceptor.errors import StageFailed, last_line
from preceptor.judge.blocks import BlockWorker, Ticket, Work, ticket_of
from preceptor.judge.replies import Workers
from preceptor.judge.tally import Tally, tally_of
from preceptor.precedence import followers_standing, wait_for_idle_cpus

MAX_RESTARTS: Final = 20
"""How often a worker may be started anew in one run: an engine that dies of everything must end the job."""

SLICES_PER_ACTOR: Final = 8
"""A task takes this part of an actor's even share of the tickets left: many at first, single ones at the end."""

Answered = tuple[Ticket, Tally | None]


def answer_tickets(work: Work, tickets: Sequence[Ticket]) -> Generator[Answered]:
    """Each ticket with its block's tally, as they come; None where a worker was told to stop.

    Raises StageFailed where the workers are gone, or none has finished a block for `Workers.give_up_s` seconds.
    """
    workers = work.judge.workers
    if workers is None:
        yield from _here(work, tickets)
    else:
        yield from _watched(_through_ray(work, workers, tickets), workers, work)


def _here(work: Work, tickets: Sequence[Ticket]) -> Iterator[Answered]:
    worker = BlockWorker(work, 1)
    with asyncio.Runner() as runner:
        for ticket in tickets:
            yield ticket, runner.run(worker.answer(ticket))


def _through_ray(work: Work, workers: Workers, tickets: Sequence[Ticket]) -> Iterator[Answered]:
    import ray.data
    from ray.data import ActorPoolStrategy

    rows = pa.table(
        {
            "shard": pa.array([ticket.shard.index for ticket in tickets], pa.int32()),
            "num_shards": pa.array([ticket.shard.num_shards for ticket in tickets], pa.int32()),
            "block": pa.array([ticket.block for ticket in tickets], pa.int32()),
        }
    )
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    # A tally comes back as soon as it is there, not when its task has filled a block of Ray's usual size.
    context.target_max_block_size = 1
    with ray.data.DataContext.current(context):
        sizes = task_sizes(rows.num_rows, workers.num_actors)
        slices = [rows.slice(end - size, size) for end, size in zip(accumulate(sizes), sizes, strict=True)]
        answered = ray.data.from_arrow(slices).map_batches(
            BlockWorker,
            fn_constructor_args=(work, workers.blocks_in_flight),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                size=workers.num_actors, max_tasks_in_flight_per_actor=max(2, workers.blocks_in_flight)
            ),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus or None,
            max_concurrency=workers.blocks_in_flight,
            max_restarts=MAX_RESTARTS,
            max_task_retries=-1,
            runtime_env={"env_vars": dict(workers.env)},
        )
    for batch in answered.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in cast(pa.Table, batch).to_pylist():
            yield ticket_of(row), tally_of(json.loads(row["tally"])) if row["tally"] else None


def task_sizes(num_tickets: int, num_actors: int) -> list[int]:
    """How many tickets each task holds; they add up to `num_tickets`, largest first and down to 1.

    Guided self-scheduling (Polychronopoulos and Kuck, IEEE Trans. Computers C-36, 1987): no actor is left with much
    when the others are done, and tasks grow with the logarithm of the tickets only, of which Ray's driver remembers
    about 40 kB each.
    """
    sizes, left = [], num_tickets
    while left:
        sizes.append(-(-left // (SLICES_PER_ACTOR * num_actors)))
        left -= sizes[-1]
    return sizes


def _watched(answered: Iterator[Answered], workers: Workers, work: Work) -> Iterator[Answered]:
    """`answered`, pulled by a thread so that silence is noticed. StageFailed where Ray or time gives up."""
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
    ended, stop = object(), threading.Event()

    def pull() -> None:
        if workers.fill_the_cpus:
            # With Ray Data's loop, which starts below, and asks 100 times a second whether a block has come.
            wait_for_idle_cpus()
        try:
            for item in answered:
                arrived.put(item)
                if stop.is_set():
                    break
            arrived.put(ended)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=pull, daemon=True, name="answered-blocks").start()
    followers_run = workers.fill_the_cpus
    meanwhile = ExitStack()
    try:
        while True:
            try:
                item = arrived.get(timeout=workers.give_up_s)
            except queue.Empty:
                raise StageFailed(
                    f"{work.judge.judge_id}: no block was finished for {workers.give_up_s:,.0f} s. What is whole is "
                    "kept: look at the engine's log, mend the cause and run the same command again."
                ) from None
            if item is ended:
                return
            if isinstance(item, BaseException):
                raise _failed(item, work) from item
            if followers_run:
                # Ray Data's own actors have come up by now.
                meanwhile.enter_context(followers_standing())
                followers_run = False
            yield item
    finally:
        meanwhile.close()
        # Left early, as at a ceiling: what is queued comes back unanswered, and the thread ends with the next block.
        stop.set()
        if work.stop_file.parent.is_dir():
            work.stop_file.touch()


def _failed(error: BaseException, work: Work) -> BaseException:
    import ray.exceptions

    if not isinstance(error, (ray.exceptions.RayError, RuntimeError, ValueError)):
        return error
    reason = last_line(error)
    return StageFailed(
        f"{work.judge.judge_id} stopped: {reason}. What is whole is kept: mend the cause and run the command again."
    )
