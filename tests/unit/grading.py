"""What the tests of golden share: a policy of their own, pairs, and people who grade them as told."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from preceptor.contracts import PAIRS, content_id, make_pair, rows_to_table, write_table
from preceptor.policy import rubric as rubric_module

SHIPPED = Path(__file__).resolve().parents[2] / "policy" / "job_match"
GRADERS = ("ann", "kim", "lee")
DECIDER = "max"
SLICES = ("title", "skills", "sentence")

Grader = Callable[[str, str], int]
"""The grade somebody gives a pair (its text) on a dimension."""


def policy_folder(tmp_path: Path) -> Path:
    """A copy of the shipped policy with fewer golden pairs, that declares its people where the rubric can."""
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "job_match"))
    for split, num in {"train": 120, "calibration": 20, "holdout": 40}.items():
        golden = folder / "golden" / f"{split}.jsonl"
        golden.write_text("".join(golden.read_text().splitlines(keepends=True)[:num]))
    file = folder / "rubric.toml"
    text = re.sub(r"\n(#[^\n]*\n)*\[golden\]\n([^\[\n][^\n]*\n)*", "\n", file.read_text())
    if "golden" in rubric_module._KEYS["rubric.toml"]:
        named = ", ".join(f'"{name}"' for name in ("market-truth", *GRADERS, DECIDER))
        text += f"\n[golden]\ngraders = [{named}]\n"
    file.write_text(text)
    return folder


def pairs(num_queries: int = 60, *, per_query: int = 3) -> list[dict[str, str]]:
    return [
        make_pair(f"query {q}", "a welder", f"posting {q} {d}", slice=SLICES[q % len(SLICES)])
        for q in range(num_queries)
        for d in range(per_query)
    ]


def write_pairs(tmp_path: Path, rows: Sequence[Mapping[str, str]] | None = None) -> Path:
    chosen = [dict(row) for row in (pairs() if rows is None else rows)]
    return write_table(rows_to_table(chosen, PAIRS), tmp_path / "pairs.parquet", PAIRS)


def truth(known: Mapping[str, Mapping[str, int]]) -> Grader:
    """A grader who is always right: `known` grades by document, a hash for all others."""

    def grade(document: str, dimension: str) -> int:
        if document in known:
            return known[document][dimension]
        return int(content_id("truth", document, dimension), 16) % 5

    return grade


def slips(grader: Grader, *, share: float, dimensions: Sequence[str] | None = None, by: int = 1) -> Grader:
    """`grader`, but `by` grades off in a `share` of the pairs."""

    def grade(document: str, dimension: str) -> int:
        right = grader(document, dimension)
        wrong = int(content_id("slip", document, dimension), 16) % 1000 < 1000 * share
        if not wrong or (dimensions is not None and dimension not in dimensions):
            return right
        return right + by if right + by <= 4 else right - by

    return grade


def golden_train(folder: Path) -> dict[str, dict[str, int]]:
    """The grades of golden-train by document."""
    lines = (folder / "golden" / "train.jsonl").read_text().splitlines()
    return {row["document"]: row["grades"] for row in map(json.loads, lines)}


def export_of(tasks: Path, people: Mapping[str, Grader], dimensions: Sequence[str]) -> list[dict[str, Any]]:
    """What Label Studio exports (its format JSON) once `people` have graded `tasks`; users are numbers there."""
    users = {name: number for number, name in enumerate(sorted(people), 1)}
    exported = []
    for number, task in enumerate(json.loads(tasks.read_text()), 1):
        data = task["data"]
        annotations = [
            {
                "id": 1000 * number + users[name],
                "completed_by": users[name],
                "result": [
                    {
                        "id": f"r{number}{dimension}",
                        "type": "choices",
                        "origin": "manual",
                        "from_name": dimension,
                        "to_name": "Posting",
                        "value": {"choices": [str(people[name](data["document"], dimension))]},
                    }
                    for dimension in dimensions
                ],
                "was_cancelled": False,
                "ground_truth": False,
                "created_at": "2026-01-05T10:00:00.000000Z",
                "lead_time": 31.5,
            }
            for name in data["graders"].split(", ")
            if name in people
        ]
        exported.append(
            {"id": number, "annotations": annotations, "drafts": [], "predictions": [], "data": data, "project": 7}
        )
    return exported


def users_of(people: Mapping[str, Grader]) -> str:
    return ",".join(f"{number}={name}" for number, name in enumerate(sorted(people), 1))


def read_csv(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline="")))


def write_csv(file: Path, rows: Sequence[Mapping[str, str]], *, delimiter: str = ",") -> Path:
    with file.open("w", newline="", encoding="utf-8") as sink:
        writer = csv.DictWriter(sink, fieldnames=list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return file
