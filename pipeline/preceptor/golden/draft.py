"""A draft: every grader's grades of a round, and what was decided where they differ. Not golden yet.

JSON Lines under ``golden/drafts/``: a line that says which round it is, one a task, one for each grader's answer, one a
decision. `load_golden` does not look there, and what tunes a judge cannot.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from preceptor.contracts import OVERALL, whole_file
from preceptor.errors import InputError, located
from preceptor.golden.answers import Answer, grade_of
from preceptor.golden.files import write_new
from preceptor.golden.rounds import Round, Task
from preceptor.policy.jsonl import read_lines
from preceptor.policy.rubric import Rubric, is_grade

DRAFTS: Final = "drafts"


@dataclass(frozen=True, kw_only=True)
class Graded:
    """One grader's grades of one task, by dimension, and the overall grade that follows; `source`: where they stood."""

    task: str
    grader: str
    grades: Mapping[str, int]
    reason: str | None
    source: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What one dimension of one task was settled on, by whom, and why."""

    task: str
    dimension: str
    grade: int
    decided_by: str
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A draft file as a value; lines in their order."""

    file: Path
    round: str
    policy_version: str
    dimensions: tuple[str, ...]
    tasks: tuple[Task, ...]
    graded: tuple[Graded, ...]
    decisions: tuple[Decision, ...]

    def by_task(self) -> dict[str, list[Graded]]:
        """The answers to each task that has any."""
        found: dict[str, list[Graded]] = {}
        for item in self.graded:
            found.setdefault(item.task, []).append(item)
        return found


def draft_of(round_: Round, answers: Iterable[Answer], rubric: Rubric, *, file: Path) -> Draft:
    """The draft of checked answers; the overall grade of each follows from the rubric's rule."""
    graded = []
    for answer in answers:
        grades = {name: grade for name in round_.dimensions if (grade := grade_of(answer.grades[name])) is not None}
        whole = {**grades, OVERALL: rubric.aggregate(grades)}
        graded.append(
            Graded(task=answer.task, grader=answer.grader, grades=whole, reason=answer.reason, source=answer.where)
        )
    return Draft(
        file=file,
        round=round_.id,
        policy_version=round_.policy_version,
        dimensions=round_.dimensions,
        tasks=round_.tasks,
        graded=tuple(graded),
        decisions=(),
    )


def write_draft(draft: Draft) -> Path:
    """The draft's file; InputError where something else stands there."""
    head = {"kind": "draft", "round": draft.round, "policy_version": draft.policy_version}
    lines = [{**head, "dimensions": draft.dimensions}, *_lines("task", draft.tasks), *_lines("graded", draft.graded)]
    write_new({draft.file: "".join(map(_dump, [*lines, *_lines("decision", draft.decisions)]))})
    return draft.file


def add_decisions(draft: Draft, decisions: Iterable[Decision]) -> Path:
    """The draft's file with `decisions` after what stands there, byte for byte; written whole or not at all."""
    before = draft.file.read_bytes()
    with whole_file(draft.file) as sink:
        sink.write(before + "".join(map(_dump, _lines("decision", decisions))).encode())
    return draft.file


def read_draft(file: Path) -> Draft:
    """The draft in `file`; InputError with the line where it is damaged."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such draft. Make one: preceptor golden import FILE... --out {file}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as a draft ({error}). Restore it or import again.") from error
    head: Mapping[str, Any] | None = None
    found: dict[str, list[Any]] = {"task": [], "graded": [], "decision": []}
    for line, raw, broken in read_lines(text):
        kind = raw.pop("kind", None)
        try:
            if broken is not None:
                raise ValueError(broken)
            if head is None:
                if kind != "draft":
                    raise ValueError("the first line must say which round the draft is of")
                head = raw
            else:
                found[kind].append(_READERS[kind](raw))
        except (KeyError, TypeError, ValueError) as error:
            message = f"not a line of a draft ({error}). Restore the file or import the answers again."
            raise InputError(located(message, file=file, line=line)) from error
    if head is None:
        raise InputError(f"{file}: an empty file is no draft. Import the answers again.")
    return Draft(
        file=file,
        round=head["round"],
        policy_version=head["policy_version"],
        dimensions=tuple(head["dimensions"]),
        tasks=tuple(found["task"]),
        graded=tuple(found["graded"]),
        decisions=tuple(found["decision"]),
    )


def _task(raw: Mapping[str, Any]) -> Task:
    return Task(**{**raw, "graders": tuple(raw["graders"])})


def _graded(raw: Mapping[str, Any]) -> Graded:
    wrong = [grade for grade in raw["grades"].values() if not is_grade(grade)]
    if wrong:
        raise ValueError(f"unknown grade {wrong[0]!r}")
    return Graded(**raw)


def _decision(raw: Mapping[str, Any]) -> Decision:
    if not is_grade(raw["grade"]):
        raise ValueError(f"unknown grade {raw['grade']!r}")
    return Decision(**raw)


_READERS: Final = {"task": _task, "graded": _graded, "decision": _decision}


def _lines(kind: str, items: Iterable[Task | Graded | Decision]) -> Iterator[dict[str, Any]]:
    return ({"kind": kind, **dataclasses.asdict(item)} for item in items)


def _dump(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
