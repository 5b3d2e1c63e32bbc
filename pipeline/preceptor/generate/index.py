"""Nearest neighbours among embeddings, from the library faiss: exact while that is cheap, inverted lists above.

Both answer the same to the same vectors and seed however many threads build or ask them, which graph indexes built in
parallel do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from preceptor.generate.texts import Indices, Vectors, open_vectors

EXACT_ROWS: Final = 20_000
"""Corpora of at most this many texts are searched exhaustively: 8 MFLOP a query at most."""

_TRAINED_PER_LIST: Final = 64
_PROBED_SHARE: Final = 1 / 32
_ADDED_AT_ONCE: Final = 16_384


@dataclass(frozen=True, kw_only=True)
class IndexWork:
    """Builds one index for each of `vectors`, beside it."""

    vectors: tuple[Path, ...]
    seed: int

    def open(self) -> Callable[[int], Mapping[str, int]]:
        """Builds index `number`."""
        return partial(build_index, work=self)


def index_of(vectors: Path) -> Path:
    """Where the index over `vectors` is kept."""
    return vectors.with_suffix(".faiss")


def build_index(number: int, *, work: IndexWork) -> Mapping[str, int]:
    """Counts, after writing the index over vectors `number`; equal inner products are cosines for unit vectors."""
    import faiss

    vectors = open_vectors(work.vectors[number])
    num_rows, num_dimensions = vectors.shape
    if num_rows <= EXACT_ROWS:
        index: Any = faiss.IndexFlatIP(num_dimensions)
        num_lists = 0
    else:
        num_lists = int(4 * math.sqrt(num_rows))
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(num_dimensions), num_dimensions, num_lists, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.seed = work.seed
        index.cp.spherical = True
        chosen = np.random.default_rng(work.seed).choice(
            num_rows, min(num_rows, _TRAINED_PER_LIST * num_lists), replace=False, shuffle=False
        )
        index.train(np.ascontiguousarray(vectors[np.sort(chosen)]))
        index.nprobe = max(8, round(num_lists * _PROBED_SHARE))
    for start in range(0, num_rows, _ADDED_AT_ONCE):
        index.add(np.ascontiguousarray(vectors[start : start + _ADDED_AT_ONCE]))
    target = index_of(work.vectors[number])
    unfinished = target.with_name(f".{target.name}.partial")
    faiss.write_index(index, str(unfinished))
    unfinished.replace(target)
    return {"rows": num_rows, "lists": num_lists}


def open_index(vectors: Path) -> Any:
    """The index over `vectors`, memory-mapped, so that the actors of one machine share it."""
    import faiss

    return faiss.read_index(str(index_of(vectors)), faiss.IO_FLAG_MMAP_IFC)


def nearest(index: Any, asked: Vectors, num: int) -> tuple[Indices, Vectors]:
    """(indices, similarities), each [num_asked, min(num, num_rows)], most similar first; -1 where fewer were found."""
    similarities, indices = index.search(np.ascontiguousarray(asked), min(num, index.ntotal))
    return indices.astype(np.int64), similarities
