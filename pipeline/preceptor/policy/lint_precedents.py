"""Precedents that contradict the aggregation rule, the grades and anchors their own reasons cite, or each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from preceptor.contracts import OVERALL
from preceptor.policy.document import PRECEDENTS, Policy
from preceptor.policy.findings import Finding, error_at, warning_at
from preceptor.policy.precedents import Precedent
from preceptor.policy.rubric import Rubric
from preceptor.policy.similar import Similar, words_of

_CLAUSE: Final = re.compile(r"[^.;:,!?()\n]+")
_SUPPOSED: Final = re.compile(
    r"\b(not|no|never|nor|neither|without|would|could|might|if|unless|until|than|instead|against|but for)\b",
    re.IGNORECASE,
)
"""A clause with one of these speaks of what the grade is not, or might be."""
_QUOTED: Final = re.compile(r"\"([^\"]+)\"|“([^”]+)”|`([^`]+)`")


def precedent_findings(policy: Policy) -> Iterator[Finding]:
    """What is wrong with the precedents beyond their form."""
    file = policy.path / PRECEDENTS
    for precedent in policy.precedents:
        if message := policy.rubric.contradiction(precedent.grades):
            yield error_at(file, precedent.line, f"precedent '{precedent.id}': {message}")
        for message in _cited_otherwise(precedent, policy.rubric):
            yield error_at(file, precedent.line, f"precedent '{precedent.id}': {message}")
    yield from _contradict_each_other(policy)


def _cited_otherwise(precedent: Precedent, rubric: Rubric) -> Iterator[str]:
    """Where the reason speaks of a grade ("place 0") or quotes an anchor, and the precedent is graded otherwise.

    A reason may speak of other grades too ("five days on site would be place 1"); clauses that suppose are not read,
    and a dimension whose own grade is cited as well is taken at its word.
    """
    cited: dict[str, list[int]] = {}
    for clause in _CLAUSE.findall(precedent.reason):
        if not _SUPPOSED.search(clause):
            for name, grade in _cited_grades(clause, rubric):
                cited.setdefault(name, []).append(grade)
    for name, grades in cited.items():
        if precedent.grades[name] not in grades:
            grade = grades[0]
            yield f"its reason says {name} {grade}, but it is graded {name} {precedent.grades[name]}. Mend one of them."
    for quoted in _QUOTED.finditer(precedent.reason):
        text = next(filter(None, quoted.groups()))
        matches = [
            (item.name, grade)
            for item in rubric.dimensions
            for grade, anchor in enumerate(item.anchors)
            if words_of(anchor) == words_of(text)
        ]
        if matches and all(precedent.grades[name] != grade for name, grade in matches):
            name, grade = matches[0]
            yield (
                f'its reason quotes the anchor of {name} {grade}, "{text}", but it is graded {name} '
                f"{precedent.grades[name]}. Mend one of them."
            )


def _cited_grades(clause: str, rubric: Rubric) -> Iterator[tuple[str, int]]:
    for name in rubric.names:
        spoken = re.escape(name).replace("_", "[ _]")
        for grade in re.findall(rf"\b{spoken}`?(?: is| at| =)? ([0-4])\b", clause, re.IGNORECASE):
            yield name, int(grade)
    # "Caps overall at 2" is true of a 1 as well; only what is said to be, or made, the overall grade counts.
    for grade in re.findall(rf"\b{OVERALL}`?(?: is| =)? ([0-4])\b(?! at most)", clause, re.IGNORECASE):
        yield OVERALL, int(grade)


def _contradict_each_other(policy: Policy) -> Iterator[Finding]:
    file = policy.path / PRECEDENTS
    texts = [words_of(precedent.query, precedent.profile, precedent.document) for precedent in policy.precedents]
    index = Similar(texts)
    for number, precedent in enumerate(policy.precedents):
        for near in index.near(texts[number]):
            if near.index >= number:
                continue
            other = policy.precedents[near.index]
            differ = _differing(other, precedent)
            place = f"line {other.line} '{other.id}'"
            if texts[near.index] == texts[number]:
                verdict = f"and grades it otherwise: {differ}" if differ else "with the same grades"
                message = f"precedent '{precedent.id}' decides the same pair as {place} {verdict}. Keep one of them."
                yield error_at(file, precedent.line, message)
            elif differ:
                message = (
                    f"precedent '{precedent.id}' differs from {place} only in '{near.theirs}' for '{near.ours}' "
                    f"and is graded otherwise: {differ}. See that its reason says why, or mend one."
                )
                yield warning_at(file, precedent.line, message)


def _differing(before: Precedent, after: Precedent) -> str:
    return ", ".join(
        f"{name} {grade}, there {before.grades[name]}"
        for name, grade in after.grades.items()
        if grade != before.grades[name]
    )
