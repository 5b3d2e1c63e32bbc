"""What a dry run says: of finished stages, and of how many pairs a judge is calibrated on."""

from __future__ import annotations

from pathlib import Path

import pytest

from preceptor.cli import main
from preceptor.recipes import tiny
from preceptor.record import Record, begin
from preceptor.running import dry_run
from preceptor.steps import Records, Step


def steps_of(size: int) -> tuple[Step, ...]:
    """Corpus and what is made of it, each from the one before; `size` is the corpus's config."""

    def made(name: str, *needs: str) -> Step:
        def run(records: Records, out: Path) -> Record:
            inputs = {need: records[need] for need in needs}
            stage = begin(name, {"size": size if name == "corpus" else 0}, inputs=inputs, out=out)
            return stage.record or stage.finish()

        return Step(name=name, needs=needs, rows="rows", run=run)

    return made("corpus"), made("teacher", "corpus"), made("student", "teacher"), made("other")


def expected(size: int, root: Path) -> list[str]:
    said = dry_run(tiny(), steps_of(size), root=root).splitlines()
    return [line.split(maxsplit=2)[2].split("  ")[0] for line in said if line[:3].strip().isdigit()]


def test_what_follows_from_a_drifted_stage_is_not_said_to_be_skipped(tmp_path: Path) -> None:
    assert expected(1, tmp_path) == ["run"] * 4
    records: dict[str, Record] = {}
    for step in steps_of(1):
        records[step.name] = step.run(records, tmp_path / step.name / tiny().version)
    assert expected(1, tmp_path) == ["skip: finished"] * 4
    corpus, *rest = expected(2, tmp_path)
    assert corpus.startswith("drift: ") and "(size: 1 -> 2)" in corpus
    assert rest == ["drift: corpus", "drift: teacher", "skip: finished"]


def test_a_judge_that_labels_is_calibrated_on_as_many_pairs_as_a_teacher_that_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "demo", "--root", str(tmp_path), "--dry-run"]) == 0
    assert "350 golden pairs" in line_of("calibrate", capsys.readouterr().out)
    asked = ("--judge", "openai", "--base-url", "http://127.0.0.1:1/v1")
    assert main(["run", "demo", "--root", str(tmp_path), *asked, "--dry-run"]) == 0
    assert "350 golden pairs" in line_of("calibrate", capsys.readouterr().out)


def line_of(stage: str, plan: str) -> str:
    return next(line for line in plan.splitlines() if line.split()[1:2] == [stage])
