"""Sentence embeddings of texts and queries, part by part in Ray actors that load the encoder once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from preceptor.contracts import read_parquet, write_table
from preceptor.generate.texts import Mapped, Vectors, save_vectors
from preceptor.sources.retrieval import Encoder, encoder_dir, open_encoder


def encoder_source(name: str) -> str:
    """The directory or Hugging Face name of the encoder that EncoderConfig calls `name`."""
    return str(encoder_dir()) if name == "minilm" else name


@dataclass(frozen=True, kw_only=True)
class EmbedPart:
    """Record batch `batch` of the Arrow file `file`, whose `column` is embedded into the Parquet file `target`."""

    file: Path
    column: str
    batch: int
    target: Path


@dataclass(frozen=True, kw_only=True)
class EmbedWork:
    """Embeds `parts`; `encoder` and `precision` are what `open_encoder` takes."""

    parts: tuple[EmbedPart, ...]
    encoder: str
    precision: Literal["bfloat16", "float32"]

    def open(self) -> Callable[[int], Mapping[str, int]]:
        """Embeds the part that stands at `number`, with the encoder loaded."""
        encode = open_encoder(self.encoder, precision=self.precision)
        return lambda number: embed_part(self.parts[number], encode)


def embed_part(part: EmbedPart, encode: Encoder) -> Mapping[str, int]:
    """How many texts `part` has, after writing their embeddings."""
    vectors = encode(Mapped(part.file).batch(part.batch)[part.column].to_pylist())
    # Not a 2-D array: that would be written as a tensor extension type, which only Ray reads.
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), type=pa.float32()), vectors.shape[1])
    schema = _embeddings(vectors.shape[1])
    write_table(pa.Table.from_arrays([flat], schema=schema), part.target, schema)
    return {"rows": len(vectors)}


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
