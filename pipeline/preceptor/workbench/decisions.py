"""Three decisions about a disagreement, each as new texts of the policy's files and one entry of the decision log."""

from __future__ import annotations

import datetime
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from preceptor.contracts import OVERALL, content_id
from preceptor.errors import PolicyError, located
from preceptor.policy import Policy
from preceptor.policy.document import DOCUMENT, PRECEDENTS, RUBRIC
from preceptor.policy.jsonl import read_lines
from preceptor.workbench.edits import (
    amend_anchor,
    amend_row,
    append_line,
    declare_grader,
    declared_graders,
    drop_line,
    edit_line,
    show_precedent,
)
from preceptor.workbench.golden_lines import GoldenLine
from preceptor.workbench.writes import read_exact

LOG: Final = "decisions.jsonl"

AMEND: Final = "amend anchor"
PRECEDENT: Final = "add precedent"
CORRECT: Final = "correct label"

MAX_TEXT: Final = 2000

_UNWRITABLE: Final = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories: control characters, half characters, line and paragraph separators."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a decision is about and who takes it. `line` is the pair's golden line; None where no policy file has it."""

    policy: Policy
    line: GoldenLine | None
    pair_id: str
    dimension: str
    decider: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Amendment:
    """The anchor of `grade` on the subject's dimension shall read `anchor`."""

    grade: int
    anchor: str


@dataclass(frozen=True, kw_only=True)
class NewPrecedent:
    """The subject's pair shall be the precedent `id` with these `grades`; `shown` puts it into every prompt."""

    id: str
    grades: Mapping[str, int]
    shown: bool


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Golden's grade of the subject shall be `grade`; `declare` adds the decider to the policy's declared graders."""

    grade: int
    declare: bool


Decision = Amendment | NewPrecedent | Correction
Change = tuple[dict[str, str], dict[str, Any]]
"""New texts by file, and what the log says of it."""


def change_of(subject: Subject, decision: Decision) -> Change:
    """The texts that carry out `decision`, the log's among them, and its log entry; PolicyError where it may not be."""
    _require_text(subject.decider, "the decider's name")
    _require_text(subject.why, "the reason")
    if isinstance(decision, Amendment):
        texts, said = _amended(subject, decision)
    elif isinstance(decision, NewPrecedent):
        texts, said = _settled(subject, decision)
    else:
        texts, said = _corrected(subject, decision)
    entry = {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "decider": subject.decider.strip(),
        **said,
        "pair_id": subject.pair_id,
        "dimension": subject.dimension,
        "why": subject.why.strip(),
        "policy_version": subject.policy.version,
        "files": sorted(texts),
    }
    log = append_line(read_exact(subject.policy.path / LOG), entry)
    return {**texts, LOG: log}, entry


def read_log(policy: Path) -> tuple[dict[str, Any], ...]:
    """The entries of the policy's decision log, oldest first; PolicyError with the line that cannot be read."""
    entries = []
    for number, raw, broken in read_lines(read_exact(policy / LOG)):
        if broken:
            raise PolicyError(located(broken, file=policy / LOG, line=number))
        entries.append(raw)
    return tuple(entries)


def speaks_of(entry: Mapping[str, Any], *, pair_id: str, dimension: str) -> bool:
    """Whether a log entry changed what a card of that pair and dimension shows."""
    return entry.get("pair_id") == pair_id or (entry.get("kind") == AMEND and entry.get("dimension") == dimension)


def _amended(subject: Subject, decision: Amendment) -> Change:
    if subject.dimension == OVERALL:
        raise PolicyError("the overall grade has no anchors of its own. Amend the dimension that it comes from.")
    anchor = decision.anchor.strip()
    _require_text(anchor, "an anchor")
    if "|" in anchor:
        raise PolicyError("an anchor stands in a table of policy.md and may not hold '|'. Write it without.")
    before = subject.policy.rubric.dimension(subject.dimension).anchors[decision.grade]
    if anchor == before:
        raise PolicyError("the anchor reads just as before. Change it, or decide otherwise.")
    place: dict[str, Any] = {"dimension": subject.dimension, "grade": decision.grade, "anchor": anchor}
    texts = {
        RUBRIC: amend_anchor(read_exact(subject.policy.path / RUBRIC), **place),
        DOCUMENT: amend_row(read_exact(subject.policy.path / DOCUMENT), **place),
    }
    return texts, {"kind": AMEND, "grade": decision.grade, "before": before, "after": anchor}


def _settled(subject: Subject, decision: NewPrecedent) -> Change:
    policy, line = subject.policy, _line_of(subject)
    name = decision.id.strip()
    _require_text(name, "a precedent's id")
    if any(precedent.id == name for precedent in policy.precedents):
        raise PolicyError(f"the id '{name}' is taken by another precedent. Choose another.")
    grades = {key: decision.grades[key] for key in policy.rubric.names if key in decision.grades}
    missing = [key for key in policy.rubric.names if key not in grades]
    if missing:
        raise PolicyError(f"a precedent decides every dimension; no grade for {', '.join(missing)}. Grade it.")
    content = {
        "id": name,
        **{key: line.content[key] for key in ("query", "profile", "document")},
        "grades": {**grades, OVERALL: policy.rubric.aggregate(grades)},
        "reason": subject.why.strip(),
    }
    texts = {
        PRECEDENTS: append_line(read_exact(policy.path / PRECEDENTS), content),
        # A judge may be shown a precedent, so it measures no judge any more.
        line.file: drop_line(read_exact(policy.path / line.file), line.number),
    }
    if decision.shown:
        texts[RUBRIC] = show_precedent(read_exact(policy.path / RUBRIC), name)
    after = {"id": name, "grades": content["grades"], "shown": decision.shown}
    return texts, {"kind": PRECEDENT, "before": dict(line.content), "after": after}


def _corrected(subject: Subject, decision: Correction) -> Change:
    policy, line, dimension = subject.policy, _line_of(subject), subject.dimension
    grades = dict(line.content["grades"])
    if dimension == OVERALL and grades.keys() >= set(policy.rubric.names):
        raise PolicyError("the overall grade follows from the dimensions. Correct the dimension that is wrong.")
    if grades.get(dimension) == decision.grade:
        raise PolicyError(f"golden has grade {decision.grade} already. Choose another, or decide otherwise.")
    grades[dimension] = decision.grade
    values = {f"grades.{dimension}": decision.grade}
    if grades.keys() >= set(policy.rubric.names):
        values[f"grades.{OVERALL}"] = policy.rubric.aggregate(grades)
    earlier = line.content.get("reason")
    told = f"{dimension}: {subject.why.strip()}"
    changed: dict[str, Any] = {
        **values,
        "grader_id": subject.decider.strip(),
        "reason": f"{told}; {earlier}" if earlier else told,
        "policy_version": policy.version,
    }
    text = edit_line(read_exact(policy.path / line.file), line.number, changed)
    before = {key: _at(line.content, key) for key in changed}
    return {line.file: text, **_declared(subject, decision)}, {"kind": CORRECT, "before": before, "after": changed}


def _declared(subject: Subject, decision: Correction) -> dict[str, str]:
    """rubric.toml with the decider among its graders, where that is asked for and it lists graders without them."""
    rubric, name = read_exact(subject.policy.path / RUBRIC), subject.decider.strip()
    graders = declared_graders(rubric)
    return {RUBRIC: declare_grader(rubric, name)} if decision.declare and graders and name not in graders else {}


def _line_of(subject: Subject) -> GoldenLine:
    if subject.line is None:
        raise PolicyError(
            f"pair {subject.pair_id} stands in no golden file of {subject.policy.path}: its grade comes from the "
            "corpus. Correct it where the corpus comes from."
        )
    return subject.line


def _at(content: Mapping[str, Any], path: str) -> Any:
    key, dot, inner = path.partition(".")
    return content[key][inner] if dot else content[key]


def _require_text(text: str, what: str) -> None:
    if not text.strip():
        raise PolicyError(f"{what} is empty. Fill it in.")
    if len(text) > MAX_TEXT:
        raise PolicyError(f"{what} has {len(text)} characters, {MAX_TEXT} at most. Shorten it.")
    if any(unicodedata.category(char) in _UNWRITABLE for char in text):
        raise PolicyError(f"{what} must be one line without control characters, got {json.dumps(text)[:60]}.")


def revision_of(policy: Policy, line: GoldenLine | None, dimension: str) -> str:
    """A hash of everything that a card lets one decide on: the dimension's words and the pair's golden line."""
    rubric = policy.rubric
    said = (
        [rubric.overall_question, *rubric.names]
        if dimension == OVERALL
        else [
            rubric.dimension(dimension).question,
            *rubric.dimension(dimension).anchors,
        ]
    )
    return content_id(*said, "" if line is None else line.text)
