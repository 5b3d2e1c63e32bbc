"""The pool a judge is asked about, laid out on disk: shards by a hash of the (query, profile) group, blocks in shards.

A shard is one Parquet file whose row groups are its blocks, with the pairs of a group next to each other. Nothing holds
all ids: a shard is made, read and closed by itself. The same pairs always give the same shards and blocks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from preceptor.capacity import PAIRS_PER_BLOCK, PAIRS_PER_SHARD, num_shards
from preceptor.contracts import content_id, whole_file
from preceptor.record import write_json

_COLUMNS: Final = ("pair_id", "query_id", "query", "profile_id", "profile", "document")
_HASH_BITS: Final = 64
# Each open file holds a row group in memory; a partition beyond these is written in several files.
_MAX_OPEN_FILES: Final = 256


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of `num_shards` (a power of two) parts of the space of group hashes, in hash order."""

    index: int
    num_shards: int

    @property
    def name(self) -> str:
        """Names its files, such as ``00003-of-00016``."""
        return f"{self.index:05d}-of-{self.num_shards:05d}"

    def overlaps(self, name: str) -> bool:
        """Whether a shard called `name`, of this or another number of shards, may hold groups of this one."""
        index, _, num_shards = name.partition("-of-")
        if not (index.isdecimal() and num_shards.isdecimal()):
            return True
        mine = self.index / self.num_shards, (self.index + 1) / self.num_shards
        other = int(index) / int(num_shards), (int(index) + 1) / int(num_shards)
        return mine[0] < other[1] and other[0] < mine[1]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A laid out pool: its directory, and how many pairs each shard holds, in blocks of `pairs_per_block`."""

    path: Path
    pairs_per_block: int
    num_pairs: tuple[int, ...]

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards that hold pairs."""
        num_shards = len(self.num_pairs)
        return tuple(Shard(index=index, num_shards=num_shards) for index, num in enumerate(self.num_pairs) if num)

    def num_blocks(self, shard: Shard) -> int:
        """Blocks of `shard`; all are full but the last."""
        return -(-self.num_pairs[shard.index] // self.pairs_per_block)

    def file(self, shard: Shard) -> Path:
        """The Parquet file of `shard`."""
        return self.path / f"{shard.name}.parquet"


def shard_of(query_id: str, profile_id: str, num_shards: int) -> int:
    """The index of the shard that a group belongs to: the leading bits of the hash of its ids."""
    bits = num_shards.bit_length() - 1
    return int(content_id("shard", query_id, profile_id), 16) >> (_HASH_BITS - bits)


def lay_pool(
    tables: Iterable[pa.Table],
    path: Path,
    *,
    num_pairs: int,
    pairs_per_block: int = PAIRS_PER_BLOCK,
    pairs_per_shard: int = PAIRS_PER_SHARD,
) -> Pool:
    """The pool of `tables` (PAIRS, about `num_pairs` rows, each pair kept once), written to the directory `path`.

    A pool that is already there is taken as it is. `tables` is read once, as a stream.
    """
    found = _read_pool(path)
    if found is not None:
        return found
    shutil.rmtree(path, ignore_errors=True)
    total = num_shards(num_pairs, pairs_per_shard=pairs_per_shard)
    raw = path / "raw"
    _partition(tables, raw, num_shards=total)
    counts = []
    for index in range(total):
        shard = Shard(index=index, num_shards=total)
        folder = raw / str(index)
        counts.append(_write_shard(folder, path / f"{shard.name}.parquet", pairs_per_block) if folder.is_dir() else 0)
    shutil.rmtree(raw)
    write_json(path / "pool.json", {"pairs_per_block": pairs_per_block, "num_pairs": counts})
    return Pool(path=path, pairs_per_block=pairs_per_block, num_pairs=tuple(counts))


def read_block(file: Path, block: int) -> pa.Table:
    """The pairs of a shard's block: pair_id, query_id, query, profile_id, profile, document."""
    return pq.ParquetFile(file).read_row_group(block)


def read_blocks(pool: Pool, shard: Shard) -> Iterator[pa.Table]:
    """The blocks of `shard`, in order."""
    for block in range(pool.num_blocks(shard)):
        yield read_block(pool.file(shard), block)


def _read_pool(path: Path) -> Pool | None:
    file = path / "pool.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text())
    return Pool(path=path, pairs_per_block=found["pairs_per_block"], num_pairs=tuple(found["num_pairs"]))


def _partition(tables: Iterable[pa.Table], raw: Path, *, num_shards: int) -> None:
    """Write each row below the folder of its shard's index."""
    schema = pa.schema([*((name, pa.string()) for name in _COLUMNS), ("shard", pa.int32())])
    ipc = pads.IpcFileFormat()
    pads.write_dataset(
        (batch for table in tables for batch in _with_shard(table, num_shards, schema).to_batches()),
        raw,
        schema=schema,
        # Not Parquet, whose writers keep a description of every row group they have written until they close.
        format=ipc,
        file_options=ipc.make_write_options(compression="lz4"),
        basename_template="part-{i}.arrow",
        partitioning=["shard"],
        max_partitions=num_shards,
        max_open_files=_MAX_OPEN_FILES,
        existing_data_behavior="overwrite_or_ignore",
    )


def _with_shard(table: pa.Table, num_shards: int, schema: pa.Schema) -> pa.Table:
    groups = zip(table.column("query_id").to_pylist(), table.column("profile_id").to_pylist(), strict=True)
    shards = pa.array([shard_of(query_id, profile_id, num_shards) for query_id, profile_id in groups], pa.int32())
    return table.select(list(_COLUMNS)).append_column("shard", shards).cast(schema)


def _write_shard(folder: Path, file: Path, pairs_per_block: int) -> int:
    """The number of pairs in the shard's `file`, after writing it from the parts in `folder`."""
    pairs = ordered(pads.dataset(folder, format="ipc").to_table(columns=list(_COLUMNS)))
    with whole_file(file) as sink:
        pq.write_table(pairs, sink, row_group_size=pairs_per_block, compression="zstd", write_page_checksum=True)
    return pairs.num_rows


def ordered(pairs: pa.Table) -> pa.Table:
    """`pairs` without repeated pair_ids, those of one (query, profile) group next to each other."""
    order = pairs.sort_by([("query_id", "ascending"), ("profile_id", "ascending"), ("pair_id", "ascending")])
    ids: Sequence[str] = order.column("pair_id").to_numpy(zero_copy_only=False)
    first = np.ones(len(ids), dtype=bool)
    first[1:] = np.asarray(ids[1:]) != np.asarray(ids[:-1])
    return order.filter(pa.array(first))
