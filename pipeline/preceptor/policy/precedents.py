"""Decided hard cases: pairs whose grades the policy's owners have settled, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from preceptor.contracts import OVERALL
from preceptor.policy.findings import Finding, error_at
from preceptor.policy.jsonl import grade_problems, key_problems, read_lines
from preceptor.policy.rubric import Rubric

_KEYS: Final = ("id", "query", "profile", "document", "grades", "reason")


@dataclass(frozen=True, kw_only=True)
class Precedent:
    """One decided case. `grades` has every dimension and 'overall'; `line` is its line in precedents.jsonl."""

    id: str
    query: str
    profile: str
    document: str
    grades: Mapping[str, int]
    reason: str
    line: int


def read_precedents(text: str, file: Path, rubric: Rubric) -> tuple[tuple[Precedent, ...], tuple[Finding, ...]]:
    """The precedents in `text` that can be read, and what is wrong with the others."""
    precedents: list[Precedent] = []
    findings: list[Finding] = []
    for line, raw, broken in read_lines(text):
        problems = [broken] if broken else list(_problems(raw, rubric, precedents))
        findings += [error_at(file, line, message) for message in problems]
        if not problems:
            precedents.append(Precedent(**raw, line=line))
    return tuple(precedents), tuple(findings)


def _problems(raw: Mapping[str, Any], rubric: Rubric, before: list[Precedent]) -> Iterator[str]:
    yield from key_problems(raw, required=_KEYS, texts=("id", "document", "reason"), may_be_empty=("query", "profile"))
    yield from grade_problems(raw, rubric, required=(*rubric.names, OVERALL))
    for other in before:
        if other.id == raw.get("id"):
            yield f"the id '{other.id}' is taken by line {other.line}. Choose another."
        if (other.query, other.profile, other.document) == tuple(raw.get(k) for k in ("query", "profile", "document")):
            yield f"the same pair is decided on line {other.line}. Keep one of them."
