"""A policy as one value: rubric, prose and precedents, under one version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from preceptor.contracts import content_id
from preceptor.policy.findings import Finding, error_at, read_text, refuse
from preceptor.policy.precedents import Precedent, read_precedents
from preceptor.policy.rubric import Rubric, read_rubric

RUBRIC: Final = "rubric.toml"
DOCUMENT: Final = "policy.md"
PRECEDENTS: Final = "precedents.jsonl"
FILES: Final = (RUBRIC, DOCUMENT, PRECEDENTS)
"""What a policy's version covers, in the order of its hash."""
GOLDEN_DIR: Final = "golden"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A loaded policy. `document` is the prose; `version` is the rubric's version, '+', and 8 hex digits that change
    with every byte of rubric, prose and precedents (golden pairs are measured with it, not part of it)."""

    path: Path
    rubric: Rubric
    document: str
    precedents: tuple[Precedent, ...]
    version: str


def load_policy(path: Path) -> Policy:
    """The policy in the directory `path`; PolicyError with file and line for the first rule it breaks."""
    policy, findings = read_policy(path)
    refuse(findings)
    assert policy is not None, "a policy without findings is whole"
    return policy


def read_policy(path: Path) -> tuple[Policy | None, tuple[Finding, ...]]:
    """The policy in `path` and what is wrong with it; None where the rubric cannot be read.

    Precedents that cannot be read are left out of the policy and stand in the findings.
    """
    return policy_of({name: read_text(path / name) for name in FILES}, path)


def policy_of(texts: Mapping[str, str], path: Path) -> tuple[Policy | None, tuple[Finding, ...]]:
    """What `read_policy` returns, of the texts of FILES by name; `path` says in messages where they come from."""
    rubric, findings = read_rubric(texts[RUBRIC], path / RUBRIC)
    if rubric is None:
        return None, findings
    precedents, precedent_findings = read_precedents(texts[PRECEDENTS], path / PRECEDENTS, rubric)
    unknown = [shown for shown in rubric.shown if shown not in {precedent.id for precedent in precedents}]
    shown_findings = tuple(
        error_at(
            path / RUBRIC,
            _line_with(texts[RUBRIC], f'"{shown}"'),
            f"[prompt] shows the precedent '{shown}', which {PRECEDENTS} lacks. Add it there or remove it here.",
        )
        for shown in unknown
    )
    policy = Policy(
        path=path,
        rubric=rubric,
        document=texts[DOCUMENT],
        precedents=precedents,
        version=f"{rubric.version}+{content_id(*(texts[name] for name in FILES))[:8]}",
    )
    return policy, (*precedent_findings, *shown_findings)


def _line_with(text: str, part: str) -> int | None:
    return next((number for number, line in enumerate(text.splitlines(), 1) if part in line), None)
