"""A version with a base: the same work is taken from it, and what reads a changed stage runs again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from preceptor.errors import DriftError, InputError, RecipeError
from preceptor.recipes import tiny
from preceptor.record import Record, begin, read_record
from preceptor.steps import Run, Step, execute, status

NEEDS = {"corpus": (), "first": ("corpus",), "second": ("corpus",), "student": ("first", "second")}


@dataclass(frozen=True, kw_only=True)
class Settings:
    depth: int = 6


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Four stages of which each writes a record, with a depth for each; `ran` lists those that did work."""

    depths: Mapping[str, int]
    ran: list[str]

    def steps(self) -> list[Step]:
        return [Step(name=name, needs=needs, rows="", run=self._runner(name)) for name, needs in NEEDS.items()]

    def _runner(self, name: str) -> Run:
        def run(records: Mapping[str, Record], out: Path) -> Record:
            inputs = {need: records[need] for need in NEEDS[name]}
            stage = begin(name, Settings(depth=self.depths.get(name, 6)), out=out, inputs=inputs)
            if stage.record is not None:
                return stage.record
            self.ran.append(name)
            return stage.finish()

        return run


def run_all(root: Path, *, version: str, base: str | None = None, depths: Mapping[str, int] | None = None) -> list[str]:
    """The stages that did work."""
    chain = Chain(depths=depths or {}, ran=[])
    records: dict[str, Record] = {}
    for step in chain.steps():
        execute(step, records, root=root, version=version, base=base)
    return chain.ran


def test_a_changed_stage_runs_and_what_reads_it_and_nothing_else(tmp_path: Path) -> None:
    assert run_all(tmp_path, version="v1") == list(NEEDS)
    before = {file: file.read_bytes() for file in tmp_path.rglob("record.json")}
    assert run_all(tmp_path, version="v2", base="v1", depths={"second": 3}) == ["second", "student"]
    assert sorted(path.parent.name for path in tmp_path.glob("*/v2")) == ["second", "student"]
    assert {file: file.read_bytes() for file in before} == before, "the base stays as it was"
    student, first = read_record(tmp_path / "student" / "v2"), read_record(tmp_path / "first" / "v1")
    assert student is not None and first is not None
    assert student.inputs["first"] == first.fingerprint
    assert run_all(tmp_path, version="v2", base="v1", depths={"second": 3}) == [], "a second run does nothing"


def test_the_same_work_is_all_taken_and_writes_nothing(tmp_path: Path) -> None:
    run_all(tmp_path, version="v1")
    assert run_all(tmp_path, version="v2", base="v1") == []
    assert not list(tmp_path.glob("*/v2"))


def test_without_a_base_a_new_version_runs_everything(tmp_path: Path) -> None:
    run_all(tmp_path, version="v1")
    assert run_all(tmp_path, version="v2") == list(NEEDS)
    with pytest.raises(DriftError):
        run_all(tmp_path, version="v2", depths={"first": 3})


def test_what_the_version_has_begun_itself_goes_before_its_base(tmp_path: Path) -> None:
    run_all(tmp_path, version="v1")
    steps = {step.name: step for step in Chain(depths={}, ran=[]).steps()}
    begun = tmp_path / "corpus" / "v2"
    begin("corpus", Settings(), out=begun)
    assert status(steps["corpus"], root=tmp_path, version="v2", base="v1") == "resume"
    assert status(steps["first"], root=tmp_path, version="v2", base="v1") == "based"
    assert run_all(tmp_path, version="v2", base="v1") == ["corpus"], "its output is the same work, so no other runs"


def test_a_stage_alone_reads_what_its_base_finished(tmp_path: Path) -> None:
    run_all(tmp_path, version="v1")
    chain = Chain(depths={"student": 2}, ran=[])
    student = chain.steps()[-1]
    execute(student, {}, root=tmp_path, version="v2", base="v1")
    assert chain.ran == ["student"]
    with pytest.raises(InputError, match="needs 'first'"):
        execute(student, {}, root=tmp_path, version="v3")


@pytest.mark.parametrize(("version", "base"), [("v1", "v1"), ("dev", "v1"), ("v2", "dev")])
def test_a_base_is_another_lasting_version(version: str, base: str) -> None:
    with pytest.raises(RecipeError, match="another version"):
        replace(tiny(), version=version, base=base)
