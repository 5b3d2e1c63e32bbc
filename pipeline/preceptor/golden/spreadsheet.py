"""Spreadsheets: one row for each pair and grader, a column a dimension, and a page of anchors beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from preceptor.errors import InputError
from preceptor.golden.answers import Answer, Answers
from preceptor.golden.files import csv_rows, csv_text
from preceptor.golden.rounds import Round
from preceptor.policy import Policy

_BEFORE: Final = ("task", "grader", "query", "profile", "document")
_REASON: Final = "reason"


def tasks_csv(round_: Round) -> str:
    """The round as CSV, each grader's rows together, cells of grades empty."""
    clash = [name for name in round_.dimensions if name in (*_BEFORE, _REASON)]
    if clash:
        raise InputError(f"a column '{clash[0]}' is there before the dimension of that name. Use --format labelstudio.")
    rows = [
        {"task": task.id, "grader": grader, **{name: task.pair[name] for name in ("query", "profile", "document")}}
        for grader in round_.graders
        for task in round_.tasks
        if grader in task.graders
    ]
    return csv_text((*_BEFORE, *round_.dimensions, _REASON), rows)


def anchors_page(policy: Policy) -> str:
    """The dimensions with their five anchors, as Markdown to read beside the spreadsheet."""
    blocks = [f"# How to grade: {policy.rubric.name} {policy.version}"]
    for dimension in policy.rubric.dimensions:
        rows = [f"| {grade} | {anchor} |" for grade, anchor in enumerate(dimension.anchors)]
        table = "\n".join(["| grade | means |", "| --- | --- |", *rows])
        blocks.append(f"## {dimension.title} (`{dimension.name}`)\n\n{dimension.question}\n\n{table}")
    return "\n\n".join(blocks) + "\n"


def read_spreadsheet(file: Path) -> Answers:
    """The answers in a CSV that `tasks_csv` began; every column that is not of it counts as a dimension.

    Rows without any grade are counted and left out. InputError where the file is not such a CSV.
    """
    answers: list[Answer] = []
    num_empty = 0
    for line, row in csv_rows(file, needed=("task", "grader", _REASON)):
        cells = {name: text.strip() for name, text in row.items() if name not in (*_BEFORE, _REASON)}
        if not any(cells.values()):
            num_empty += 1
            continue
        answers.append(
            Answer(
                file=file,
                line=line,
                place=f"line {line}",
                task=row["task"].strip(),
                grader=row["grader"].strip(),
                grades={name: text for name, text in cells.items() if text},
                reason=row[_REASON].strip() or None,
            )
        )
    return Answers(answers=tuple(answers), skipped={"not graded": num_empty} if num_empty else {})
