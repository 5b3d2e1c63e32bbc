"""What a stage says of the files it read, and the texts of pairs out of several folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from preceptor.contracts import PAIRS, iter_batches, parquet_files, read_parquet
from preceptor.record import file_digest


def digest_of(files: Iterable[Path]) -> str:
    """16 hex digits of the names and contents of `files`: moved files are the same input, changed ones are not."""
    whole = hashlib.blake2b(digest_size=8)
    for file in files:
        whole.update(f"{file.name} {file_digest(file)}\n".encode())
    return whole.hexdigest()


def splits_of(folders: Sequence[Path]) -> dict[str, str]:
    """The split of each query that the PAIRS in `folders` name; of two, the one named first."""
    found: dict[str, str] = {}
    for folder in folders:
        for file in parquet_files(folder):
            # Texts are most of the file, and not needed.
            table = read_parquet(file, columns=["query_id", "split"])
            for query_id, split in zip(table["query_id"].to_pylist(), table["split"].to_pylist(), strict=True):
                found.setdefault(query_id, split)
    return found


def pairs_of(folders: Sequence[Path], wanted: set[str]) -> Iterator[pa.Table]:
    """The PAIRS rows in `folders` whose pair_id is `wanted`, each once: of two, the one that comes first."""
    values, seen = pa.array(sorted(wanted), pa.string()), set[str]()
    for folder in folders:
        for table in iter_batches(folder, PAIRS):
            rows = table.filter(pc.is_in(table["pair_id"], values))
            first: dict[str, int] = {}
            for index, pair_id in enumerate(rows["pair_id"].to_pylist()):
                if pair_id not in seen:
                    first.setdefault(pair_id, index)
            seen |= first.keys()
            if first:
                yield rows.take(list(first.values()))
