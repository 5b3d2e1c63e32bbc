"""What the tests of the workbench share: a small policy and a root whose calibration a fake judge has made."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preceptor.contracts import GOLDEN, read_table, write_table
from preceptor.judge import FakeJudge, Judge, calibrate
from preceptor.policy import Policy, lint, load_golden, load_policy
from preceptor.recipe import POLICY_DIR, JudgeConfig
from preceptor.record import Record, begin
from preceptor.workbench import Asked, Recalibrate, Session

NUM_LINES = {"calibration": 40, "holdout": 12, "train": 6}
CONFIG = JudgeConfig(kind="fake", model="m", floor=0.2, max_reject_share=0.5, num_calibration_pairs=1000)

JudgeOf = Callable[[Policy, Path], Judge]


@dataclass(frozen=True, kw_only=True)
class Room:
    """A session, the policy's directory that it changes, and how its judge is made of a policy and a corpus."""

    session: Session
    judge_of: JudgeOf

    @property
    def recalibrate(self) -> Recalibrate:
        """The stage itself, with the fake judge."""

        def run(asked: Asked) -> Record:
            judge = self.judge_of(load_policy(asked.policy), self.session.corpus)
            config = replace(CONFIG, num_calibration_pairs=asked.num_pairs)
            return calibrate(
                config, policy=asked.policy, corpus=asked.golden, judge=judge, watch=asked.watch, out=asked.out
            )

        return run


def slipping(policy: Policy, corpus: Path) -> Judge:
    """A judge that knows the corpus's golden and gives three in ten grades one off, others where the wording changes.

    It is asked four dimensions: a policy may have many, and the overall grade of all is slow to derive.
    """
    rows = read_table(corpus / "golden", GOLDEN).select(["pair_id", "dimension", "grade"]).to_pylist()
    known = {(row["pair_id"], row["dimension"]): row["grade"] for row in rows}
    return FakeJudge(dimensions=policy.rubric.names[:4], judge_id="slipping", known=known, slips=0.3, policy=policy)


def wrong(policy: Policy, corpus: Path) -> Judge:
    """A judge that gives every grade one off."""
    judge = slipping(policy, corpus)
    assert isinstance(judge, FakeJudge)
    return replace(judge, slips=1.0)


def errors_of(policy: Path) -> list[str]:
    """What lint calls errors, apart from where they stand."""
    return sorted(finding.message for finding in lint(policy) if finding.severity == "error")


def lay_room(folder: Path, *, judge_of: JudgeOf = slipping, first: Mapping[str, str] | None = None) -> Room:
    """A copy of the shipped policy with fewer golden lines, a corpus of it, and a finished calibration.

    `first` replaces texts of the first calibration pair.
    """
    policy = folder / "policy"
    shutil.copytree(POLICY_DIR, policy, ignore=shutil.ignore_patterns("decisions.jsonl"))
    for split, num in NUM_LINES.items():
        file = policy / "golden" / f"{split}.jsonl"
        lines = file.read_text().split("\n")[:num]
        if first and split == "calibration":
            lines[0] = json.dumps(json.loads(lines[0]) | first)
        file.write_text("".join(f"{line}\n" for line in lines))
    rubric = policy / "rubric.toml"
    # Where the policy lists its graders, the tests' deciders are among them.
    rubric.write_text(re.sub(r"^(graders = \[)", r'\1"Ana Ortiz", "Ben Adeyemi", ', rubric.read_text(), flags=re.M))
    session = Session(policy=policy, root=folder / "root", version="v1")
    loaded = load_policy(policy)
    run = begin("market", {"made": "for a test"}, out=session.corpus)
    write_table(load_golden(policy / "golden", loaded), session.corpus / "golden" / "part-000000.parquet", GOLDEN)
    corpus = run.finish()
    judge = judge_of(loaded, session.corpus)
    calibrate(CONFIG, policy=policy, corpus=corpus, judge=judge, out=session.calibration(0))
    return Room(session=session, judge_of=judge_of)


def lines_of(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in file.read_text().split("\n") if line]
