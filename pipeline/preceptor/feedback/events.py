"""Events, what members did with what they were shown: JSON Lines or Parquet in, checked rows and bad rows out."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from preceptor.contracts import ACTIONS, read_parquet
from preceptor.errors import InputError, located

STAGE: Final = "feedback"

_NEEDED: Final = ("request_id", "action")
_COLUMNS: Final = (*_NEEDED, "document", "position", "part", "at")
_MAX_RAW: Final = 2000


@dataclass(frozen=True, kw_only=True)
class Event:
    """One action on one document of one request.

    `document` is the caller's own id of it, or its document_id; `position` its rank, 1 the top; at least one is there.
    `part` says which query of a body, `at` when; either may be unknown.
    """

    request_id: str
    action: str
    document: str | None
    position: int | None
    part: int | None
    at: datetime.datetime | None


class BadRow(ValueError):
    """A row that is no event; what it says is one of few phrases, to be counted."""


def read_events(path: Path) -> tuple[list[Event], list[dict[str, Any]]]:
    """The events at `path`, in the order of files and rows, and a REJECTS row for each row that is none.

    `path` is a .jsonl or .parquet file, or a folder of them. A reject's id is ``file:line``, or ``file: row N`` for
    Parquet. Further columns are ignored. InputError where there is no such file, it is not readable, or a Parquet
    file has no column of the name that is needed.
    """
    events: list[Event] = []
    rejects: list[dict[str, Any]] = []
    for file in event_files(path):
        for place, row in _lines(file) if file.suffix == ".jsonl" else _rows(file):
            try:
                events.append(_event(row))
            except BadRow as fault:
                raw = row if isinstance(row, str) else json.dumps(row, default=str, ensure_ascii=False)
                rejects.append({"id": place, "stage": STAGE, "reason": str(fault), "raw": raw[:_MAX_RAW], "attempt": 1})
    return events, rejects


def event_files(path: Path) -> list[Path]:
    """The event files at `path`, sorted; InputError if there are none."""
    if path.is_file() and path.suffix in (".jsonl", ".parquet"):
        return [path]
    found = [file for suffix in ("jsonl", "parquet") for file in path.glob(f"*.{suffix}")]
    files = sorted(file for file in found if not file.name.startswith((".", "_")))
    if not files:
        what = "holds no events" if path.exists() else "does not exist"
        raise InputError(f"{path}: {what}; expected a .jsonl or .parquet file, or a folder of them. Check --events.")
    return files


def _lines(file: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    """(place, row) of each line that is not empty; a line that is no JSON object stays text."""
    try:
        with file.open("rb") as source:
            for number, line in enumerate(source, start=1):
                text = line.decode("utf-8-sig", errors="replace").strip()
                if text:
                    yield f"{file}:{number}", _object(text)
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror}). Check its permissions.") from error


def _object(text: str) -> Mapping[str, Any] | str:
    try:
        row = json.loads(text)
    except ValueError:
        return text
    return row if isinstance(row, dict) else text


def _rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    table = read_parquet(file)
    missing = [name for name in _NEEDED if name not in table.column_names]
    if not {"document", "position"} & set(table.column_names):
        missing.append("document or position")
    if missing:
        message = f"events need {', '.join(missing)}; the file has: {', '.join(table.column_names)}. Add or rename it."
        raise InputError(located(message, file=file))
    found = table.select([name for name in _COLUMNS if name in table.column_names])
    number = 0
    for batch in found.to_batches(max_chunksize=8192):
        for row in batch.to_pylist():
            number += 1
            yield f"{file}: row {number}", row


def _event(row: Mapping[str, Any] | str) -> Event:
    """`row` as an event; BadRow with the rule it breaks."""
    if isinstance(row, str):
        raise BadRow("not a JSON object")
    request_id, action, document = row.get("request_id"), row.get("action"), row.get("document")
    if not isinstance(request_id, str) or not request_id:
        raise BadRow("request_id is not text")
    if action not in ACTIONS:
        raise BadRow(f"action is not {' or '.join(ACTIONS)}")
    if document is not None and (not isinstance(document, str) or not document):
        raise BadRow("document is not text")
    position = _whole(row.get("position"), least=1, name="position")
    if document is None and position is None:
        raise BadRow("no document and no position")
    part = _whole(row.get("part"), least=0, name="part")
    return Event(
        request_id=request_id, action=action, document=document, position=position, part=part, at=_time(row.get("at"))
    )


def _whole(value: object, *, least: int, name: str) -> int | None:
    # A Parquet column of integers with nulls may come as floats from other tools.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        return value
    raise BadRow(f"{name} is not a whole number from {least}")


def _time(value: object) -> datetime.datetime | None:
    if value is None:
        return None
    try:
        found = datetime.datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise BadRow("at is not an ISO 8601 time") from None
    if not isinstance(found, datetime.datetime):
        raise BadRow("at is not an ISO 8601 time")
    if found.tzinfo is None:
        raise BadRow("at has no time zone")
    return found.astimezone(datetime.UTC)
