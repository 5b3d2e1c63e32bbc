"""Steps that go on where they stopped: a step is done once, and a step of many parts does each part once.

A finished step or part leaves a JSON file with its counts under ``steps/``, written after its output. Parts are
functions of the config and their number alone, so that the output is the same however many actors made it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import pyarrow as pa

from preceptor import errors
from preceptor.errors import PreceptorError, StageFailed, last_line
from preceptor.judge.progress import Progress
from preceptor.judge.replies import Usage
from preceptor.record import write_json

CPUS_PER_ACTOR: Final = 0.5
"""Logical CPUs of an actor that computes: on a small local cluster whole ones would leave none for what is around."""

Tally = Counter[str]
_OUTCOME: Final = pa.schema(
    {"error": pa.string(), "message": pa.string(), "rows": pa.int64(), "dropped": pa.int64()},
)


class PartWork(Protocol):
    """What an actor needs to do parts of one step; it travels pickled."""

    def open(self) -> Callable[[int], Mapping[str, int]]:
        """The function that does part `number` and returns its counts, with whatever it needs loaded once.

        The count `rows` says how many rows the part has.
        """
        ...


def once(out: Path, step: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What `work` returned, now or when the step was done before."""
    file = out / "steps" / f"{step}.json"
    if not file.is_file():
        write_json(file, dict(work()))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def in_parts(
    work: PartWork,
    num_parts: int,
    *,
    num_rows: int,
    out: Path,
    step: str,
    num_actors: int,
    cpus_per_actor: float = CPUS_PER_ACTOR,
    gpus_per_actor: float = 0,
) -> Tally:
    """The summed counts of all parts, computed by a pool of Ray Data actors; parts that were done are not done again.

    Prints how far it is of `num_rows`.
    Raises StageFailed where an actor dies, and whatever PreceptorError a part raised.
    """
    import ray.data
    from ray.exceptions import RayError

    files = [out / "steps" / step / f"{number:06d}.json" for number in range(num_parts)]
    todo = [number for number, file in enumerate(files) if not file.is_file()]
    if todo:
        size = min(num_actors, len(todo))
        blocks = ray.data.from_arrow([pa.table({"part": [number]}) for number in todo])
        done = blocks.map_batches(
            _Actor,
            fn_constructor_kwargs={"work": work, "files": files},
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=cpus_per_actor,
            num_gpus=gpus_per_actor,
            compute=ray.data.ActorPoolStrategy(size=size),
        )
        before = _summed(file for file in files if file.is_file())
        try:
            with Progress(stage=f"generate {step}", num_rows=num_rows, num_done=before["rows"]) as progress:
                for row in done.iter_rows():
                    if row["error"] is not None:
                        raise getattr(errors, row["error"])(row["message"])
                    progress.add(row["rows"], {"dropped": row["dropped"]} if row["dropped"] else {}, Usage())
        except (RayError, RuntimeError) as error:
            reason = last_line(error)
            raise StageFailed(
                f"{out}: step {step} stopped: {reason}. Finished parts are kept: mend the cause and run it again."
            ) from error
    return _summed(files)


def _summed(files: Iterable[Path]) -> Tally:
    total: Tally = Counter()
    for file in files:
        total.update(json.loads(file.read_text()))
    return total


class _Actor:
    """Does parts. An error that a user can mend is handed over as a row: Ray would wrap it in a traceback."""

    def __init__(self, *, work: PartWork, files: list[Path]) -> None:
        self.files = files
        self.failure: PreceptorError | None = None
        self.run: Callable[[int], Mapping[str, int]] = partial(_refuse, self)
        try:
            self.run = work.open()
        except PreceptorError as error:
            self.failure = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = [self._outcome(number) for number in batch["part"].to_pylist()]
        return pa.Table.from_pylist(rows, schema=_OUTCOME)

    def _outcome(self, number: int) -> dict[str, str | int | None]:
        try:
            tally = dict(self.run(number))
            write_json(self.files[number], tally)
        except PreceptorError as error:
            return {"error": type(error).__name__, "message": str(error), "rows": 0, "dropped": 0}
        num_dropped = sum(count for name, count in tally.items() if " dropped " in name)
        return {"error": None, "message": None, "rows": tally["rows"], "dropped": num_dropped}


def _refuse(actor: _Actor, number: int) -> Mapping[str, int]:
    """Raises what kept the actor from opening its work."""
    assert actor.failure is not None
    raise actor.failure
