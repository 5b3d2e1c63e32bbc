"""Every Arrow schema that crosses a room, and the functions that hold tables to them.

The schemas here are the truth; docs/contracts.md is generated from them (`make contracts`). A table is checked when
it is read and before it is written, and is never cast silently.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preceptor.errors import InputError, StageFailed, located

NUM_GRADES: Final = 5
"""Grades run from 0 (unsuitable) to 4 (ideal), for every dimension and overall."""

OVERALL: Final = "overall"
"""The dimension name of the aggregated grade."""

READS: Final = "preceptor.read"
"""The audit event of a Parquet file about to be read, which Arrow opens without telling Python."""

SPLITS: Final = ("train", "calibration", "holdout")
ACTIONS: Final = ("click", "apply")


def _field(name: str, kind: pa.DataType, about: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={b"about": about.encode()})


def _schema(name: str, about: str, *fields: pa.Field) -> pa.Schema:
    return pa.schema(fields, metadata={b"contract": name.encode(), b"about": about.encode()})


def _probs() -> pa.DataType:
    return pa.list_(pa.float32(), NUM_GRADES)


PAIRS = _schema(
    "PAIRS",
    "One (query, member profile, document) to be graded, scored or shown.",
    _field("pair_id", pa.string(), "content hash of query_id, profile_id and document_id"),
    _field("query_id", pa.string(), "content hash of the query text"),
    _field("query", pa.string(), "what the member typed; may be empty"),
    _field("profile_id", pa.string(), "content hash of the profile text"),
    _field("profile", pa.string(), "the member in words; may be empty"),
    _field("document_id", pa.string(), "content hash of the document text"),
    _field("document", pa.string(), "the posting (or headline) in words"),
    _field("slice", pa.string(), "the part of the traffic it stands for, such as a query style"),
    _field("split", pa.string(), "train, calibration or holdout; a function of query_id alone"),
)

GOLDEN = _schema(
    "GOLDEN",
    "One grade of one pair on one dimension that the policy's owners stand by.",
    *PAIRS,
    _field("dimension", pa.string(), "a dimension of the rubric, or 'overall'"),
    _field("grade", pa.int8(), "0 to 4"),
    _field("grader_id", pa.string(), "who graded; 'market-truth' means constructed, not human"),
    _field("reason", pa.string(), "why, in the grader's words", nullable=True),
    _field("policy_version", pa.string(), "version and content hash of the policy it was graded under"),
)

LABELS = _schema(
    "LABELS",
    "A judge's grade of one pair on one dimension, with its probabilities.",
    _field("pair_id", pa.string(), "the pair"),
    _field("dimension", pa.string(), "a dimension of the rubric, or 'overall'"),
    _field("grade", pa.int8(), "the most probable grade"),
    _field("probs", _probs(), "probability of each grade, renormalised over the five"),
    _field("label_mass", pa.float32(), "probability the judge gave to the five grades together"),
    _field("rationale", pa.string(), "the judge's reason", nullable=True),
    _field("judge_id", pa.string(), "model and fingerprint of the judge"),
    _field("policy_version", pa.string(), "version and content hash of the policy"),
    _field("prompt_hash", pa.string(), "content hash of what the prompt says of this dimension, without the pair"),
)

REJECTS = _schema(
    "REJECTS",
    "A row that a stage could not use, and why.",
    _field("id", pa.string(), "the pair_id, or what identifies the row"),
    _field("stage", pa.string(), "the stage that rejected it"),
    _field("reason", pa.string(), "one short phrase, countable"),
    _field("raw", pa.string(), "what was seen, cut to 2,000 characters", nullable=True),
    _field("attempt", pa.int32(), "how many times it was tried"),
)

IMPRESSIONS = _schema(
    "IMPRESSIONS",
    "One document shown at one position of one request, and what the member did.",
    _field("request_id", pa.string(), "the request"),
    _field("pair_id", pa.string(), "the pair shown"),
    _field("query_id", pa.string(), "the pair's query"),
    _field("profile_id", pa.string(), "the pair's profile"),
    _field("document_id", pa.string(), "the pair's document"),
    _field("position", pa.int32(), "1 is the top"),
    _field("shown_at", pa.timestamp("us", tz="UTC"), "when"),
    _field("click", pa.bool_(), "the member opened it"),
    _field("apply", pa.bool_(), "the member applied"),
    _field("propensity", pa.float32(), "probability that the position was examined"),
    _field("split", pa.string(), "of the pair's query"),
)

COUNTS = _schema(
    "COUNTS",
    "How often a document was shown in its randomised test and clicked: all there is where requests are not known.",
    _field("pair_id", pa.string(), "the pair shown"),
    _field("num_shown", pa.int64(), "impressions, above 0"),
    _field("num_clicks", pa.int64(), "clicks, at most num_shown"),
    _field("split", pa.string(), "of the test"),
)

EXAMPLES = _schema(
    "EXAMPLES",
    "What one model head should say of one pair, and how much it counts.",
    _field("pair_id", pa.string(), "the pair"),
    _field("head", pa.string(), "a grade head (five targets) or an action head (one)"),
    _field("target", pa.list_(pa.float32()), "probabilities: five for a grade head, one for an action head"),
    _field("weight", pa.float32(), "its weight in the loss, above 0"),
)

TEACHER_SCORES = _schema(
    "TEACHER_SCORES",
    "The raw logits of one teacher's head for one pair. Temperature is a distillation choice.",
    _field("pair_id", pa.string(), "the pair"),
    _field("teacher", pa.string(), "relevance or engagement"),
    _field("head", pa.string(), "the teacher's head"),
    _field("logits", pa.list_(pa.float32()), "five for a grade head, one for an action head"),
)

SCORES = _schema(
    "SCORES",
    "What a bundle says of one pair.",
    _field("pair_id", pa.string(), "the pair"),
    _field("grade_probs", _probs(), "probability of each overall grade"),
    _field("expected_grade", pa.float32(), "mean of the distribution, 0 to 4"),
    _field("actions", pa.map_(pa.string(), pa.float32()), "probability of each action"),
    _field("score", pa.float32(), "what ranks: the bundle's mix of the above"),
    _field("bundle_id", pa.string(), "the bundle"),
    _field("policy_version", pa.string(), "the policy the bundle was trained under"),
)

SERVED = _schema(
    "SERVED",
    "One document of one answered request, as it was ranked. Ids and numbers, no text.",
    _field("request_id", pa.string(), "the request"),
    _field("part", pa.int32(), "which query of the body, 0 where it has one"),
    _field("served_at", pa.timestamp("us", tz="UTC"), "when"),
    _field("pair_id", pa.string(), "the pair"),
    _field("query_id", pa.string(), "the pair's query"),
    _field("profile_id", pa.string(), "the pair's profile"),
    _field("document_id", pa.string(), "the pair's document"),
    _field("document_name", pa.string(), "the caller's own id of the document", nullable=True),
    _field("position", pa.int32(), "rank of the document in the answer, 1 is the top"),
    _field("score", pa.float32(), "what ranked it, under the request's blend"),
    _field("expected_grade", pa.float32(), "mean of the grade distribution, 0 to 4"),
    _field("actions", pa.map_(pa.string(), pa.float32()), "probability of each action"),
    _field("rate", pa.float64(), "share of requests that this log keeps, above 0"),
    _field("bundle_id", pa.string(), "the bundle"),
    _field("policy_version", pa.string(), "the policy the bundle was trained under"),
)

SERVED_SLICE: Final = "served"
"""The slice of pairs that only the log knows; a request does not say which part of the traffic it is."""

GATE_REPORT = _schema(
    "GATE_REPORT",
    "One metric of one system on one head, with its interval and threshold.",
    _field("system", pa.string(), "tfidf, popularity, relevance_teacher, engagement_teacher or student"),
    _field("metric", pa.string(), "ndcg@10, kappa, auc, log_loss, ece or a retention"),
    _field("head", pa.string(), "overall, click, apply or score"),
    _field("value", pa.float64(), "the estimate"),
    _field("low", pa.float64(), "lower end of the 95 % bootstrap interval", nullable=True),
    _field("high", pa.float64(), "upper end", nullable=True),
    _field("num_queries", pa.int32(), "queries it was measured on"),
    _field("threshold", pa.float64(), "what the recipe asks", nullable=True),
    _field("passed", pa.bool_(), "whether it holds", nullable=True),
)

CONTRACTS: Final[dict[str, pa.Schema]] = {
    schema.metadata[b"contract"].decode(): schema
    for schema in (
        PAIRS,
        GOLDEN,
        LABELS,
        REJECTS,
        IMPRESSIONS,
        COUNTS,
        EXAMPLES,
        TEACHER_SCORES,
        SCORES,
        SERVED,
        GATE_REPORT,
    )
}


def content_id(*parts: str) -> str:
    """16 hex digits that depend on every part and on where each ends."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.hexdigest()


def split_of(query_id: str, *, calibration: float = 0.1, holdout: float = 0.2) -> str:
    """The split of every pair of this query: the same query never stands in two splits.

    `calibration` and `holdout` are shares of all queries; the rest is train. The hash is taken of `query_id` alone, so
    adding data never moves a query.
    """
    point = int(content_id("split", query_id), 16) / 2**64
    if point < holdout:
        return "holdout"
    return "calibration" if point < holdout + calibration else "train"


def is_sampled(request_id: str, rate: float) -> bool:
    """Whether a served log that keeps `rate` of all requests keeps this one; a function of both alone.

    What a lower rate keeps, a higher one keeps too.
    """
    return int(content_id("served", request_id), 16) < rate * 2**64


def make_pair(query: str, profile: str, document: str, *, slice: str, split: str | None = None) -> dict[str, str]:
    """One PAIRS row with its content ids; `split` is derived from the query where it is not given."""
    query_id, profile_id, document_id = content_id(query), content_id(profile), content_id(document)
    return {
        "pair_id": content_id(query_id, profile_id, document_id),
        "query_id": query_id,
        "query": query,
        "profile_id": profile_id,
        "profile": profile,
        "document_id": document_id,
        "document": document,
        "slice": slice,
        "split": split if split is not None else split_of(query_id),
    }


def name_of(schema: pa.Schema) -> str:
    """The contract's name, such as 'PAIRS'."""
    return schema.metadata[b"contract"].decode()


def conform(table: pa.Table, schema: pa.Schema, *, where: Path | str = "table") -> pa.Table:
    """`table` with exactly the schema's columns in its order, checked for names, types, nulls, grades and splits.

    Extra columns are dropped, because readers may carry partition columns; nothing is cast. Raises InputError naming
    `where`, the column and the way out.
    """
    for field in schema:
        fault = _fault(table, field)
        if fault is not None:
            raise InputError(located(f"{name_of(schema)} {fault}", file=where, column=field.name))
    return table.select(schema.names).cast(schema) if table.schema != schema else table


def _fault(table: pa.Table, field: pa.Field) -> str | None:
    """What is wrong with the column that `field` asks for, if anything."""
    if field.name not in table.column_names:
        return f"needs this column; the file has: {', '.join(table.column_names) or 'none'}. Add or rename it."
    column = table.column(field.name)
    if not column.type.equals(field.type):
        return f"needs type {field.type}, got {column.type}. Cast it where the file is written."
    if not field.nullable and column.null_count:
        return f"allows no null, got {column.null_count} of {len(column)} rows. Fill or drop them."
    if pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type):
        num_nulls = pc.list_flatten(column).null_count
        return f"allows no null inside a list, got {num_nulls}. Fill or drop them." if num_nulls else None
    if field.name == "grade":
        wrong = pc.invert(pc.and_(pc.greater_equal(column, 0), pc.less(column, NUM_GRADES)))
        return _named(column, wrong, f"a grade is 0 to {NUM_GRADES - 1}", "Mend or drop the row.")
    if field.name == "split":
        wrong = pc.invert(pc.is_in(column, pa.array(SPLITS)))
        return _named(column, wrong, f"a split is {', '.join(SPLITS[:-1])} or {SPLITS[-1]}", "Rename it.")
    return None


def _named(column: pa.ChunkedArray, wrong: pa.ChunkedArray, rule: str, way_out: str) -> str | None:
    """The first value of `column` that is `wrong`, with its row counted from 1."""
    row = wrong.index(True).as_py()
    return None if row < 0 else f"row {row + 1}: {rule}, got {column[row].as_py()!r}. {way_out}"


def rows_to_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """`rows` as a table of the contract; InputError where a row does not fit."""
    try:
        table = pa.Table.from_pylist(list(rows), schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"{name_of(schema)}: a row does not fit: {error}. Compare it with docs/contracts.md."
        ) from error
    return conform(table, schema, where=name_of(schema))


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files at `path` (a file, or a directory searched one level deep), sorted; InputError if none."""
    if path.is_file():
        return [path]
    files = sorted(file for file in path.glob("*.parquet") if not file.name.startswith((".", "_")))
    if not files:
        what = "is an empty directory" if path.is_dir() else "does not exist"
        raise InputError(f"{path}: {what}; expected a Parquet file or a directory of them. Check the path.")
    return files


def read_table(path: Path | str, schema: pa.Schema) -> pa.Table:
    """The whole table at `path`, conforming; InputError naming the file that is missing, truncated or wrong."""
    return pa.concat_tables(iter_tables(Path(path), schema))


def iter_tables(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """One conforming table for each Parquet file at `path`."""
    for file in parquet_files(path):
        yield conform(read_parquet(file), schema, where=file)


def iter_batches(path: Path, schema: pa.Schema, *, num_rows: int = 8192) -> Iterator[pa.Table]:
    """Conforming tables of at most `num_rows` rows, for Parquet files that may be larger than memory."""
    for file in parquet_files(path):
        sys.audit(READS, os.fspath(file))
        try:
            for batch in pq.ParquetFile(file, page_checksum_verification=True).iter_batches(batch_size=num_rows):
                yield conform(pa.Table.from_batches([batch]), schema, where=file)
        except (pa.ArrowInvalid, OSError) as error:
            raise _unreadable(file, error) from error


def read_parquet(file: Path, *, columns: list[str] | None = None) -> pa.Table:
    """All of `file`, or `columns` of it; InputError where it is missing, cut short, damaged or not Parquet."""
    sys.audit(READS, os.fspath(file))
    try:
        return pq.ParquetFile(file, page_checksum_verification=True).read(columns=columns)
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file. Check the path.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: BaseException) -> InputError:
    return InputError(
        f"{file}: not readable as Parquet ({_first_line(error)}). It may be cut short or damaged; write it again."
    )


def write_table(table: pa.Table, file: Path, schema: pa.Schema) -> Path:
    """`file`, written whole or not at all, with page checksums; StageFailed where the disk refuses."""
    checked = conform(table, schema, where=file)
    with whole_file(file) as sink:
        pq.write_table(checked, sink, compression="zstd", write_page_checksum=True)
    return file


@contextmanager
def whole_file(file: Path) -> Iterator[IO[bytes]]:
    """A sink whose bytes become `file` where the body ends well: a synced sibling is renamed into place.

    Where it does not, the sibling is removed and an older `file` stays. Raises StageFailed where the disk refuses.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        partial.replace(file)
    except BaseException as error:
        # The folder itself may be what is missing.
        with suppress(OSError):
            partial.unlink()
        if not isinstance(error, OSError):
            raise
        raise StageFailed(
            f"{file}: could not be written ({_first_line(error)}). Free some space or choose another --root."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
