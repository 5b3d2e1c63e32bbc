"""Sentence embeddings of texts and queries, part by part in Ray actors that load the encoder once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from preceptor.contracts import read_parquet, write_table
from preceptor.generate.texts import Mapped, Vectors, save_vectors
from preceptor.sources.retrieval import Encoder, encoder_dir, open_encoder


def encoder_source(name: str) -> str:
    """The directory or Hugging Face name of the encoder that EncoderConfig calls `name`."""
    return str(encoder_dir()) if name == "minilm" else name


@dataclass(frozen=True, kw_only=True)
class EmbedWork:
    """Embeds column `column` of an Arrow file, one record batch a part, into Parquet parts in `target`."""

    file: Path
    column: str
    target: Path
    encoder: str

    def open(self) -> Callable[[int], Mapping[str, int]]:
        """Embeds part `number`, with the encoder loaded."""
        return partial(embed_part, work=self, encode=open_encoder(self.encoder), texts=Mapped(self.file))


def embed_part(number: int, *, work: EmbedWork, encode: Encoder, texts: Mapped) -> Mapping[str, int]:
    """How many texts part `number` has, after writing their embeddings."""
    vectors = encode(texts.batch(number)[work.column].to_pylist())
    # Not a 2-D array: that would be written as a tensor extension type, which only Ray reads.
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), type=pa.float32()), vectors.shape[1])
    schema = _embeddings(vectors.shape[1])
    write_table(pa.Table.from_arrays([flat], schema=schema), work.target / f"part-{number:06d}.parquet", schema)
    return {"embedded": len(vectors)}


def gather_vectors(source: Path, file: Path, *, num_rows: int) -> dict[str, Any]:
    """What `save_vectors` was told, after putting the parts of `source` one after the other into `file`."""
    parts = sorted(source.glob("part-*.parquet"))
    num_dimensions = _block(parts[0]).shape[1]

    def blocks() -> Iterator[Vectors]:
        yield from map(_block, parts)

    save_vectors(blocks(), file, num_rows=num_rows, num_dimensions=num_dimensions)
    return {"num_rows": num_rows, "num_dimensions": num_dimensions}


def _block(part: Path) -> Vectors:
    column = read_parquet(part)["embedding"].combine_chunks()
    return np.asarray(column.values, dtype=np.float32).reshape(-1, column.type.list_size)


def _embeddings(num_dimensions: int) -> pa.Schema:
    kind = pa.list_(pa.float32(), num_dimensions)
    return pa.schema([pa.field("embedding", kind, nullable=False)], metadata={b"contract": b"EMBEDDINGS"})
