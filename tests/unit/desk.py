"""What the tests of golden rounds share: a policy with a round that was exported for Label Studio."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from preceptor.cli import main
from preceptor.policy import load_policy
from tests.unit.grading import (
    GRADERS,
    SHIPPED,
    Grader,
    export_of,
    golden_train,
    policy_folder,
    truth,
    users_of,
    write_pairs,
)

DIMENSIONS = load_policy(SHIPPED).rubric.names
FIRST = DIMENSIONS[0]


@dataclass(frozen=True, kw_only=True)
class Desk:
    """A policy with a round that was exported for Label Studio."""

    policy: Path
    tasks: Path
    right: Grader
    said: pytest.CaptureFixture[str]

    def run(self, *arguments: object) -> int:
        return main(["golden", *map(str, arguments)])

    def refused(self, *arguments: object, code: int = 2) -> str:
        """What the command says on stderr when it stops with `code`."""
        self.said.readouterr()
        assert self.run(*arguments) == code
        return self.said.readouterr().err

    def graded(self, **people: Grader) -> Path:
        """The draft of what `people` graded."""
        file = self.tasks.with_name("export.json")
        file.write_text(json.dumps(export_of(self.tasks, people, DIMENSIONS)))
        assert self.run("import", "--policy", self.policy, file, "--users", users_of(people)) == 0
        (draft,) = (self.policy / "golden" / "drafts").glob("*.jsonl")
        return draft

    def export(self) -> list[dict[str, Any]]:
        """What the three right graders' Label Studio exports, to be spoilt."""
        return export_of(self.tasks, dict.fromkeys(GRADERS, self.right), DIMENSIONS)

    def send(self, tasks: object) -> tuple[Path, Path]:
        """An export's file, and the draft it should not become."""
        file = self.tasks.with_name("sent.json")
        file.write_text(json.dumps(tasks))
        return file, self.policy / "golden" / "drafts" / "sent.jsonl"


def lay_desk(folder: Path, said: pytest.CaptureFixture[str]) -> Desk:
    """A desk in `folder`, its round exported."""
    policy = policy_folder(folder)
    tasks = folder / "tasks.json"
    found = Desk(policy=policy, tasks=tasks, right=truth(golden_train(policy)), said=said)
    assert found.run(*export_arguments(found, write_pairs(folder), tasks)) == 0
    return found


def export_arguments(desk: Desk, pairs_file: Path, out: Path, *more: object) -> tuple[object, ...]:
    where = ("export", "--policy", desk.policy, "--pairs", pairs_file, "--out", out, "--graders", ",".join(GRADERS))
    return (*where, "--per-stratum", 9, *(more if "--format" in more else ("--format", "labelstudio", *more)))
