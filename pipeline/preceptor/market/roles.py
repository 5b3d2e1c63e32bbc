"""The roles of the market, read from roles.toml beside this module, and how they relate."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

LEVELS: Final = ("trainee", "junior", "mid", "senior", "lead")
REMOTE_FAMILIES: Final = frozenset(
    {
        *("software", "data", "it_operations", "product", "design", "marketing", "sales", "support"),
        *("finance", "banking", "legal", "office", "people"),
    }
)
"""Families whose work can be done from home."""


@dataclass(frozen=True, kw_only=True)
class Role:
    """One role of roles.toml. `skills` are canonical names; `pay` is thousands a year for trainee and for lead."""

    name: str
    family: str
    titles: tuple[str, ...]
    skills: tuple[str, ...]
    duties: tuple[str, ...]
    needs: tuple[str, ...]
    pay: tuple[int, int]

    def typical_pay(self, level: int) -> float:
        """Thousands of pounds a year at `level` (index of LEVELS), by equal ratios between trainee and lead."""
        low, high = self.pay
        return low * (high / low) ** (level / (len(LEVELS) - 1))


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All roles, their relations, and other ways to say a skill or credential."""

    roles: Mapping[str, Role]
    families: Mapping[str, tuple[str, ...]]
    adjacent: Mapping[str, tuple[str, ...]]
    siblings: Mapping[str, tuple[str, ...]]
    lookalikes: Mapping[str, tuple[str, ...]]
    skill_wordings: Mapping[str, tuple[str, ...]]
    credential_wordings: Mapping[str, tuple[str, ...]]

    def relation(self, wanted: str, offered: str) -> int:
        """The role grade: 4 same, 3 sibling, 2 same family, 1 adjacent family, 0 unrelated."""
        if wanted == offered:
            return 4
        if offered in self.siblings[wanted]:
            return 3
        family, other = self.roles[wanted].family, self.roles[offered].family
        if family == other:
            return 2
        return 1 if other in self.adjacent[family] else 0

    def related(self, wanted: str, grade: int) -> tuple[str, ...]:
        """The names of the roles at role grade `grade` from `wanted`, in catalogue order."""
        return _related(wanted)[grade]


@cache
def catalogue() -> Catalogue:
    """The catalogue of roles.toml, read once."""
    raw = tomllib.loads(files("preceptor.market").joinpath("roles.toml").read_text(encoding="utf-8"))
    adjacent = raw.pop("adjacent")
    credentials = raw.pop("credentials")
    roles = {name: _role(name, family, entry) for family, entries in raw.items() for name, entry in entries.items()}
    families = {family: tuple(entries) for family, entries in raw.items()}
    listed = {
        (name, other) for entries in raw.values() for name, e in entries.items() for other in e.get("siblings", ())
    }
    return Catalogue(
        roles=roles,
        families=families,
        adjacent=_both_ways({(a, b) for a, others in adjacent.items() for b in others}, families),
        siblings=_both_ways(listed, roles),
        lookalikes=_lookalikes(roles),
        skill_wordings=_skill_wordings(raw),
        credential_wordings={name: (name, *others) for name, others in credentials.items()},
    )


@cache
def _related(wanted: str) -> tuple[tuple[str, ...], ...]:
    known = catalogue()
    grades = {name: known.relation(wanted, name) for name in known.roles}
    return tuple(tuple(name for name, found in grades.items() if found == grade) for grade in range(5))


def _role(name: str, family: str, entry: Mapping[str, Any]) -> Role:
    return Role(
        name=name,
        family=family,
        titles=tuple(entry["titles"]),
        skills=tuple(skill.split("|")[0] for skill in entry["skills"]),
        duties=tuple(entry["duties"]),
        needs=tuple(entry.get("needs", ())),
        pay=(entry["pay"][0], entry["pay"][1]),
    )


def _both_ways(relation: set[tuple[str, str]], names: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    either = relation | {(b, a) for a, b in relation}
    return {name: tuple(other for other in names if (name, other) in either) for name in names}


def _skill_wordings(raw: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for entries in raw.values():
        for entry in entries.values():
            for skill in entry["skills"]:
                wordings = tuple(skill.split("|"))
                found[wordings[0]] = max(found.get(wordings[0], ()), wordings, key=len)
    return found


def _lookalikes(roles: Mapping[str, Role]) -> dict[str, tuple[str, ...]]:
    """For each role, the roles of other families that share a word of a title with it."""
    words = {name: {word.lower() for title in role.titles for word in title.split()} for name, role in roles.items()}
    by_word: dict[str, list[str]] = defaultdict(list)
    for name, own in words.items():
        for word in sorted(own):
            by_word[word].append(name)
    return {
        name: tuple(
            sorted({other for word in own for other in by_word[word] if roles[other].family != roles[name].family})
        )
        for name, own in words.items()
    }
