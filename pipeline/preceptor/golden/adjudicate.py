"""Where graders differ: a worklist for a third decision, and the decisions read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from preceptor.golden.answers import grade_of
from preceptor.golden.draft import Decision, Draft, Graded
from preceptor.golden.files import csv_rows, csv_text
from preceptor.golden.graders import JOINT, undeclared
from preceptor.golden.rounds import Task
from preceptor.policy import Policy
from preceptor.policy.findings import Finding, error_at

_ASKED: Final = ("task", "dimension", "decision", "decided_by", "why")
_COLUMNS: Final = (
    *("task", "dimension", "grades", "reasons", "question", "anchors", "query", "profile", "document"),
    *("decision", "decided_by", "why"),
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A dimension of a task on which its graders differ; `answers` are theirs."""

    task: Task
    dimension: str
    answers: tuple[Graded, ...]

    @property
    def distance(self) -> int:
        """Grades between the highest and the lowest, 1 to 4."""
        grades = [answer.grades[self.dimension] for answer in self.answers]
        return max(grades) - min(grades)


def differences(draft: Draft) -> tuple[Difference, ...]:
    """Every dimension on which graders of one pair differ, settled or not, widest first; vigilance items aside."""
    answers = draft.by_task()
    found = [
        Difference(task=task, dimension=dimension, answers=tuple(answers[task.id]))
        for task in draft.tasks
        if task.known is None and len(answers.get(task.id, ())) > 1
        for dimension in draft.dimensions
        if len({answer.grades[dimension] for answer in answers[task.id]}) > 1
    ]
    return tuple(sorted(found, key=lambda one: (-one.distance, one.task.id)))


def undecided(draft: Draft) -> tuple[Difference, ...]:
    """The differences that nobody has decided."""
    decided = {(decision.task, decision.dimension) for decision in draft.decisions}
    return tuple(one for one in differences(draft) if (one.task.id, one.dimension) not in decided)


def worklist(draft: Draft, policy: Policy) -> str:
    """The undecided differences as CSV, with what both say, the anchors, and empty cells for the decision."""
    rows = []
    for one in undecided(draft):
        dimension = policy.rubric.dimension(one.dimension)
        rows.append(
            {
                "task": one.task.id,
                "dimension": one.dimension,
                "grades": " | ".join(f"{item.grader}: {item.grades[one.dimension]}" for item in one.answers),
                "reasons": " | ".join(f"{item.grader}: {item.reason}" for item in one.answers if item.reason),
                "question": dimension.question,
                "anchors": "\n".join(f"{grade}: {anchor}" for grade, anchor in enumerate(dimension.anchors)),
                **{name: one.task.pair[name] for name in ("query", "profile", "document")},
            }
        )
    return csv_text(_COLUMNS, rows)


def read_decisions(
    file: Path, draft: Draft, *, graders: Sequence[str]
) -> tuple[tuple[Decision, ...], tuple[Finding, ...], int]:
    """The decisions in a filled worklist that the draft lacks, what is wrong with the rows, and how many are empty.

    `graders` are those the policy declares, none where anybody may decide.
    """
    open_ = {(one.task.id, one.dimension): one for one in differences(draft)}
    settled = {(decision.task, decision.dimension): decision for decision in draft.decisions}
    decisions: dict[tuple[str, str], Decision] = {}
    lines: dict[tuple[str, str], int] = {}
    findings: list[Finding] = []
    num_empty = 0
    for line, row in csv_rows(file, needed=_ASKED):
        if not row["decision"].strip():
            num_empty += 1
            continue
        key = row["task"].strip(), row["dimension"].strip()
        wrong = list(_problems(row, open_.get(key)))
        who = undeclared([row["decided_by"].strip()], graders)
        if who:
            wrong.append(f"unknown grader '{who}'. Declared are: {', '.join(graders)}.")
        if key in lines:
            wrong.append(f"the same is decided on line {lines[key]}. Keep one of them.")
        lines.setdefault(key, line)
        grade = grade_of(row["decision"])
        before = settled.get(key)
        if before is not None and before.grade != grade:
            wrong.append(
                f"{before.decided_by} has decided on {before.grade} already. To undo, import the answers anew."
            )
        findings += [error_at(file, line, message) for message in wrong]
        if not wrong and before is None and grade is not None:
            decisions[key] = Decision(
                task=key[0],
                dimension=key[1],
                grade=grade,
                decided_by=row["decided_by"].strip(),
                reason=row["why"].strip() or None,
            )
    return tuple(decisions.values()), tuple(findings), num_empty


def _problems(row: Mapping[str, str], difference: Difference | None) -> Iterator[str]:
    if grade_of(row["decision"]) is None:
        yield f"unknown grade '{row['decision']}'. Grades are the whole numbers 0 to 4."
    if difference is None:
        yield f"task '{row['task']}' has no difference on '{row['dimension']}' to decide. Restore both cells."
        return
    who = row["decided_by"].strip()
    if not who:
        yield "'decided_by' is empty. Say who decided."
    elif who in {answer.grader for answer in difference.answers}:
        yield (
            f"'{who}' is one of the two who differ. A third person decides, or both settle it together: "
            f"{JOINT.join(sorted(answer.grader for answer in difference.answers))}."
        )
