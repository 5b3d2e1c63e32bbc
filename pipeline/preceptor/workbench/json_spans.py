"""Where the values of a JSON object stand in its text, so that one of them is replaced and nothing else moves."""

from __future__ import annotations

import json
from typing import Any, Final

_BLANK: Final = " \t\r\n"

Span = tuple[int, int]


def value_spans(text: str, start: int = 0) -> dict[str, Span]:
    """(start, end) of each value of the object that begins at `text[start]`, by key; ValueError where none does."""
    at = _past_blanks(text, start)
    if text[at : at + 1] != "{":
        raise ValueError(f"no JSON object at character {start}")
    spans: dict[str, Span] = {}
    decoder = json.JSONDecoder()
    at = _past_blanks(text, at + 1)
    while text[at : at + 1] == '"':
        key, at = decoder.raw_decode(text, at)
        at = _past_blanks(text, _past_blanks(text, at) + 1)
        _, end = decoder.raw_decode(text, at)
        spans[key] = (at, end)
        at = _past_blanks(text, end)
        if text[at : at + 1] == ",":
            at = _past_blanks(text, at + 1)
    return spans


def with_values(line: str, values: dict[str, Any]) -> str:
    """The one-line object `line` with the values of `values`, each replacing what stood there.

    A key is a path of one or two names, such as ``grades.role``. Where the value is the same already, its text stays.
    KeyError for a key the line has not.
    """
    edits: list[tuple[Span, str]] = []
    outer = value_spans(line)
    for path, value in values.items():
        key, dot, inner = path.partition(".")
        span = value_spans(line, outer[key][0])[inner] if dot else outer[key]
        if json.loads(line[slice(*span)]) != value:
            edits.append((span, json.dumps(value, ensure_ascii=False)))
    for (first, last), text in sorted(edits, reverse=True):
        line = line[:first] + text + line[last:]
    return line


def _past_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANK:
        at += 1
    return at
