"""A worklist as JSON Lines for the workbench, as CSV for a spreadsheet, and as text for a terminal."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from preceptor.contracts import OVERALL, whole_file
from preceptor.policy import Rubric
from preceptor.refine.worklist import Cause, Task

JSONL: Final = "worklist.jsonl"
CSV: Final = "worklist.csv"

_SHOWN_PER_GROUP: Final = 2
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")

_NEXT: Final[dict[Cause, str]] = {
    Cause.POLICY: "amend the anchor, or decide the case as a precedent",
    Cause.LABEL: "grade the pair again",
    Cause.JUDGE: "refine the prompt, or tune the judge",
}


def write_worklist(tasks: Sequence[Task], rubric: Rubric, out: Path) -> tuple[Path, Path]:
    """``worklist.jsonl`` and ``worklist.csv`` in `out`, each whole or not at all."""
    rows = [row_of(task, rubric) for task in tasks]
    with whole_file(out / JSONL) as sink:
        for row in rows:
            sink.write(f"{json.dumps(row, ensure_ascii=False)}\n".encode())
    text = io.StringIO()
    names = [name for name in _EMPTY if name != "probs"]
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({name: _cell(row[name]) for name in names} for row in rows)
    with whole_file(out / CSV) as sink:
        sink.write(text.getvalue().encode())
    return out / JSONL, out / CSV


def row_of(task: Task, rubric: Rubric) -> dict[str, Any]:
    """One task as plain values, with the anchors of both grades."""
    one = task.disagreement
    anchors: Mapping[int, str] = (
        {} if one.dimension == OVERALL else dict(enumerate(rubric.dimension(one.dimension).anchors))
    )
    return {
        **_EMPTY,
        "cause": str(task.cause),
        "next": _NEXT[task.cause],
        "group": task.group,
        "dimension": one.dimension,
        "golden_grade": one.golden_grade,
        "judge_grade": one.judge_grade,
        "confidence": round(one.confidence, 4),
        "evidence": list(task.evidence),
        "golden_anchor": anchors.get(one.golden_grade),
        "judge_anchor": anchors.get(one.judge_grade),
        "golden_reason": one.golden_reason,
        "rationale": one.rationale,
        "grader_id": one.grader_id,
        "probs": [round(prob, 4) for prob in one.probs],
        **{name: one.pair[name] for name in ("pair_id", "query_id", "slice", "query", "profile", "document")},
    }


_EMPTY: Final[dict[str, Any]] = dict.fromkeys(
    (
        *("cause", "next", "group", "dimension", "golden_grade", "judge_grade", "confidence", "evidence"),
        *("golden_anchor", "judge_anchor", "golden_reason", "rationale", "grader_id", "probs"),
        *("pair_id", "query_id", "slice", "query", "profile", "document"),
    )
)


def text_of_worklist(tasks: Sequence[Task], *, num_groups: int) -> str:
    """How many tasks each cause has, and the `num_groups` largest groups of each with their first tasks."""
    counts = Counter(task.cause for task in tasks)
    blocks = [f"{len(tasks)} disagreements: " + ", ".join(f"{counts[cause]} {cause}" for cause in Cause)]
    for cause, own in groupby(tasks, key=lambda task: task.cause):
        groups = [(name, list(members)) for name, members in groupby(own, key=lambda task: task.group)]
        blocks.append(f"\n{cause} ({counts[cause]}): {_NEXT[cause]}")
        for name, members in groups[:num_groups]:
            blocks.append(f"  {len(members)} x {name}")
            blocks += [f"    {_line(task)}" for task in members[:_SHOWN_PER_GROUP]]
        if len(groups) > num_groups:
            blocks.append(f"  and {len(groups) - num_groups} more groups")
    return "\n".join(blocks)


def _line(task: Task) -> str:
    query = task.disagreement.pair["query"] or "(no query)"
    return f"{task.disagreement.pair['pair_id']} '{query[:40]}': {'; '.join(task.evidence)}"


def _cell(value: Any) -> Any:
    """`value` as a spreadsheet takes it: text that it would run as a formula is led by an apostrophe."""
    if isinstance(value, list):
        value = "; ".join(map(str, value))
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
