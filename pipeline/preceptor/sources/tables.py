"""Tables that the sources add beside the contracts, and the checked reading of the files that sources start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from preceptor.contracts import open_parquet
from preceptor.errors import InputError, located


def _schema(name: str, about: str, *fields: tuple[str, pa.DataType, str]) -> pa.Schema:
    return pa.schema(
        [pa.field(column, kind, nullable=False, metadata={b"about": text.encode()}) for column, kind, text in fields],
        metadata={b"contract": name.encode(), b"about": about.encode()},
    )


QUERIES: Final = _schema(
    "QUERIES",
    "One (query, profile) group of the job-matching source, and the occupation it stands for.",
    ("query_id", pa.string(), "of the group's pairs"),
    ("profile_id", pa.string(), "of the group's pairs"),
    ("occupation", pa.string(), "O*NET-SOC code: the unit of the splits and of the bootstrap"),
    ("slice", pa.string(), "title_description, reported_title or alternate_title"),
    ("split", pa.string(), "train, calibration or holdout"),
    ("text", pa.string(), "what the retrieval baselines search with"),
)

DOCUMENTS: Final = _schema(
    "DOCUMENTS",
    "One posting of the whole collection, as the retrieval baselines read it.",
    ("document_key", pa.string(), "ESCO URI"),
    ("text", pa.string(), "title and description, uncut"),
)

CANDIDATES: Final = _schema(
    "CANDIDATES",
    "Where the retriever put the posting of a pair among the whole collection.",
    ("pair_id", pa.string(), "the pair"),
    ("query_id", pa.string(), "its group"),
    ("profile_id", pa.string(), "its group"),
    ("document_key", pa.string(), "ESCO URI"),
    ("similarity", pa.float32(), "cosine of the MiniLM embeddings"),
    ("rank", pa.int32(), "by similarity over all postings, 1 is the most similar"),
)

JUDGEMENTS: Final = _schema(
    "JUDGEMENTS",
    "Every relevant posting of a group, found by retrieval or not: what the ideal ranking is made of.",
    ("query_id", pa.string(), "the group"),
    ("profile_id", pa.string(), "the group"),
    ("document_key", pa.string(), "ESCO URI"),
    ("grade", pa.int8(), "1 to 3; a posting not listed counts as 0, which is an assumption"),
)

COUNTS: Final = _schema(
    "COUNTS",
    "How often a headline was shown in its test, and clicked.",
    ("pair_id", pa.string(), "the pair"),
    ("num_shown", pa.int64(), "impressions, above 0"),
    ("num_clicks", pa.int64(), "clicks, at most num_shown"),
    ("split", pa.string(), "of the test"),
)

Kind = Literal["text", "list of text", "integer"]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_text_list(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type)


_MATCHES: Final[dict[Kind, Callable[[pa.DataType], bool]]] = {
    "text": _is_text,
    "list of text": _is_text_list,
    "integer": pa.types.is_integer,
}


def read_source(file: Path, columns: Mapping[str, Kind], *, nullable: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The rows of the Parquet file `file`, each with exactly `columns`.

    Raises InputError naming the file and the column that is missing, of another kind, or null where it is not in
    `nullable`.
    """
    table = open_parquet(file).read()
    for name, kind in columns.items():
        if name not in table.column_names:
            raise InputError(
                located(
                    f"this column ({kind}) is needed; the file has: {', '.join(table.column_names) or 'none'}. "
                    "Add or rename it.",
                    file=file,
                    column=name,
                )
            )
        column = table.column(name)
        if not _MATCHES[kind](column.type):
            raise InputError(
                located(f"must be {kind}, got {column.type}. Write it with that type.", file=file, column=name)
            )
        if column.null_count and name not in nullable:
            row = column.is_null().index(True).as_py() + 1
            raise InputError(
                located(
                    f"must not be null, row {row} is ({column.null_count} rows in all). Fill or drop them.",
                    file=file,
                    column=name,
                )
            )
    return table.select(list(columns)).to_pylist()
