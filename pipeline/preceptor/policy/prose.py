"""The parts of policy.md that code reads: sections, anchor tables, worked examples and decided hard cases.

The forms are few and exact, so that a person can write them without a tool:

- the heading of a dimension's section ends in ``(`name`)``; the section reaches to the next heading of its level;
- its anchors stand in a table whose rows are ``| grade | anchor |``;
- a worked example is a list item ``- **Grade N.** ...`` in that section;
- a hard case is a heading ``#### C-001 Title``, prose, one line ``Grades: name N, ..., overall N`` and, where the case
  stands in precedents.jsonl, a line ``Precedent: `id` ``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from preceptor.contracts import OVERALL
from preceptor.policy.rubric import is_grade

_HEADING: Final = re.compile(r"(#{1,6})\s+(.*?)(?:\s+#+)?\s*$")
_NAMED: Final = re.compile(r"\(`(\w+)`\)$")
_EXAMPLE: Final = re.compile(r"- \*\*Grade ([0-4])\.\*\* (.*\S)")
_ALMOST_EXAMPLE: Final = re.compile(r"\s*[-*+]\s*(\*\*|__)\s*grade\s*\d+\s*[.:]?\s*\1", re.IGNORECASE)
_CASE: Final = re.compile(r"(C-\d+)\b[:.]?\s*(.*)")
_CASE_LEVEL: Final = 4
_GRADES: Final = "Grades: "
_ALMOST_GRADES: Final = re.compile(r"[\s>*_-]*grades?[*_\s]*:", re.IGNORECASE)
_PRECEDENT: Final = re.compile(r"Precedent: `([^`]+)`\s*")
_ALMOST_PRECEDENT: Final = re.compile(r"[\s>*_-]*precedents?[*_\s]*:", re.IGNORECASE)
_ROW: Final = re.compile(r"\s*\|\s*[*_]*(\d)[*_]*\s*\|\s*(.*?)\s*\|\s*$")

Problems = Iterator[tuple[int, str]]
"""(line, what is wrong there)."""

Lines = Sequence[tuple[int, str]]
"""Lines of the document with their numbers, from 1."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands under it, deeper headings included. `dimension` where the heading names one."""

    title: str
    level: int
    line: int
    dimension: str | None
    lines: Lines


@dataclass(frozen=True, kw_only=True)
class Example:
    """A worked example of one grade on one dimension."""

    dimension: str
    grade: int
    text: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """A decided hard case. `grades` and `grades_line` are None where its line of grades is missing or broken."""

    id: str
    title: str
    text: str
    line: int
    grades: Mapping[str, int] | None
    grades_line: int | None
    precedent: str | None
    precedent_line: int | None


def sections(document: str) -> tuple[Section, ...]:
    """Every section of `document` in its order; one holds the deeper ones under it. Fenced code is no heading."""
    lines = _outside_fences(document)
    heads = [(number, found) for number, line in lines if (found := _HEADING.match(line))]
    whole = []
    for index, (number, found) in enumerate(heads):
        level = len(found.group(1))
        after = (other for other, head in heads[index + 1 :] if len(head.group(1)) <= level)
        end = next(after, document.count("\n") + 2)
        named = _NAMED.search(found.group(2))
        whole.append(
            Section(
                title=found.group(2),
                level=level,
                line=number,
                dimension=named.group(1) if named else None,
                lines=[(at, line) for at, line in lines if number <= at < end],
            )
        )
    return tuple(whole)


def tables(document: str) -> tuple[Lines, ...]:
    """Each table of `document` as its numbered lines, header and rule first."""
    found: list[list[tuple[int, str]]] = []
    for number, line in _outside_fences(document):
        if not line.startswith("|"):
            continue
        if found and found[-1][-1][0] == number - 1:
            found[-1].append((number, line))
        else:
            found.append([(number, line)])
    return tuple(found)


def anchor_table(section: Section) -> Lines:
    """The rows (line, whole line) of the first table of the section that has a grade in its first column."""
    rows: list[tuple[int, str]] = []
    for number, line in section.lines:
        if _ROW.match(line):
            rows.append((number, line))
        elif rows:
            break
    return rows


def anchor_of(row: str) -> tuple[int, str]:
    """The grade and the text of a row of `anchor_table`."""
    found = _ROW.match(row)
    assert found is not None, "a row of an anchor table"
    return int(found.group(1)), found.group(2)


def examples(section: Section) -> tuple[tuple[Example, ...], tuple[tuple[int, str], ...]]:
    """The worked examples of a dimension's section, and (line, what is wrong) for list items that only look like one.

    Continuation lines belong to the item.
    """
    assert section.dimension is not None, "only a dimension's section has worked examples"
    found: list[Example] = []
    problems = []
    for index, (number, line) in enumerate(section.lines):
        match = _EXAMPLE.match(line)
        if match:
            text = " ".join([match.group(2), *_continued(section.lines[index + 1 :])])
            found.append(Example(dimension=section.dimension, grade=int(match.group(1)), text=text, line=number))
        elif _ALMOST_EXAMPLE.match(line):
            form = "'- **Grade N.** ' with N from 0 to 4, then its text"
            problems.append((number, f"a worked example starts {form}; got '{line.strip()[:40]}'. Write it so."))
    return tuple(found), tuple(problems)


def _continued(lines: Lines) -> Iterator[str]:
    for _, line in lines:
        if not line.strip() or re.match(r"\s*([-*+]|\d+\.)\s|#|\|", line):
            return
        yield line.strip()


def cases(document: str, names: Sequence[str]) -> tuple[tuple[Case, ...], tuple[tuple[int, str], ...]]:
    """The decided hard cases of `document`, and (line, what is wrong) with their form; `names` are the dimensions."""
    found: list[Case] = []
    problems: list[tuple[int, str]] = []
    first: dict[str, int] = {}
    for section in sections(document):
        head = _CASE.match(section.title)
        if head is None:
            continue
        case_id, title = head.groups()
        if section.level != _CASE_LEVEL or not title:
            problems.append((section.line, f"a hard case's heading is '#### {case_id} Title'. Write it so."))
        if first.setdefault(case_id, section.line) != section.line:
            problems.append((section.line, f"the case {case_id} stands on line {first[case_id]} already. Renumber it."))
        case, wrong = _case(section, case_id, title, names)
        found.append(case)
        problems += wrong
    return tuple(found), tuple(problems)


def _case(section: Section, case_id: str, title: str, names: Sequence[str]) -> tuple[Case, list[tuple[int, str]]]:
    body = section.lines[1:]
    problems: list[tuple[int, str]] = []
    grade_lines = [(number, line) for number, line in body if line.startswith(_GRADES)]
    grades: Mapping[str, int] | None = None
    if not grade_lines:
        at = next((number for number, line in body if _ALMOST_GRADES.match(line)), section.line)
        form = f"'{_GRADES}{', '.join(f'{name} N' for name in (*names, OVERALL))}'"
        problems.append((at, f"the case {case_id} has no line {form}. Write it so, on one line."))
    else:
        grades, wrong = read_grades(grade_lines[0], names)
        problems += wrong
        problems += [
            (number, f"the case {case_id} has a second line of grades. Keep one.") for number, _ in grade_lines[1:]
        ]
    named = [(number, match.group(1)) for number, line in body if (match := _PRECEDENT.fullmatch(line))]
    almost = [number for number, line in body if _ALMOST_PRECEDENT.match(line)]
    problems += [
        (number, f"the case {case_id} names its precedent on one line 'Precedent: `id`'. Write it so.")
        for number in almost
        if number not in {exact for exact, _ in named[:1]}
    ]
    precedent_line, precedent = named[0] if named else (None, None)
    marked = {*almost, *(number for number, _ in grade_lines)}
    case = Case(
        id=case_id,
        title=title,
        text=" ".join(line.strip() for number, line in body if number not in marked),
        line=section.line,
        grades=grades,
        grades_line=grade_lines[0][0] if grade_lines else None,
        precedent=precedent,
        precedent_line=precedent_line,
    )
    return case, problems


def loose_grades(document: str) -> Lines:
    """The lines that start 'Grades: ' outside every hard case, such as a worked example of the overall grade."""
    inside = {number for section in sections(document) if _CASE.match(section.title) for number, _ in section.lines}
    return [(at, line) for at, line in _outside_fences(document) if line.startswith(_GRADES) and at not in inside]


def read_grades(line: tuple[int, str], names: Sequence[str]) -> tuple[Mapping[str, int] | None, list[tuple[int, str]]]:
    """The grades of a numbered line 'Grades: name N, ..., overall N' (None where any is wrong) and what is wrong."""
    number, text = line
    grades: dict[str, int] = {}
    problems = []
    for part in text.removeprefix(_GRADES).strip().rstrip(".").split(","):
        name, _, grade = part.strip().rpartition(" ")
        name = name.strip()
        if not name or not grade.isdecimal():
            problems.append(f"'{part.strip()}' is no grade. Write 'name N'.")
        elif name not in (*names, OVERALL):
            problems.append(f"unknown dimension '{name}'. The rubric has: {', '.join(names)}, and {OVERALL}.")
        elif not is_grade(int(grade)):
            problems.append(f"unknown grade {grade} for '{name}'. Grades are 0 to 4.")
        elif name in grades:
            problems.append(f"'{name}' is graded twice. Keep one.")
        else:
            grades[name] = int(grade)
    if not problems:
        problems = [f"no grade for '{name}'. Add it." for name in (*names, OVERALL) if name not in grades]
    return (None if problems else grades), [(number, problem) for problem in problems]


def _outside_fences(document: str) -> Lines:
    """The numbered lines that are not in a fenced code block."""
    kept, fence = [], ""
    for number, line in enumerate(document.split("\n"), 1):
        mark = re.match(r"\s{0,3}(```+|~~~+)", line)
        if mark and not fence:
            fence = mark.group(1)
        elif mark and mark.group(1).startswith(fence):
            fence = ""
        elif not fence:
            kept.append((number, line))
    return kept
