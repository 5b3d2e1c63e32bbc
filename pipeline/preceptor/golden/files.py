"""Files that people work on: written whole, and never over something else."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from preceptor.contracts import whole_file
from preceptor.errors import InputError


def write_new(texts: Mapping[Path, str]) -> None:
    """Write each file that is not there; InputError, before any is written, where one exists and holds another text."""
    missing = [file for file in texts if not file.exists()]
    for file in texts.keys() - set(missing):
        if not file.is_file() or file.read_bytes() != texts[file].encode():
            raise InputError(f"{file}: exists and holds something else; nothing is overwritten. Choose another name.")
    for file in missing:
        with whole_file(file) as sink:
            sink.write(texts[file].encode())


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """The rows as CSV with a header and a byte-order mark, without which Excel takes UTF-8 for something else.

    A text that a spreadsheet would run as a formula is led by an apostrophe: postings are other people's text.
    """
    sink = io.StringIO()
    writer = csv.DictWriter(sink, fieldnames=columns, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: _inert(value) for name, value in row.items()} for row in rows)
    return "\ufeff" + sink.getvalue()


def csv_rows(file: Path, *, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line from 1, row) of each CSV row; comma, semicolon or tab, as spreadsheets of all countries write.

    InputError where the file is missing, not UTF-8, lacks one of the `needed` columns, has a column twice, or a row of
    another length.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file. Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8. Save it as 'CSV UTF-8'.") from error
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        columns = next(reader, [])
        _check_columns(file, columns, needed)
        end = reader.line_num
        for cells in reader:
            line, end = end + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                raise InputError(f"{file}:{line}: a row of {len(cells)} cells under {len(columns)} columns. Mend it.")
            rows.append((line, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: not valid CSV ({error}). Save it again as CSV.") from error
    return rows


def _check_columns(file: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in columns]
    if missing:
        raise InputError(f"{file}:1: no column '{missing[0]}'; the file has: {', '.join(columns)}. Keep every column.")
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise InputError(f"{file}:1: the column '{twice[0]}' stands twice. Remove one.")


def _inert(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
