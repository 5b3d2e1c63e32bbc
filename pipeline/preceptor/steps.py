"""A step of a plan: what it needs, and how it is run or found finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from preceptor.errors import DriftError, InputError
from preceptor.record import DEV, Record, read_record

Records = Mapping[str, Record]
Run = Callable[[Records, Path], Record]
Status = Literal["done", "based", "resume", "run"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of a plan: `run(records, out)` calls it. `rows` says in words how much it works on."""

    name: str
    needs: tuple[str, ...]
    rows: str
    run: Run


def execute(step: Step, records: dict[str, Record], *, root: Path, version: str, base: str | None = None) -> Record:
    """The step's record, after running it or finding it finished; it is added to `records`.

    With `base`, an earlier version, the very same work is not done again: where the step is finished there with the
    same config and inputs, that record is taken. So a replaced teacher costs its own stages and those that read it.
    What the step needs is taken from `records` or from finished directories; InputError where it is neither.
    """
    gather(step, records, root=root, version=version, base=base)
    record = base_record(step, records, root=root, version=version, base=base)
    records[step.name] = step.run(records, root / step.name / version) if record is None else record
    return records[step.name]


def gather(step: Step, records: dict[str, Record], *, root: Path, version: str, base: str | None = None) -> None:
    """Add to `records` what the step needs and is finished in `version`, or else in `base`; InputError for the rest."""
    for name in step.needs:
        if name not in records:
            found = read_record(root / name / version)
            if found is None and base is not None:
                found = read_record(root / name / base)
            if found is None:
                raise InputError(f"stage '{step.name}' needs '{name}', which is not finished in {root}. Run it first.")
            records[name] = found


def base_record(step: Step, records: Records, *, root: Path, version: str, base: str | None) -> Record | None:
    """The step's record in `base`, where `version` has not begun it and it would be the same work on `records`."""
    if status(step, root=root, version=version, base=base) != "based" or not set(step.needs) <= records.keys():
        return None
    assert base is not None
    try:
        # A finished stage does no work: it answers with its record or a DriftError.
        return step.run(records, root / step.name / base)
    except DriftError:
        return None


def status(step: Step, *, root: Path, version: str, base: str | None = None) -> Status:
    """Whether the step's directory is finished, half done, or not there; ``based`` where `base` has one to look at."""
    out = root / step.name / version
    if version == DEV:
        return "run"
    if read_record(out) is not None:
        return "done"
    if (out / "pending.json").is_file():
        return "resume"
    return "based" if base is not None and read_record(root / step.name / base) is not None else "run"
