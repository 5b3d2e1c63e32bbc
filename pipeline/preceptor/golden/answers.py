"""What graders sent back, whatever tool they used, and the checks that every row must pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preceptor.contracts import NUM_GRADES
from preceptor.golden.rounds import Round
from preceptor.policy.findings import Finding, error_at


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One person's grades of one task, as written. `place` says where in `file`; `line` where that is a line."""

    file: Path
    line: int | None
    place: str
    task: str
    grader: str
    grades: Mapping[str, str]
    reason: str | None

    @property
    def where(self) -> str:
        """``file, task 12`` or ``file:7``."""
        return f"{self.file.name}:{self.line}" if self.line is not None else f"{self.file.name}, {self.place}"

    def finding(self, message: str) -> Finding:
        """`message` at this answer's place."""
        return error_at(self.file, self.line, message if self.line is not None else f"{self.place}: {message}")


@dataclass(frozen=True, kw_only=True)
class Answers:
    """All answers of one or more files, what could not be read, and how many tasks nobody has answered there."""

    answers: tuple[Answer, ...] = ()
    findings: tuple[Finding, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)


def together(parts: Iterable[Answers]) -> Answers:
    """The parts as one, in their order."""
    listed = tuple(parts)
    return Answers(
        answers=tuple(answer for part in listed for answer in part.answers),
        findings=tuple(finding for part in listed for finding in part.findings),
        skipped=dict(sum((Counter(part.skipped) for part in listed), Counter())),
    )


def round_id(answers: Sequence[Answer]) -> str:
    """The id of the round that most answers belong to: what stands before the dash of their tasks."""
    counts = Counter(answer.task.partition("-")[0] for answer in answers)
    return min(counts, key=lambda id: (-counts[id], id), default="")


def problems(answers: Iterable[Answer], round_: Round, *, graders: Sequence[str]) -> Iterator[Finding]:
    """What is wrong with the answers: unknown grader, pair, dimension or grade, grades that lack, rows that repeat."""
    tasks = {task.id for task in round_.tasks}
    first: dict[tuple[str, str], Answer] = {}
    for answer in answers:
        if answer.grader not in graders:
            # Label Studio exports its users' numbers.
            hint = f" Say who that is: --users {answer.grader}=NAME." if answer.grader.isdigit() else ""
            yield answer.finding(f"unknown grader '{answer.grader}'. Declared are: {', '.join(graders)}.{hint}")
        if answer.task not in tasks:
            yield answer.finding(f"unknown pair: round {round_.id} has no task '{answer.task}'. Restore its id.")
        before = first.setdefault((answer.task, answer.grader), answer)
        if before is not answer:
            yield answer.finding(
                f"'{answer.grader}' has graded task '{answer.task}' at {before.where} already. Keep one of them."
            )
        for message in _grade_problems(answer.grades, round_.dimensions):
            yield answer.finding(message)


def grade_of(text: str) -> int | None:
    """The grade that `text` writes, or None where it is none of the five."""
    stripped = text.strip()
    return int(stripped) if stripped in {str(grade) for grade in range(NUM_GRADES)} else None


def _grade_problems(grades: Mapping[str, str], dimensions: Sequence[str]) -> Iterator[str]:
    known = ", ".join(dimensions)
    for name, text in grades.items():
        if name not in dimensions:
            yield f"unknown dimension '{name}'. The round has: {known}."
        elif grade_of(text) is None:
            yield f"unknown grade '{text}' for '{name}'. Grades are the whole numbers 0 to 4."
    missing = [name for name in dimensions if name not in grades]
    if missing:
        yield f"no grade for {', '.join(missing)}. Every dimension is graded, or the task is left out whole."
