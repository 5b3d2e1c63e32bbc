"""Texts on disk, in the three shapes the steps need: parts to work through, a memory-mapped file, vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from preceptor.contracts import whole_file

TEXTS: Final = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("place", pa.string(), nullable=False),
        pa.field("skills", pa.list_(pa.string()), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ],
    metadata={b"contract": b"TEXTS"},
)
"""One posting or profile: its row in the corpus, counted from 0, and its fields; empty where the corpus has none.
`text` is what a pair shows: title and place stand before the corpus's own text unless it says them itself."""

Vectors = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def write_ipc(batches: Iterable[pa.RecordBatch], file: Path, schema: pa.Schema) -> Path:
    """`file`, an Arrow IPC file with one record batch for each of `batches`, written whole or not at all."""
    with whole_file(file) as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return file


class Mapped:
    """A memory-mapped Arrow IPC file: rows by number, without reading the others."""

    def __init__(self, file: Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(file)))
        sizes = [self._reader.get_batch(number).num_rows for number in range(self._reader.num_record_batches)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)

    @property
    def num_batches(self) -> int:
        """Record batches, each of them one part's worth of rows."""
        return int(self._reader.num_record_batches)

    @property
    def num_rows(self) -> int:
        """Rows of all batches."""
        return int(self._starts[-1])

    def batch(self, number: int) -> pa.RecordBatch:
        """Record batch `number`."""
        return self._reader.get_batch(number)

    def start(self, number: int) -> int:
        """How many rows stand before batch `number`."""
        return int(self._starts[number])

    def take(self, indices: Indices | Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """The rows at `indices` with `columns`, in their order; each row is read once however often it is asked."""
        wanted, places = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        owners = np.searchsorted(self._starts, wanted, side="right") - 1
        rows: list[dict[str, Any]] = []
        for owner in np.unique(owners):
            local = wanted[owners == owner] - self._starts[owner]
            rows += self.batch(int(owner)).select(list(columns)).take(pa.array(local)).to_pylist()
        return [rows[place] for place in places.ravel()]


def save_vectors(blocks: Iterable[Vectors], file: Path, *, num_rows: int, num_dimensions: int) -> Path:
    """`file`, the `blocks` one after the other: a float32 array [num_rows, num_dimensions] for `open_vectors`."""
    partial = file.with_name(f".{file.name}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        array = np.lib.format.open_memmap(
            partial, mode="w+", dtype=np.float32, shape=(num_rows, num_dimensions), version=(1, 0)
        )
        start = 0
        for block in blocks:
            array[start : start + len(block)] = block
            start += len(block)
        array.flush()
        del array
        partial.replace(file)
    finally:
        with suppress(OSError):
            partial.unlink()
    return file


def open_vectors(file: Path) -> Vectors:
    """The array that `save_vectors` wrote, memory-mapped."""
    found: Vectors = np.load(file, mmap_mode="r")
    return found
