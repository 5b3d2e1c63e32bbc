"""A decision as the smallest change of a policy file's text: what is not decided keeps its bytes.

Every function takes a file's text and returns it edited. What it returns is checked: the parsed content differs from
the old one in exactly what was asked for, or PolicyError says that the place is to be edited by hand.
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, Final

from preceptor.errors import PolicyError
from preceptor.policy.toml_lines import TomlLines
from preceptor.workbench.json_spans import with_values

_TOML_TEXT: Final = re.compile(r'"""(?:\\.|[^\\])*?"""' r"|'''.*?'''" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'", re.DOTALL)
_ROW: Final = re.compile(r"(\|\s*(\d)\s*\|\s*)(.*?)(\s*\|\s*)$")


def amend_anchor(rubric: str, *, dimension: str, grade: int, anchor: str) -> str:
    """The text of rubric.toml with that anchor."""
    names = [item.get("name") for item in tomllib.loads(rubric)["dimension"]]
    lines = TomlLines.of(rubric)
    number = lines.key(lines.table("[[dimension]]", names.index(dimension)), str(grade))
    assert number is not None, "a rubric that was read has a line for each anchor"
    start = _line_starts(rubric)[number - 1]
    assigned = rubric.find("=", start)
    found = _TOML_TEXT.search(rubric, assigned)
    if found is None or rubric[assigned + 1 : found.start()].strip():
        raise _by_hand(f"rubric.toml:{number}", f"anchor {grade} of '{dimension}' is not a quoted text")
    edited = rubric[: found.start()] + toml_text(anchor) + rubric[found.end() :]

    def expected(content: dict[str, Any]) -> None:
        content["dimension"][names.index(dimension)]["anchors"][str(grade)] = anchor

    return _checked_toml(rubric, edited, expected, f"rubric.toml:{number}")


def show_precedent(rubric: str, precedent_id: str) -> str:
    """The text of rubric.toml whose prompts show that precedent too, as their last."""
    return _with_item(rubric, "prompt", "precedents", precedent_id)


def declared_graders(rubric: str) -> tuple[str, ...]:
    """The names in ``[golden] graders`` of rubric.toml, whose grades count as golden; empty where none are declared."""
    return tuple(tomllib.loads(rubric).get("golden", {}).get("graders", ()))


def declare_grader(rubric: str, name: str) -> str:
    """The text of rubric.toml that declares `name` as a grader beside those it declares."""
    return _with_item(rubric, "golden", "graders", name)


def _with_item(rubric: str, table: str, key: str, item: str) -> str:
    """The text of rubric.toml with `item` at the end of the list `key` of `table`."""
    lines = TomlLines.of(rubric)
    number = lines.key(lines.table(f"[{table}]"), key)
    assert number is not None, "a rubric that was read has the list"
    start = _line_starts(rubric)[number - 1]
    opened = rubric.index("[", rubric.index("=", start))
    at, last = opened + 1, opened + 1
    while at < len(rubric) and rubric[at] != "]":
        if text := _TOML_TEXT.match(rubric, at):
            at = last = text.end()
        elif rubric[at] == "#":
            at = rubric.index("\n", at)
        else:
            at += 1
    separator = ", " if last > opened + 1 else ""
    edited = f"{rubric[:last]}{separator}{toml_text(item)}{rubric[last:]}"

    def expected(content: dict[str, Any]) -> None:
        content[table][key].append(item)

    return _checked_toml(rubric, edited, expected, f"rubric.toml:{number}")


def amend_row(document: str, *, dimension: str, grade: int, anchor: str) -> str:
    """The text of policy.md with that anchor in the table of the dimension's section."""
    inside, found = False, 0
    lines = document.splitlines(keepends=True)
    for index, line in enumerate(lines):
        if line.startswith("#"):
            inside = re.search(rf"\(`{re.escape(dimension)}`\)\s*$", line) is not None
        row = _ROW.match(line) if inside else None
        if row and int(row.group(2)) == grade:
            ending = line[row.end() :]
            lines[index] = f"{row.group(1)}{anchor}{row.group(4)}{ending}"
            found += 1
    if found != 1:
        raise _by_hand("policy.md", f"the section of '{dimension}' has {found} table rows for grade {grade}, not one")
    return "".join(lines)


def edit_line(text: str, number: int, values: Mapping[str, Any]) -> str:
    """The text of a JSON Lines file whose line `number` (from 1) has `values` (see `with_values`)."""
    lines = text.split("\n")
    before = lines[number - 1]
    lines[number - 1] = with_values(before, dict(values))
    return "\n".join(lines)


def drop_line(text: str, number: int) -> str:
    """The text of a JSON Lines file without its line `number` (from 1)."""
    lines = text.split("\n")
    del lines[number - 1]
    return "\n".join(lines)


def append_line(text: str, content: Mapping[str, Any]) -> str:
    """The text of a JSON Lines file with `content` as its last line, ended as the others are."""
    ending = "\r\n" if "\r\n" in text else "\n"
    before = text if not text or text.endswith("\n") else text + ending
    return f"{before}{json.dumps(content, ensure_ascii=False)}{ending}"


def toml_text(text: str) -> str:
    """`text` as a TOML basic string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _line_starts(text: str) -> list[int]:
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def _checked_toml(before: str, after: str, expected: Callable[[dict[str, Any]], None], where: str) -> str:
    wanted = copy.deepcopy(tomllib.loads(before))
    expected(wanted)
    try:
        same = tomllib.loads(after) == wanted
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        raise _by_hand(where, "the line is written in a way that this change would break")
    return after


def _by_hand(where: str, why: str) -> PolicyError:
    return PolicyError(f"{where}: {why}. Edit it by hand, then reload the page.")
