"""The shipped golden set: its counts and seal are those of its files, and it says that it is constructed."""

from __future__ import annotations

from pathlib import Path

from preceptor.cli import main
from preceptor.golden.census import README, fresh
from preceptor.policy import load_golden, load_policy
from tests.unit.grading import SHIPPED, policy_folder


def test_shipped_counts_and_seal_are_those_of_the_files() -> None:
    for file, text in fresh(load_policy(SHIPPED)).items():
        assert file.read_text() == text, f"{file.name} is out of date. Run: preceptor golden census"


def test_shipped_golden_says_that_it_is_constructed() -> None:
    readme = (SHIPPED / "golden" / README).read_text()
    assert "Constructed with known truth. No person graded these pairs." in readme
    pairs_ = load_golden(SHIPPED / "golden", load_policy(SHIPPED))
    assert len(set(pairs_["pair_id"].to_pylist())) >= 2000
    assert set(pairs_["grader_id"].to_pylist()) == {"market-truth"}


def test_a_census_without_its_marks_changes_nothing(tmp_path: Path) -> None:
    folder = policy_folder(tmp_path)
    readme = folder / "golden" / README
    readme.write_text("# Golden\n")
    assert main(["golden", "census", "--policy", str(folder)]) == 2
    assert readme.read_text() == "# Golden\n"
    readme.unlink()
    assert main(["golden", "census", "--policy", str(folder)]) == 0
    assert "| **holdout** | all |" in readme.read_text()
