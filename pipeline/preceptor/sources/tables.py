"""Tables that the sources add beside the contracts, and the checked reading of the files that sources start from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from preceptor.contracts import read_parquet
from preceptor.errors import InputError, located
from preceptor.recipe import HeadlinesConfig, JobmatchConfig
from preceptor.record import to_jsonable


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
    ("query", pa.string(), "what was typed: the text without the profile"),
    ("tasks", pa.list_(pa.string()), "of the profile, one an entry; empty where it has none or there is no profile"),
)

DOCUMENTS: Final = _schema(
    "DOCUMENTS",
    "One posting of the whole collection, as the retrieval baselines read it.",
    ("document_key", pa.string(), "ESCO URI"),
    ("text", pa.string(), "title and description, uncut"),
    ("names", pa.list_(pa.string()), "its title and its other titles"),
    ("group", pa.string(), "its ISCO-08 unit group"),
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

WEAK_PAIRS: Final = _schema(
    "WEAK_PAIRS",
    "A title and a posting it is said to belong to, judged by nobody; no held-out occupation has a part in it.",
    ("query", pa.string(), "a title"),
    ("document_key", pa.string(), "ESCO URI"),
    ("grade", pa.int8(), "1 to 3, that of the occupation for the posting; 3 where there is none"),
    ("source", pa.string(), "occupation_title, posting_title or vacancy"),
    ("occupation", pa.string(), "O*NET-SOC code of the train occupation that the title is of, or empty"),
)

RANKED: Final = _schema(
    "RANKED",
    "The places a teacher gives to the best postings of the whole collection, for one held-out query.",
    ("query_id", pa.string(), "the group"),
    ("profile_id", pa.string(), "the group"),
    ("document_key", pa.string(), "ESCO URI"),
    ("rank", pa.int32(), "1 is the best"),
    ("score", pa.float32(), "what it was ranked by"),
)

RANKINGS: Final = _schema(
    "RANKINGS",
    "NDCG@10 of one system on one slice of the holdout queries.",
    ("slice", pa.string(), "title_description or reported_title"),
    (
        "system",
        pa.string(),
        "tfidf, minilm, relevance_teacher or student, the last two also '+ similarity'; or the "
        "teacher's own places in the whole collection",
    ),
    ("ndcg", pa.float64(), "mean over the queries"),
    ("low", pa.float64(), "lower end of the 95 % bootstrap interval over occupations"),
    ("high", pa.float64(), "upper end"),
    ("gain", pa.float64(), "less minilm's, on the same queries"),
    ("gain_low", pa.float64(), "lower end of its 95 % interval: both see the same resampled occupations"),
    ("gain_high", pa.float64(), "upper end"),
    ("num_queries", pa.int32(), "holdout queries of the slice"),
    ("similarity_weight", pa.float32(), "share of the retrieval similarity mixed in; 0 where none is"),
)

HEADLINE_AUCS: Final = _schema(
    "HEADLINE_AUCS",
    "Impression-weighted AUC of one system on the holdout headlines.",
    ("system", pa.string(), "engagement_teacher, tfidf_logistic or own_rate (an optimistic ceiling)"),
    ("scope", pa.string(), "all: any click against any impression without; within_tests: of the same test only"),
    ("auc", pa.float64(), "0.5 is chance"),
    ("low", pa.float64(), "lower end of the 95 % bootstrap interval over tests"),
    ("high", pa.float64(), "upper end"),
    ("num_tests", pa.int32(), "holdout tests it was measured on; within_tests leaves out those of one headline"),
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
    table = read_parquet(file)
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


def config_of_content(config: JobmatchConfig | HeadlinesConfig, files: Iterable[Path]) -> dict[str, Any]:
    """`config` for a record, with 16 hex digits of each file's content where its folder was.

    So moved data is the same work and changed data is not. Raises InputError where a file cannot be read.
    """
    return {**to_jsonable(config), "data": {file.name: _digest(file) for file in files}}


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as source:
            return hashlib.file_digest(source, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file. Check the path given as --data.") from error
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror}). Check what --data points at.") from error
