"""The groups of step after step as a worker trains on them: read by itself, or ahead of it by tasks of Ray Data.

Either way a step's groups are a function of (seed, step), so that a run resumed at a step, on any number of workers,
sees exactly what it would have seen, and no worker holds the data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pyarrow as pa

from preceptor.ranker.examples import Group, draw_documents, groups_of_step
from preceptor.ranker.grouped import GROUPS, GroupFiles, group_of, row_of
from preceptor.recipe import TrainConfig

if TYPE_CHECKING:
    import numpy as np

STEPS_PER_TASK: Final = 8
AHEAD_BYTES: Final = 64 * 2**20
"""What Ray Data may have read ahead of one worker: a bound, whatever the data set's size."""

_STEPS: Final = pa.schema([("step", pa.int64()), *GROUPS])


def steps_of(folder: Path, config: TrainConfig, *, start: int = 0) -> Iterator[list[Group]]:
    """The groups of each step from `start`, counted from 0, to the last; `folder` is what `write_groups` wrote.

    Those of the whole step: what each worker takes of them, it picks itself.
    """
    return (_streamed if config.feed == "ray_data" else _read)(folder, config, start)


def _read(folder: Path, config: TrainConfig, start: int) -> Iterator[list[Group]]:
    files = GroupFiles(folder)
    return (_of_step(files, step, config) for step in range(start, config.num_steps))


def _of_step(files: GroupFiles, step: int, config: TrainConfig) -> list[Group]:
    return [draw_documents(files[index], step, config) for index in groups_of_step(len(files), step, config)]


def _streamed(folder: Path, config: TrainConfig, start: int) -> Iterator[list[Group]]:
    import ray.data

    if start >= config.num_steps:
        return
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(object_store_memory=AHEAD_BYTES)
    with ray.data.DataContext.current(context):
        num_tasks = -(-(config.num_steps - start) // STEPS_PER_TASK)
        # No CPU is asked for: training workers may have reserved them all, and would wait for ever.
        steps = ray.data.range(config.num_steps - start, override_num_blocks=num_tasks).map_batches(
            partial(_rows_of, folder=folder, config=config, start=start),
            batch_size=None,
            batch_format="numpy",
            num_cpus=0,
            concurrency=1,
        )
    batches = steps.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    rows = chain.from_iterable(cast(pa.Table, batch).to_pylist() for batch in batches)
    for _, step in groupby(rows, key=itemgetter("step")):
        yield [group_of(row) for row in step]


def _rows_of(batch: dict[str, np.ndarray], *, folder: Path, config: TrainConfig, start: int) -> pa.Table:
    files = GroupFiles(folder)
    rows: list[dict[str, Any]] = []
    for step in (start + int(number) for number in batch["id"]):
        rows += [{"step": step, **row_of(group)} for group in _of_step(files, step, config)]
    return pa.Table.from_pylist(rows, schema=_STEPS)
