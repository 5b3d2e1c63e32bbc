"""The industries of the market, read from industries.toml beside this module, and what carries over between them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, kw_only=True)
class Industries:
    """Every industry's words, group and close relatives; `settings` are the industries of each family of roles."""

    words: Mapping[str, tuple[str, ...]]
    groups: Mapping[str, str]
    close: frozenset[tuple[str, str]]
    settings: Mapping[str, tuple[str, ...]]

    def relation(self, known: str, offered: str) -> int:
        """The industry grade where nothing is ruled out: 4 the same, 3 close, 2 of one group, 1 unrelated."""
        if known == offered:
            return 4
        if (known, offered) in self.close or (offered, known) in self.close:
            return 3
        return 2 if self.groups[known] == self.groups[offered] else 1


@cache
def industries() -> Industries:
    """The industries of industries.toml, read once."""
    raw = tomllib.loads(files("preceptor.market").joinpath("industries.toml").read_text(encoding="utf-8"))
    entries = raw["industries"]
    return Industries(
        words={name: tuple(entry["words"]) for name, entry in entries.items()},
        groups={name: entry["group"] for name, entry in entries.items()},
        close=frozenset((name, other) for name, entry in entries.items() for other in entry.get("close", ())),
        settings={family: tuple(names) for family, names in raw["settings"].items()},
    )
