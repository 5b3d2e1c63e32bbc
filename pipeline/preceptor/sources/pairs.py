"""A user's own pairs: Parquet, JSON lines, CSV or a saved Hugging Face dataset, brought to PAIRS."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from preceptor.contracts import PAIRS, conform, make_pair, parquet_files, read_parquet, rows_to_table
from preceptor.errors import InputError, located

USER_SLICE: Final = "user"

_TEXTS: Final = ("query", "profile", "document")
_FORMATS: Final = "a .parquet, .jsonl or .csv file, a directory of Parquet files, or a saved Hugging Face dataset"


def read_pairs(path: Path) -> pa.Table:
    """PAIRS, one row for each row at `path`, in its order.

    `path` is a Parquet, JSON-lines or CSV file, a directory of Parquet files, or a directory that
    ``datasets.Dataset.save_to_disk`` wrote. The columns `query`, `profile` and `document` suffice: ids and split follow
    from them and the slice is ``user``. Parquet and datasets that already carry every PAIRS column keep all of them.
    An empty query or profile is allowed, an empty document is not. Raises InputError naming the file, and the column
    and row where they are known.
    """
    if path.is_dir() and (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(folder.name for folder in path.iterdir() if folder.is_dir()))
        raise InputError(f"{path}: holds several dataset splits ({splits}). Name one, such as {path}/NAME.")
    if path.is_dir() and (path / "state.json").is_file():
        return _from_arrow(_read_dataset(path), path)
    if path.is_dir() or path.suffix == ".parquet":
        tables = [_from_arrow(read_parquet(file), file) for file in parquet_files(path)]
        return pa.concat_tables(tables)
    if not path.exists():
        raise InputError(f"{path}: no such file. Check the path.")
    if path.suffix == ".jsonl":
        return rows_to_table(_pairs(_json_rows(path)), PAIRS)
    if path.suffix == ".csv":
        return rows_to_table(_pairs(_csv_rows(path)), PAIRS)
    raise InputError(f"{path}: cannot tell what '{path.suffix or path.name}' holds. Give {_FORMATS}.")


def _read_dataset(path: Path) -> pa.Table:
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise InputError(
            f"{path}: a saved Hugging Face dataset needs the datasets package. "
            "Run: pip install datasets, or save it as Parquet."
        ) from error
    try:
        return load_from_disk(str(path)).with_format("arrow")[:]
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not readable as a saved dataset ({reason}). Save it again.") from error


def _from_arrow(table: pa.Table, file: Path) -> pa.Table:
    if set(PAIRS.names) <= set(table.column_names):
        return conform(table, PAIRS, where=file)
    for name in _TEXTS:
        _require_column(name, table.column_names, file)
        kind = table.schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InputError(located(f"must be text, got {kind}. Write it as text.", file=file, column=name))
    rows = enumerate(table.select(list(_TEXTS)).to_pylist(), start=1)
    return rows_to_table(_pairs((f"{file}: row {number}", row) for number, row in rows), PAIRS)


def _json_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # Not splitlines: a JSON string may hold U+2028 and its like as they are.
    for number, line in enumerate(_utf8(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            message = f"not JSON ({error.msg}). Write one object on each line."
            raise InputError(located(message, file=file, line=number)) from error
        if not isinstance(row, dict):
            message = f"must be an object, got {type(row).__name__}. Write one on each line."
            raise InputError(located(message, file=file, line=number))
        yield f"{file}:{number}", row


def _csv_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_utf8(file), newline=""), strict=True)
    try:
        header = list(reader.fieldnames or ())
        for name in _TEXTS:
            _require_column(name, header, file)
        for row in reader:
            if None in row:
                message = f"more cells than the {len(header)} of the header. Quote commas inside a cell."
                raise InputError(located(message, file=file, line=reader.line_num))
            yield f"{file}:{reader.line_num}", row
    except csv.Error as error:
        message = f"not readable as CSV ({error}). Close every quote."
        raise InputError(located(message, file=file, line=reader.line_num)) from error


def _utf8(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror}). Check its permissions.") from error


def _pairs(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for place, row in rows:
        for name in _TEXTS:
            _require_column(name, row, place)
            if not isinstance(row[name], str):
                seen = "null" if row[name] is None else f"{type(row[name]).__name__} {row[name]!r:.40}"
                raise InputError(located(f"must be text, got {seen}. Fill or drop it.", file=place, column=name))
        if not row["document"].strip():
            raise InputError(located("must not be empty. Fill it or drop the row.", file=place, column="document"))
        yield dict(make_pair(row["query"], row["profile"], row["document"], slice=USER_SLICE))


def _require_column(name: str, have: Iterable[str], place: Path | str) -> None:
    names = list(have)
    if name not in names:
        message = f"pairs need query, profile and document; found: {', '.join(names) or 'none'}. Add or rename it."
        raise InputError(located(message, file=place, column=name))
