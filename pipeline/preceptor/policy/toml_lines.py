"""Where tables and keys stand in a TOML text, which tomllib does not say."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import Final

_TWICE: Final = re.compile(r"Cannot overwrite a value|Cannot declare .* twice|Duplicate inline table key")
_KEY: Final = re.compile(r"""\s*(?:"([^"]+)"|'([^']+)'|([\w.-]+))\s*=""")


@dataclass(frozen=True, kw_only=True)
class TomlLines:
    """The lines of a TOML text. Line numbers count from 1; a start of 0 means the top, before any table."""

    lines: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> TomlLines:
        """The lines of `text`."""
        return cls(lines=tuple(text.splitlines()))

    def table(self, header: str, index: int = 0) -> int:
        """The line of the `index`-th (from 0) `header`, such as ``[[dimension]]``; 0 where it is not written so."""
        found = [number for number, line in self._from(0) if re.sub(r"\s*(#.*)?$", "", line).strip() == header]
        return found[index] if index < len(found) else 0

    def key(self, start: int, key: str) -> int | None:
        """The line of `key` in the table that begins at `start` or in its sub-tables; `start` where it is not found."""
        pattern = re.compile(rf"""\s*(?:\[\[?)?["']?{re.escape(key)}["']?\s*(?:=|\])""")
        for number, line in self._from(start):
            if number > start > 0 and line.lstrip().startswith("[["):
                break
            if pattern.match(line):
                return number
        return start or None

    def item(self, start: int, key: str, index: int) -> int | None:
        """The line of the `index`-th inline table of the list `key`, which has one on a line."""
        first = self.key(start, key) or 1
        found = [number for number, line in self._from(first) if "{" in line.split("#")[0]]
        return found[index] if index < len(found) else first

    def _from(self, start: int) -> list[tuple[int, str]]:
        first = max(start, 1)
        return list(enumerate(self.lines[first - 1 :], first))


def toml_problem(error: tomllib.TOMLDecodeError, text: str) -> tuple[int, str]:
    """The line of `text` where `error` stands, and what is wrong there; of a key written twice, which and where first.

    The reader's own words for that ("Cannot overwrite a value") tell a product manager nothing.
    """
    lines = text.splitlines()
    at = re.search(r"at line (\d+)", str(error))
    line = int(at.group(1)) if at else len(lines)
    if not _TWICE.match(str(error)):
        return line, f"not valid TOML: {error}. Mend the line, or a quote left open before it."
    if lines[line - 1].lstrip().startswith("["):
        header = lines[line - 1].split("#")[0].strip()
        return line, f"the table {header} is written twice{_first_at(lines, line, header)}. Keep one."
    if str(error).startswith("Duplicate inline"):
        name = re.findall(r"key '(.*)'", str(error))[0]
        return line, f"the key '{name}' is written twice on this line. Keep one."
    # The reader stops behind the value, which may have begun some lines before.
    line = next((number for number in range(line, 0, -1) if _KEY.match(lines[number - 1])), line)
    name = _name(lines[line - 1])
    what = f"grade {name}" if re.fullmatch(r"\d+", name) else f"the key '{name}'"
    return line, f"{what} is written twice in its table{_first_at(lines, line, name)}. Keep one."


def _name(line: str) -> str:
    found = _KEY.match(line)
    return next(filter(None, found.groups()), "") if found else ""


def _first_at(lines: list[str], line: int, wanted: str) -> str:
    """`` (first on line N)`` for the nearest line before `line` that holds the same key or header, or nothing."""
    before = (
        number
        for number in range(line - 1, 0, -1)
        if wanted in (_name(lines[number - 1]), lines[number - 1].split("#")[0].strip())
    )
    first = next(before, None)
    return f" (first on line {first})" if first is not None else ""
