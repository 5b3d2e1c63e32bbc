"""Reading graded pairs, one JSON object to a line, and the checks that precedents and golden share."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from preceptor.contracts import OVERALL
from preceptor.policy.rubric import Rubric, is_grade


def read_lines(text: str) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    """(line number from 1, object, None) for each line that is not blank, or (line, {}, what is wrong with it)."""
    # Not splitlines(): a posting may hold U+2028, which JSON allows unescaped and splitlines() would cut at.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line, object_pairs_hook=_unique)
        except ValueError as error:
            yield number, {}, f"not valid JSON: {error}. Write one whole object on each line."
            continue
        if isinstance(raw, dict):
            yield number, raw, None
        else:
            yield number, {}, f"a line must be one JSON object, got {type(raw).__name__}."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"the key '{twice[0]}' is written twice")
    return dict(pairs)


def key_problems(
    raw: Mapping[str, Any],
    *,
    required: tuple[str, ...],
    texts: tuple[str, ...],
    may_be_empty: tuple[str, ...],
) -> Iterator[str]:
    """What is wrong with the object's keys and with its text values."""
    for key in required:
        if key not in raw:
            yield f"no '{key}'. A line has: {', '.join(required)}."
    for key in raw:
        if key not in required:
            yield f"unknown key '{key}'. A line has: {', '.join(required)}."
    for key in (*texts, *may_be_empty):
        if key in raw and not isinstance(raw[key], str):
            yield f"'{key}' must be text, got {raw[key]!r}."
        elif key in texts and key in raw and not raw[key].strip():
            yield f"'{key}' is empty. Fill it or remove the line."
        elif key in raw and re.search("[\ud800-\udfff]", raw[key]):
            yield f"'{key}' holds half a character (a lone surrogate escape). Write the whole character."


def grade_problems(raw: Mapping[str, Any], rubric: Rubric, *, required: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with the object's 'grades'; `required` names the dimensions that must be graded."""
    if "grades" not in raw:
        return
    grades = raw["grades"]
    if not isinstance(grades, dict):
        yield f"'grades' must map dimensions to grades, got {grades!r}."
        return
    for name, grade in grades.items():
        if name != OVERALL and name not in rubric.names:
            yield f"unknown dimension '{name}'. The rubric has: {', '.join(rubric.names)}, and {OVERALL}."
        if not is_grade(grade):
            yield f"unknown grade {grade!r} for '{name}'. Grades are the whole numbers 0 to 4."
    for name in required:
        if name not in grades:
            yield f"no grade for '{name}', which every line here decides. Add it."
