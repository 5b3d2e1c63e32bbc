"""Where tables and keys stand in a TOML text, which tomllib does not say."""

from __future__ import annotations

import re
from dataclasses import dataclass


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
