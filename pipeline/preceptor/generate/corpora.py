"""A user's corpora: opened and checked before anything runs, then read once, batch by batch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from preceptor.contracts import parquet_files
from preceptor.errors import InputError, located
from preceptor.recipe import CorporaConfig, CorpusFile
from preceptor.record import file_digest, to_jsonable

BATCH_ROWS: Final = 2048

Row = dict[str, Any]
_SKILL_BREAKS: Final = re.compile(r"[,;|\n\u2022]+")
_LOOKS_LIKE_A_PATH: Final = re.compile(r"^[./~]|\.(parquet|jsonl|json|csv|arrow)$|^[^/]*$|/.*/")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus that can be read: `rows` starts anew each time, with the corpus's own columns. `where` names it."""

    where: str
    columns: Mapping[str, str]
    rows: Callable[[], Iterator[Row]]

    def texts(self) -> Iterator[Row]:
        """TEXTS rows, numbered from 0; a row without any text has an empty `text`."""
        for number, row in enumerate(self.rows()):
            found = {field: row.get(column) for field, column in self.columns.items()}
            yield {"row": number, **_fields(found, place=f"{self.where}: row {number + 1}", columns=self.columns)}


def open_corpus(file: CorpusFile) -> Corpus:
    """The corpus of `file`, after checking that it exists and that its mapped columns are there and hold text.

    Raises InputError naming the file, the column and the way out. Lines of a ``.jsonl`` file are checked as they are
    read; its first object must have every mapped column.
    """
    path = Path(file.source).expanduser()
    if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        return _saved(path, file)
    if path.suffix == ".jsonl" and path.is_file():
        return _jsonl(path, file)
    if path.is_dir() or (path.is_file() and path.suffix == ".parquet"):
        return _parquet(path, file)
    if path.exists():
        raise InputError(f"{path}: neither .parquet nor .jsonl nor a folder. Write the corpus as one of them.")
    if _LOOKS_LIKE_A_PATH.search(file.source):
        raise InputError(
            f"{path}: no such file or folder. Check the path; a Hugging Face data set is named OWNER/NAME."
        )
    return open_data_set(file)


def config_of_content(config: CorporaConfig) -> dict[str, Any]:
    """`config` for a record, with a digest of each local file's content where its path was."""
    found: dict[str, Any] = to_jsonable(config)
    for name, corpus in (("postings", config.postings), ("profiles", config.profiles)):
        path = Path(corpus.source).expanduser() if corpus is not None else None
        if path is not None and path.exists():
            found[name]["source"] = _digests(path)
    if config.golden is not None:
        found["golden"] = _digests(config.golden)
    return found


def _digests(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    return {file.name: file_digest(file) for file in files if not file.name.startswith(".")}


def _parquet(path: Path, file: CorpusFile) -> Corpus:
    files = parquet_files(path)
    for part in files:
        with _named_fault(part):
            schema = pq.read_schema(part)
        _check_columns(schema, file, where=str(part))

    def rows() -> Iterator[Row]:
        for part in files:
            with _named_fault(part):
                for batch in pq.ParquetFile(part).iter_batches(BATCH_ROWS, columns=sorted(set(file.columns.values()))):
                    yield from batch.to_pylist()

    return Corpus(where=str(path), columns=file.columns, rows=rows)


def _jsonl(path: Path, file: CorpusFile) -> Corpus:
    def rows() -> Iterator[Row]:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _json_object(line, path, number)

    first = next(rows(), None)
    if first is None:
        raise InputError(f"{path}: holds no row. Write one JSON object on each line.")
    for column in sorted(set(file.columns.values()) - set(first)):
        raise _missing(column, first, file, where=f"{path}:1")
    return Corpus(where=str(path), columns=file.columns, rows=rows)


def _json_object(line: bytes, path: Path, number: int) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        message = f"not JSON in UTF-8 ({str(error).splitlines()[0]}). Write one object on each line."
        raise InputError(located(message, file=path, line=number)) from error
    if not isinstance(row, dict):
        message = f"must be an object, got {type(row).__name__}. Write one on each line."
        raise InputError(located(message, file=path, line=number))
    return row


def _saved(path: Path, file: CorpusFile) -> Corpus:
    from datasets import load_from_disk

    if (path / "dataset_dict.json").is_file():
        splits = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
        if file.split not in splits:
            raise InputError(f"{path}: no split '{file.split}'; splits: {', '.join(splits)}. Name one with split=.")
        return _saved(path / str(file.split), replace(file, split=None))
    with _named_fault(path):
        loaded = load_from_disk(str(path))
    _check_columns(loaded.features.arrow_schema, file, where=str(path))
    return Corpus(where=str(path), columns=file.columns, rows=lambda: _dataset_rows(loaded, path))


def open_data_set(file: CorpusFile) -> Corpus:
    """The corpus in the Hugging Face data set that `file.source` names (split ``train`` unless told), streamed."""
    from datasets import load_dataset

    with _named_fault(f"data set {file.source}"):
        loaded = load_dataset(
            file.source, file.subset, split=file.split or "train", revision=file.revision, streaming=True
        )
        if loaded.features is None:
            loaded = loaded._resolve_features()
    _check_columns(loaded.features.arrow_schema, file, where=file.source)
    return Corpus(where=file.source, columns=file.columns, rows=lambda: _dataset_rows(loaded, file.source))


def _dataset_rows(loaded: Any, where: Path | str) -> Iterator[Row]:
    with _named_fault(where):
        for table in loaded.with_format("arrow").iter(batch_size=BATCH_ROWS):
            yield from table.to_pylist()


@contextmanager
def _named_fault(where: Path | str) -> Iterator[None]:
    """In the body, whatever a library says of a file it cannot read becomes one InputError that names it."""
    try:
        yield
    except (pa.ArrowInvalid, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{where}: not readable ({reason}). Check its name, or write it again.") from error


def _check_columns(schema: pa.Schema, file: CorpusFile, *, where: str) -> None:
    for field, column in file.columns.items():
        if column not in schema.names:
            raise _missing(column, schema.names, file, where=where)
        kind = schema.field(column).type
        if not (_is_text(kind) or _is_text_list(kind)):
            message = f"the field {field} must be text or a list of text, got {kind}. Write it as text."
            raise InputError(located(message, file=where, column=column))


def _missing(column: str, have: Iterable[str], file: CorpusFile, *, where: str) -> InputError:
    field = next(field for field, name in file.columns.items() if name == column)
    message = f"mapped to the field {field} and not there; found: {', '.join(have)}. Correct the mapping."
    return InputError(located(message, file=where, column=column))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_text_list(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type)


def _fields(found: Mapping[str, Any], *, place: str, columns: Mapping[str, str]) -> Row:
    """The fields of one row as TEXTS has them; InputError where a value is neither text nor a list of text."""
    lists = {field: _as_list(value) for field, value in found.items()}
    for field, values in lists.items():
        if values is None:
            seen = f"{type(found[field]).__name__} {found[field]!r:.40}"
            message = f"must be text or a list of text, got {seen}. Write it as text."
            raise InputError(located(message, file=place, column=columns[field]))
    plain = {field: ", ".join(" ".join(value.split()) for value in values or ()) for field, values in lists.items()}
    skills = [skill.strip() for value in lists.get("skills") or () for skill in _SKILL_BREAKS.split(value)]
    body = "\n".join(value.strip() for value in lists["text"] or ())
    title, town = plain.get("title", ""), plain.get("place", "")
    return {"title": title, "place": town, "skills": list(filter(None, skills)), "text": shown(title, town, body)}


def _as_list(value: Any) -> list[str] | None:
    """The texts in `value`; None where it is neither null nor text nor a list of text."""
    if value is None:
        return []
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(item is None or isinstance(item, str) for item in values):
        return None
    return [item for item in values if item and item.strip()]


def shown(title: str, place: str, body: str) -> str:
    """`body` with `title` and `place` before it where it does not say them itself; empty where `body` is."""
    known = body.casefold()
    header = ", ".join(part for part in (title, place) if part and part.casefold() not in known)
    return f"{header}\n{body}" if header and body else body
