"""What policy.md says otherwise than rubric.toml and precedents.jsonl, and what it leaves out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from preceptor.contracts import NUM_GRADES
from preceptor.policy.document import DOCUMENT, PRECEDENTS, RUBRIC, Policy
from preceptor.policy.findings import Finding, error_at, warning_at
from preceptor.policy.prose import (
    Case,
    Section,
    anchor_of,
    anchor_table,
    cases,
    examples,
    loose_grades,
    read_grades,
    sections,
    tables,
)
from preceptor.policy.rubric import Cap, Dimension

_NUM_TOP_LINES: Final = 10
_VERSION: Final = re.compile(r"[*_]*Version:?[*_]* (\d+\.\d+\.\d+)")
_WEIGHT: Final = re.compile(r"\bWeight:? (\d+(?:\.\d+)?)")
_QUESTION: Final = re.compile(r"\*([^*]+\?)\*")
_CAP: Final = re.compile(
    r"\|\s*(.+?)\s+(?:is|are)\s+(?:at most\s+)?(\d)(?:\s+or\s+(?:less|lower|below))?\s*"
    r"\|\s*(?:at most\s+)?(\d)\s*\|\s*$"
)


def document_findings(policy: Policy) -> Iterator[Finding]:
    """What is wrong with the prose, taken by itself and against the other files."""
    file = policy.path / DOCUMENT
    found: dict[str, Section] = {}
    for section in sections(policy.document):
        name = section.dimension
        if name is None:
            continue
        if name not in policy.rubric.names:
            yield error_at(file, section.line, f"a section for '{name}', which {RUBRIC} lacks. Add or remove it.")
        elif name in found:
            message = f"a second section for '{name}'; the first is on line {found[name].line}. Merge them."
            yield error_at(file, section.line, message)
        found.setdefault(name, section)
    for dimension in policy.rubric.dimensions:
        if dimension.name in found:
            yield from _section_findings(file, found[dimension.name], dimension)
        else:
            heading = f"### {dimension.title} (`{dimension.name}`)"
            # Nothing stands where it should be: the reader is sent to where it would go, behind the last section.
            after = max((section.line for section in found.values()), default=1)
            yield error_at(file, after, f"no section for dimension '{dimension.name}'. Add the heading: {heading}")
    yield from _cap_findings(policy, file)
    yield from _case_findings(policy, file)
    for number, line in enumerate(policy.document.split("\n")[:_NUM_TOP_LINES], 1):
        if (said := _VERSION.match(line)) and said.group(1) != policy.rubric.version:
            message = f"the document calls itself {said.group(1)}, {RUBRIC} {policy.rubric.version}. Mend one of them."
            yield error_at(file, number, message)
    if policy.rubric.version not in policy.document:
        message = f"the changelog does not mention version {policy.rubric.version} of {RUBRIC}. Say what changed."
        heads = [section.line for section in sections(policy.document) if "changelog" in section.title.casefold()]
        yield warning_at(file, heads[0] if heads else policy.document.count("\n"), message)


def _section_findings(file: Path, section: Section, dimension: Dimension) -> Iterator[Finding]:
    rows = anchor_table(section)
    seen: dict[int, int] = {}
    for number, row in rows:
        grade, text = anchor_of(row)
        if grade in seen:
            message = f"the table gives grade {grade} twice; first on line {seen[grade]}. Keep one."
            yield error_at(file, number, message)
        seen.setdefault(grade, number)
        if grade >= NUM_GRADES:
            yield error_at(file, number, f"the table has an unknown grade {grade}. Grades are 0 to 4.")
        elif dimension.anchors[grade] != text:
            message = f"the table's grade {grade} differs from {RUBRIC}. Copy the anchor: one text, one meaning."
            yield error_at(file, number, message)
    for grade in range(NUM_GRADES):
        if grade not in seen:
            row = f"| {grade} | {dimension.anchors[grade]} |"
            message = f"the section of '{dimension.name}' has no anchor for grade {grade}. Add the row: {row}"
            yield error_at(file, section.line, message)
    for number, line in section.lines:
        if rows and number >= rows[0][0]:
            break
        if (weight := _WEIGHT.search(line)) and float(weight.group(1)) != dimension.weight:
            message = f"weight {weight.group(1)}, but {RUBRIC} has {dimension.weight:g}. Mend one of them."
            yield error_at(file, number, message)
        if (asked := _QUESTION.match(line)) and asked.group(1) != dimension.question:
            message = f"the question differs from {RUBRIC}, which asks: {dimension.question} Copy it."
            yield warning_at(file, number, message)
    _, broken = examples(section)
    yield from (error_at(file, number, message) for number, message in broken)


def _cap_findings(policy: Policy, file: Path) -> Iterator[Finding]:
    """How a table of caps in the prose, with rows such as ``| pay or place is 0 | 2 |``, differs from the rubric's.

    A table with a row in other words is not asked for the caps it lacks: that row may hold them.
    """
    stated: dict[Cap, int] = {}
    is_whole = True
    for table in tables(policy.document):
        rows = {number: _caps_of(line, policy.rubric.names) for number, line in table[2:]}
        if any(rows.values()):
            is_whole = is_whole and all(rows.values())
            stated |= {cap: number for number, caps in rows.items() for cap in caps}
    for cap, number in stated.items():
        if cap not in policy.rubric.caps:
            yield error_at(file, number, f"the table caps {cap.dimension} otherwise than {RUBRIC}. Mend one of them.")
    for cap in policy.rubric.caps if stated and is_whole else ():
        if cap not in stated:
            row = f"| {cap.dimension} is {cap.at_most} | {cap.overall} |"
            yield error_at(file, min(stated.values()), f"the table lacks a cap of {RUBRIC}. Add the row: {row}")


def _caps_of(row: str, names: Sequence[str]) -> list[Cap]:
    """The caps that a row states, one for each dimension it names; none where it is no such row."""
    found = _CAP.match(row)
    named = re.findall(r"\w+", found.group(1)) if found else []
    dimensions = [name for name in named if name not in ("or", "and")]
    if found is None or not {*dimensions} <= {*names}:
        return []
    at_most, overall = int(found.group(2)), int(found.group(3))
    return [Cap(dimension=name, at_most=at_most, overall=overall) for name in dimensions]


def _case_findings(policy: Policy, file: Path) -> Iterator[Finding]:
    names = policy.rubric.names
    found, broken = cases(policy.document, names)
    yield from (error_at(file, number, message) for number, message in broken)
    for case in found:
        if case.grades is not None and (message := policy.rubric.contradiction(case.grades)):
            yield error_at(file, case.grades_line, f"case {case.id}: {message}")
        yield from _named_precedent_findings(policy, file, case)
    for line in loose_grades(policy.document):
        grades, problems = read_grades(line, names)
        yield from (error_at(file, number, problem) for number, problem in problems)
        if grades is not None and (message := policy.rubric.contradiction(grades)):
            yield error_at(file, line[0], message)


def _named_precedent_findings(policy: Policy, file: Path, case: Case) -> Iterator[Finding]:
    if case.precedent is None:
        return
    named = next((precedent for precedent in policy.precedents if precedent.id == case.precedent), None)
    if named is None:
        message = f"case {case.id} names the precedent '{case.precedent}', which {PRECEDENTS} lacks. Add or mend it."
        yield error_at(file, case.precedent_line, message)
    elif case.grades is not None and case.grades != named.grades:
        differ = ", ".join(
            f"{name} {grade}, there {named.grades[name]}"
            for name, grade in case.grades.items()
            if grade != named.grades[name]
        )
        message = f"case {case.id} is graded otherwise than {PRECEDENTS}:{named.line} '{named.id}': {differ}. Mend one."
        yield error_at(file, case.grades_line, message)
