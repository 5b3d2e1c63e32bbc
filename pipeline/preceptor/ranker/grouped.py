"""Training groups on disk, one row each, read where a step asks for them: no worker holds the data set.

`write_groups` joins pairs with their examples bucket by bucket, so that memory holds one bucket, not the data; a
`GroupFiles` maps the files into memory and reads a group by its number. Which group that is depends on the ids alone,
so a run that is resumed at a step, on any number of workers, reads exactly what it would have read.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, overload

import pyarrow as pa

from preceptor.contracts import EXAMPLES, PAIRS, iter_batches, parquet_files
from preceptor.errors import InputError, StageFailed
from preceptor.ranker.examples import Group, HeadTargets

BUCKET_BYTES: Final = 64 * 2**20
"""Parquet bytes of the pairs and examples that are joined in memory at once."""
_ROWS_A_BATCH: Final = 256
_ORDER: Final = "order.bin"

_TARGETS: Final = pa.list_(
    pa.struct([("head", pa.string()), ("target", pa.list_(pa.float64())), ("weight", pa.float64())])
)
GROUPS: Final = pa.schema(
    [
        ("query", pa.string()),
        ("profile", pa.string()),
        ("documents", pa.list_(pa.string())),
        ("targets", pa.list_(_TARGETS)),
    ]
)
"""A group's row: `group_of` reads one, `row_of` makes one."""

Row = dict[str, Any]
_Key = tuple[str, str]


def write_groups(pairs: Path, examples: Path, target: Path, *, bucket_bytes: int = BUCKET_BYTES) -> int:
    """The number of groups with at least one example, written to the directory `target`, which is replaced.

    Groups are numbered by query and profile id; a group's documents stand as they do in `pairs`, each pair once.
    InputError where no example matches a pair.
    """
    size = sum(file.stat().st_size for folder in (pairs, examples) for file in parquet_files(folder))
    num_buckets = size // bucket_bytes + 1
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    found: list[tuple[_Key, int, int]] = []
    try:
        with tempfile.TemporaryDirectory(dir=partial) as folder:
            joined = _joined(pairs, examples, Path(folder), num_buckets)
            buckets = _spilled(joined, Path(folder) / "groups", num_buckets, key=_group_key)
            for number, rows in enumerate(buckets):
                members: dict[_Key, list[Row]] = {}
                for row in sorted(rows, key=lambda row: row["number"]):
                    members.setdefault((row["query_id"], row["profile_id"]), []).append(row)
                _write_bucket(partial / f"{number}.arrow", members.values())
                found.extend((key, number, index) for index, key in enumerate(members))
        if not found:
            raise InputError(f"{examples}: no example matches a pair in {pairs}. Both must come from the same corpus.")
        found.sort()
        (partial / _ORDER).write_bytes(array("q", [place for _, *both in found for place in both]).tobytes())
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:
        raise StageFailed(f"{target}: cannot be written ({error.strerror}). Free space, then run again.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(found)


class GroupFiles(Sequence[Group]):
    """The groups that `write_groups` wrote to a directory, read from disk one by one."""

    def __init__(self, folder: Path) -> None:
        self._places = array("q", (folder / _ORDER).read_bytes())
        files = sorted(folder.glob("*.arrow"), key=lambda file: int(file.stem))
        # A mapped file takes no memory of the process but what was just read, which the system may drop again.
        self._tables = [pa.ipc.open_file(pa.memory_map(os.fspath(file))).read_all() for file in files]

    def __len__(self) -> int:
        return len(self._places) // 2

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> list[Group]: ...
    def __getitem__(self, index: int | slice) -> Group | list[Group]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        bucket, row = self._places[2 * index : 2 * index + 2]
        return group_of(self._tables[bucket].slice(row, 1).to_pylist()[0])


def group_of(row: Row) -> Group:
    """The group of a row of GROUPS."""
    return Group(
        query=row["query"],
        profile=row["profile"],
        documents=tuple(row["documents"]),
        targets=tuple(
            {cell["head"]: (cell["target"], cell["weight"]) for cell in targets} for targets in row["targets"]
        ),
    )


def row_of(group: Group) -> Row:
    """The group as a row of GROUPS."""
    return {
        "query": group.query,
        "profile": group.profile,
        "documents": list(group.documents),
        "targets": [_cells(targets) for targets in group.targets],
    }


def _cells(targets: HeadTargets) -> list[Row]:
    return [{"head": head, "target": target, "weight": weight} for head, (target, weight) in targets.items()]


def _joined(pairs: Path, examples: Path, folder: Path, num_buckets: int) -> Iterator[Row]:
    """Each pair that has an example, once, with its targets and its place in `pairs`."""
    numbered = ({**row, "number": number} for number, row in enumerate(_rows(pairs, PAIRS)))
    told = _spilled(_rows(examples, EXAMPLES), folder / "examples", num_buckets, key=_pair_key)
    read = _spilled(numbered, folder / "pairs", num_buckets, key=_pair_key)
    for some_examples, some_pairs in zip(told, read, strict=True):
        targets: dict[str, HeadTargets] = {}
        for row in some_examples:
            targets.setdefault(row["pair_id"], {})[row["head"]] = (row["target"], row["weight"])
        for row in some_pairs:
            learnt = targets.pop(row["pair_id"], None)
            if learnt is not None:
                yield {**row, "targets": learnt}


def _rows(path: Path, schema: pa.Schema) -> Iterator[Row]:
    for table in iter_batches(path, schema):
        yield from table.to_pylist()


def _pair_key(row: Row) -> str:
    return str(row["pair_id"])


def _group_key(row: Row) -> str:
    return f"{row['query_id']}/{row['profile_id']}"


def _spilled(rows: Iterable[Row], folder: Path, num_buckets: int, *, key: Any) -> Iterator[Iterable[Row]]:
    """`rows` by bucket of their key, in order within one: through files where there are several."""
    if num_buckets == 1:
        yield rows
        return
    folder.mkdir()
    files = [folder / str(number) for number in range(num_buckets)]
    with ExitStack() as stack:
        sinks = [stack.enter_context(file.open("w")) for file in files]
        for row in rows:
            sinks[zlib.crc32(key(row).encode()) % num_buckets].write(json.dumps(row, default=str) + "\n")
    for file in files:
        with file.open() as source:
            yield map(json.loads, source)
        file.unlink()


def _write_bucket(file: Path, groups: Iterable[list[Row]]) -> None:
    waiting: list[Row] = []
    with pa.OSFile(os.fspath(file), "wb") as sink, pa.ipc.new_file(sink, GROUPS) as writer:
        for rows in groups:
            waiting.append(
                {
                    "query": rows[0]["query"],
                    "profile": rows[0]["profile"],
                    "documents": [row["document"] for row in rows],
                    "targets": [_cells(row["targets"]) for row in rows],
                }
            )
            if len(waiting) == _ROWS_A_BATCH:
                writer.write_batch(pa.RecordBatch.from_pylist(waiting, schema=GROUPS))
                waiting = []
        if waiting:
            writer.write_batch(pa.RecordBatch.from_pylist(waiting, schema=GROUPS))
