from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preceptor.cli import main
from preceptor.contracts import GOLDEN, LABELS, OVERALL, read_table, write_table
from preceptor.errors import InputError, PolicyError, RecipeError
from preceptor.judge import FakeJudge, calibrate, stored_judge
from preceptor.judge.judges import live_teacher, prompt_hashes
from preceptor.policy import Policy, load_golden, load_policy
from preceptor.recalibrate import recalibrate
from preceptor.recipe import POLICY_DIR, Recipe
from preceptor.recipes import tiny
from preceptor.record import Record, begin, read_record
from tests.unit.labelling import POLICY, judge_config

NAMES = POLICY.rubric.names


@pytest.fixture(scope="module")
def policy_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped policy with the golden pairs that calibrate."""
    folder = Path(shutil.copytree(POLICY_DIR, tmp_path_factory.mktemp("policy") / "job_match"))
    for file in (folder / "golden").iterdir():
        if file.name != "calibration.jsonl":
            file.unlink()
    return folder


@pytest.fixture(scope="module")
def finished(policy_of_the_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run of the recipe `tiny` as far as its calibration needs it."""
    root = tmp_path_factory.mktemp("finished")
    recipe = tiny()
    corpus = begin("market", recipe.source, out=root / "corpus" / "v1", policy_version=POLICY.version)
    golden = load_golden(policy_of_the_run / "golden", POLICY)
    write_table(golden, corpus.out / "golden" / "a.parquet", GOLDEN)
    assert recipe.judge is not None
    calibrate(recipe.judge, policy=policy_of_the_run, corpus=corpus.finish(), out=root / "calibrate" / "v1")
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "root"))


@pytest.fixture
def policy(policy_of_the_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(policy_of_the_run, tmp_path / "policy"))


def reword(policy: Path, dimension: str) -> None:
    anchor = POLICY.rubric.dimension(dimension).anchors[2]
    text = (policy / "rubric.toml").read_text()
    assert text.count(anchor) == 1
    (policy / "rubric.toml").write_text(text.replace(anchor, f"{anchor} Or thereabouts."))


def edited(policy: Path) -> Recipe:
    return replace(tiny(), policy=policy)


def rows(record: Record) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(row["pair_id"], row["dimension"]): row for row in read_table(record.path / "labels", LABELS).to_pylist()}


def test_one_anchor_changes_and_that_dimension_alone_is_judged(root: Path, policy: Path) -> None:
    reword(policy, "pay")
    found = recalibrate(edited(policy), root=root)
    num_pairs = found.before.metrics["num_pairs"]
    assert found.changed == ("pay",)
    assert found.after.metrics["asked"] == {"pay": num_pairs}
    assert found.after.metrics["reused"] == {name: num_pairs for name in NAMES if name != "pay"}
    before, after = rows(found.before), rows(found.after)
    assert before.keys() == after.keys()
    assert {name for _, name in after if after[_, name]["prompt_hash"] != before[_, name]["prompt_hash"]} == {"pay"}
    assert {row["policy_version"] for row in after.values()} == {load_policy(policy).version}
    assert read_record(root / "calibrate" / "v1") == found.before, "the run's own calibration is left as it is"


def test_the_same_edit_is_measured_once_and_the_next_one_builds_on_it(
    root: Path, policy: Path, policy_of_the_run: Path
) -> None:
    reword(policy, "pay")
    first = recalibrate(edited(policy), root=root)
    assert recalibrate(edited(policy), root=root).after == first.after
    reword(policy, "skills")
    second = recalibrate(edited(policy), root=root, against=first.after.version)
    assert second.before == first.after and second.after.path != first.after.path
    assert set(second.after.metrics["asked"]) == {"skills"}
    back = recalibrate(edited(policy_of_the_run), root=root, against=second.after.version)
    assert back.changed == ("skills", "pay")
    assert back.after.metrics["num_rows_asked"] == 0, "all of these words have been judged before"


def test_a_corrected_golden_grade_moves_the_agreement_and_asks_nothing(root: Path, policy: Path) -> None:
    file = policy / "golden" / "calibration.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["grades"]["pay"] = 4 - line["grades"]["pay"]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = recalibrate(edited(policy), root=root)
    assert found.changed == () and found.after.metrics["num_rows_asked"] == 0
    assert found.after.metrics["per_dimension"]["pay"] != found.before.metrics["per_dimension"]["pay"]
    unmoved = [name for name in NAMES if name != "pay"]
    assert all(found.after.metrics["per_dimension"][n] == found.before.metrics["per_dimension"][n] for n in unmoved)


def test_the_command_prints_both_tables_and_what_was_judged(
    root: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reword(policy, "pay")
    assert main(["calibrate", "tiny", "--root", str(root), "--policy", str(policy)]) == 0
    out = capsys.readouterr().out
    record = read_record(root / "calibrate" / "v1")
    assert record is not None
    num_pairs = record.metrics["num_pairs"]
    lines = {line.split("  ")[0]: " ".join(line.split()) for line in out.splitlines()}
    assert lines["pay *"].endswith(f" {num_pairs} 0") and lines["role"].endswith(f" 0 {num_pairs}")
    assert lines[OVERALL].endswith("derived")
    assert f"{record.metrics['per_dimension']['role']:.3f} [" in lines["role"]
    assert f"judged {num_pairs} rows (pay {num_pairs}), reused {num_pairs * (len(NAMES) - 1):,}" in out
    assert f"Golden was graded under policy {POLICY.rubric.version}." in out
    assert "reads no policy" not in out, "this judge is asked in words"


def test_a_judge_that_falls_under_its_floor_is_shown_and_refused(
    root: Path, policy_of_the_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "strict.py"
    recipe.write_text(
        "from dataclasses import replace\n"
        "from preceptor.recipes import tiny\n\n\n"
        "def strict():\n"
        "    return replace(tiny(), judge=replace(tiny().judge, floor=0.9))\n"
    )
    policy = ["--policy", str(policy_of_the_run)]
    assert main(["calibrate", f"{recipe}:strict", "--root", str(root), *policy]) == 1
    said = capsys.readouterr()
    assert "Agreement with golden, v1 -> " in said.out
    assert "under the floor 0.900; worst dimension '" in said.err


def test_what_cannot_be_calibrated_is_said(root: Path, policy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stage 'calibrate' is not finished"):
        recalibrate(tiny(), root=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"calibrate/v9: stage"):
        recalibrate(tiny(), root=root, against="v9")
    with pytest.raises(RecipeError, match="no judge to calibrate"):
        recalibrate(replace(tiny(), judge=None, relevance=None, distill=None), root=root)
    (policy / "rubric.toml").write_text((policy / "rubric.toml").read_text().replace('version = "', 'version = "x'))
    before = sorted(root.rglob("*"))
    with pytest.raises(PolicyError, match="version must be three numbers"):
        recalibrate(edited(policy), root=root)
    assert sorted(root.rglob("*")) == before


@pytest.fixture
def teacher(tmp_path: Path) -> Record:
    """What there is of a tuned teacher before anything loads it: its config, with three grade heads and a click."""
    out = tmp_path / "relevance_teacher" / "v1"
    (out / "model").mkdir(parents=True)
    heads = [{"name": name, "kind": "grade"} for name in (OVERALL, "role", "pay", "retired")]
    config = {
        "preceptor_heads": [*heads, {"name": "click", "kind": "action"}],
        "preceptor_max_prefix_tokens": 8,
        "preceptor_max_document_tokens": 8,
    }
    (out / "model" / "config.json").write_text(json.dumps(config))
    return Record(stage="relevance_teacher", version="v1", fingerprint="abc", path=out, config={})


def test_a_tuned_teacher_asked_live_is_the_judge_whose_logits_are_stored(teacher: Record, policy: Path) -> None:
    live = live_teacher(judge_config(), POLICY, teacher)
    stored = replace(stored_judge(teacher, teacher), dimensions=(OVERALL, "role", "pay"))
    assert live.dimensions == (OVERALL, "role", "pay"), "a head that the policy no longer asks for is left out"
    assert live.judge_id == stored.judge_id and live.heads == ()
    assert prompt_hashes(live, POLICY) == prompt_hashes(stored, POLICY)
    reword(policy, "pay")
    assert changed(live_hashes(teacher, POLICY), live_hashes(teacher, load_policy(policy))) == {OVERALL, "pay"}
    reword(policy, "skills")
    assert changed(live_hashes(teacher, POLICY), live_hashes(teacher, load_policy(policy))) == {OVERALL, "pay"}


def live_hashes(teacher: Record, policy: Policy) -> dict[str, str]:
    return prompt_hashes(live_teacher(judge_config(), policy, teacher), policy)


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    return {name for name in after if after[name] != before[name]}


def test_it_is_said_that_a_tuned_teacher_has_not_read_the_new_words(root: Path, policy: Path) -> None:
    reword(policy, "pay")
    found = recalibrate(edited(policy), root=root)
    tuned = FakeJudge(dimensions=NAMES, judge_id="teacher:abc", asking="")
    words = replace(found, judge=tuned, changed=("pay", OVERALL)).words()
    assert "teacher:abc reads no policy: it was tuned before these words and has not read them." in words
    assert "The overall grade follows from every dimension" in words
