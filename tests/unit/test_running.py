"""What a dry run says of finished stages: skipped, or no longer the work that is asked for."""

from __future__ import annotations

from pathlib import Path

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
