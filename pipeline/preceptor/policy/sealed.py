"""The holdout cannot be read by what tunes a judge: while a seal is on, this process refuses to open its files.

Sealed under each folder's ``golden/`` are the files whose pairs are all holdout, and every sub-folder, because drafts
and grading rounds hold holdout grades too. The hook sees what CPython reports before it opens a file, so it covers
`open`, `os.open`, `io.FileIO`, pathlib, and whatever reads through them (json, csv, linecache, NumPy, pandas' text
readers); relative paths, symbolic and hard links, open descriptors by number, files replaced meanwhile; this package's
own Parquet readers, which report themselves; forked children; and commands that name a sealed file.

Not covered: files that Arrow or other native code opens on its own (``pyarrow.json``, ``pyarrow.parquet`` called
directly: tests/unit/test_architecture.py keeps those out of the rooms that tune), other processes that do not seal
themselves (Ray workers, commands that find the file by themselves), file objects opened before, and copies elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from preceptor.contracts import READS, read_parquet
from preceptor.errors import PolicyError, SealedError, located
from preceptor.policy.findings import read_text
from preceptor.policy.jsonl import read_lines

HOLDOUT: Final = "holdout"

_OPENS: Final = ("open", READS)
_COMMANDS: Final = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn")


@dataclass(frozen=True, kw_only=True)
class _Seal:
    """Real paths of the sealed files and folders, which files those were when the seal was put on, their names, and
    what finds one in a command."""

    files: frozenset[str]
    folders: tuple[str, ...]
    inodes: frozenset[tuple[int, int]]
    names: frozenset[str]
    mentioned: re.Pattern[str]


# Process-wide on purpose: an audit hook cannot be taken off again, and a seal that another thread could look behind
# would be none.
_active: tuple[_Seal, ...] = ()
_lock: Final = threading.Lock()


@contextmanager
def sealed(*folders: Path) -> Iterator[None]:
    """Within, nothing in this process opens the holdout of `folders` (policies or corpora, with a ``golden/`` each).

    SealedError at the attempt. PolicyError at once where a golden JSON Lines file mixes holdout with other splits: it
    could be sealed only by hiding what may be read. A Parquet file that mixes them stays open, for the corpus of a
    source may; read it with `preceptor.golden.tuning_rows`. Seals nest, and hold for all threads.
    """
    global _active
    seal = _seal_of([folder / "golden" for folder in folders])
    _hook_in()
    with _lock:
        _active = (*_active, seal)
    try:
        yield
    finally:
        with _lock:
            rest = list(_active)
            rest.remove(seal)
            _active = tuple(rest)


def is_sealed(file: Path) -> bool:
    """Whether opening `file` is refused now."""
    return bool(_active) and _refused(os.fspath(file), 0)


def _seal_of(golden: Iterable[Path]) -> _Seal:
    files: list[Path] = []
    folders: list[Path] = []
    for folder in golden:
        for item in sorted(folder.iterdir()) if folder.is_dir() else ():
            if item.is_dir():
                folders.append(item)
            elif is_sealed(item) or _only_holdout(item):
                files.append(item)
    inside = [item for folder in folders for item in folder.rglob("*") if item.is_file()]
    names = {*(file.name for file in (*files, *inside)), *(f"golden/{folder.name}" for folder in folders)}
    whole = "|".join(map(re.escape, sorted(names)))
    return _Seal(
        files=frozenset(os.path.realpath(file) for file in files),
        folders=tuple(os.path.realpath(folder) + os.sep for folder in folders),
        inodes=frozenset(key for file in (*files, *inside) if (key := _inode(file)) is not None),
        names=frozenset(names),
        mentioned=re.compile(rf"(?<![\w.-])(?:{whole})(?![\w-])" if names else r"(?!)"),
    )


def _only_holdout(file: Path) -> bool:
    """Whether every pair of a golden file is holdout; PolicyError where a JSON Lines file has others beside them."""
    if file.suffix == ".parquet":
        table = read_parquet(file, columns=["split"])
        return "split" in table.column_names and set(table["split"].to_pylist()) == {HOLDOUT}
    if file.suffix != ".jsonl":
        return False
    splits = [(line, raw.get("split")) for line, raw, broken in read_lines(read_text(file)) if broken is None]
    line = next((line for line, split in splits if split == HOLDOUT), None)
    if line is not None and any(split != HOLDOUT for _, split in splits):
        message = (
            "a holdout pair in a file with pairs of other splits, which cannot be sealed. Give it a file of its own."
        )
        raise PolicyError(located(message, file=file, line=line))
    return line is not None


@cache
def _hook_in() -> None:
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _active:
        return
    if event in _OPENS:
        flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
        if _refused(arguments[0], flags):
            raise _error(arguments[0])
    elif event in _COMMANDS:
        for word in _words(arguments):
            if any(seal.mentioned.search(word) for seal in _active) or _refused(word, 0):
                raise _error(word)


def _refused(target: object, flags: int) -> bool:
    """Whether `target`, a path or an open descriptor, is a sealed file."""
    if isinstance(target, int):
        key = _inode(target)
        return any(key in seal.inodes for seal in _active)
    if not isinstance(target, (str, bytes, os.PathLike)):
        return False
    path = os.fsdecode(target)
    if "\0" in path:
        return False
    real, key = os.path.realpath(path), _inode(path)
    if key is None and not os.path.isabs(path) and not flags & (os.O_WRONLY | os.O_RDWR):
        # It may be meant relative to an open directory, which the event does not tell.
        return any(os.path.basename(path) in seal.names for seal in _active)
    return any(real in seal.files or key in seal.inodes or real.startswith(seal.folders) for seal in _active)


def _inode(target: int | str | Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = os.stat(target)
        return found.st_dev, found.st_ino
    return None


def _words(arguments: object) -> Iterator[str]:
    """The texts in a command's arguments, however nested; its environment, a mapping, is left out."""
    if isinstance(arguments, (str, bytes, os.PathLike)):
        yield os.fsdecode(arguments)
    elif isinstance(arguments, (list, tuple)):
        for item in arguments:
            yield from _words(item)


def _error(target: object) -> SealedError:
    shown = target if isinstance(target, int) else os.fsdecode(target)  # type: ignore[arg-type]
    return SealedError(
        f"{json.dumps(shown)[:300]}: holdout, sealed from whatever tunes a judge. Read rows of split train or "
        "calibration instead; only the gate opens it."
    )
