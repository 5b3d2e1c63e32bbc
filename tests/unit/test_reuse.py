from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preceptor.contracts import (
    LABELS,
    OVERALL,
    PAIRS,
    read_table,
    rows_to_table,
    write_table,
)
from preceptor.errors import RejectCeilingError
from preceptor.judge import Judge, calibrate, label
from preceptor.judge.label import label_forecast
from preceptor.judge.reuse import Forecast
from preceptor.policy import load_policy
from preceptor.recipe import POLICY_DIR
from preceptor.record import Record
from tests.unit.labelling import (
    GOOD_FAKE,
    NUM_ASKED,
    POLICY,
    Counting,
    Flaky,
    calibrated,
    judge_config,
    pool,
)


def reworded(folder: Path, *, dimension: str) -> Path:
    """A copy of the policy in which the first anchor of `dimension` is worded otherwise."""
    shutil.copytree(POLICY_DIR, folder)
    anchor = POLICY.rubric.dimension(dimension).anchors[0]
    text = (folder / "rubric.toml").read_text()
    assert text.count(anchor) == 1
    (folder / "rubric.toml").write_text(text.replace(anchor, f"{anchor} (reworded)"))
    return folder


def labelled(corpus: Record, tmp_path: Path, judge: Judge, version: str, policy: Path = POLICY_DIR) -> Record:
    """A version of the labels, calibrated and labelled under `policy`."""
    calibration = calibrate(
        judge_config(floor=-1.0),
        policy=policy,
        corpus=corpus,
        judge=judge,
        out=tmp_path / f"calibrate-{version}" / "v1",
    )
    out = tmp_path / "label" / version
    return label(judge_config(), policy=policy, corpus=corpus, calibration=calibration, judge=judge, out=out)


def label_set(record: Record) -> dict[tuple[str, str], dict[str, Any]]:
    rows = read_table(record.path / "labels", LABELS).to_pylist()
    assert len({(row["pair_id"], row["dimension"]) for row in rows}) == len(rows)
    return {(row["pair_id"], row["dimension"]): row for row in rows}


def test_rewording_a_dimension_asks_that_dimension_alone(corpus: Record, tmp_path: Path) -> None:
    first = labelled(corpus, tmp_path, GOOD_FAKE, "v1")
    policy = reworded(tmp_path / "policy", dimension="skills")
    out = tmp_path / "label" / "v2"
    assert label_forecast(GOOD_FAKE, policy=policy, corpus=corpus, out=out) == Forecast(
        num_new=0, num_reused=40 * (NUM_ASKED - 1), num_stale=40
    )

    calibration = calibrate(
        judge_config(), policy=policy, corpus=corpus, judge=GOOD_FAKE, out=tmp_path / "calibrate" / "v2"
    )
    judge = Counting(dimensions=POLICY.rubric.names, judge_id="good")
    second = label(judge_config(), policy=policy, corpus=corpus, calibration=calibration, judge=judge, out=out)
    assert sorted(judge.asked) == sorted((pair["pair_id"], "skills") for pair in pool(40))
    assert second.metrics["num_rows_reused"] == 40 * (NUM_ASKED - 1)
    before, after = label_set(first), label_set(second)
    assert after.keys() == before.keys()
    assert all(after[row]["probs"] == pytest.approx(before[row]["probs"]) for row in before)
    changed = {name for _, name in after if after[_, name]["prompt_hash"] != before[_, name]["prompt_hash"]}
    assert changed == {"skills"}
    assert {row["policy_version"] for row in after.values()} == {load_policy(policy).version}


def test_new_pairs_are_all_that_is_asked_of_a_larger_pool(corpus: Record, tmp_path: Path) -> None:
    first = labelled(corpus, tmp_path, GOOD_FAKE, "v1")
    grown = replace(corpus, path=tmp_path / "corpus" / "v2", fingerprint="c1")
    shutil.copytree(corpus.path, grown.path)
    write_table(rows_to_table(pool(52)[40:], PAIRS), grown.path / "pairs" / "b.parquet", PAIRS)
    forecast = label_forecast(GOOD_FAKE, policy=POLICY_DIR, corpus=grown, out=tmp_path / "label" / "v2")
    assert forecast == Forecast(num_new=12 * NUM_ASKED, num_reused=40 * NUM_ASKED, num_stale=0)

    judge = Counting(dimensions=POLICY.rubric.names, judge_id="good")
    calibration = replace(first, metrics={"judge_id": "good", "passed": True})
    out = tmp_path / "label" / "v2"
    second = label(judge_config(), policy=POLICY_DIR, corpus=grown, calibration=calibration, judge=judge, out=out)
    assert {pair_id for pair_id, _ in judge.asked} == {pair["pair_id"] for pair in pool(52)[40:]}
    assert len(judge.asked) == 12 * NUM_ASKED
    before, after = label_set(first), label_set(second)
    assert len(after) == 52 * (NUM_ASKED + 1)
    assert all(after[row] == before[row] for row in before if row[1] != OVERALL)
    # Derived anew, from probabilities that were stored in single precision.
    assert all(after[row]["probs"] == pytest.approx(before[row]["probs"]) for row in before if row[1] == OVERALL)


def test_what_another_judge_said_or_could_not_say_is_asked(corpus: Record, tmp_path: Path) -> None:
    poisoned = pool(40)[5]["pair_id"]
    labelled(corpus, tmp_path, replace(GOOD_FAKE, poison=frozenset({poisoned})), "v1")
    other = Counting(dimensions=POLICY.rubric.names, judge_id="other")
    assert labelled(corpus, tmp_path, other, "v2").metrics["num_rows_reused"] == 0
    assert {pair["pair_id"] for pair in pool(40)} <= {pair_id for pair_id, _ in other.asked}

    again = label_forecast(GOOD_FAKE, policy=POLICY_DIR, corpus=corpus, out=tmp_path / "label" / "v3")
    assert again == Forecast(num_new=NUM_ASKED, num_reused=39 * NUM_ASKED, num_stale=0)


def test_a_forecast_leaves_an_interrupted_run_as_it_is(corpus: Record, tmp_path: Path) -> None:
    calibration = calibrated(corpus, tmp_path, GOOD_FAKE)
    out = tmp_path / "label" / "v1"
    args: dict[str, Any] = {"policy": POLICY_DIR, "corpus": corpus, "pairs_per_block": 8, "out": out}
    with pytest.raises(RejectCeilingError):
        label(
            judge_config(max_attempts=1, max_reject_share=0.0),
            **args,
            calibration=calibration,
            judge=Flaky(dimensions=POLICY.rubric.names, judge_id="good", num_faults=1),
        )
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert any(file.name.startswith("done-") for file in before)
    assert label_forecast(GOOD_FAKE, **args) == Forecast(num_new=40 * NUM_ASKED, num_reused=0, num_stale=0)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_a_finished_version_has_nothing_to_ask(corpus: Record, tmp_path: Path) -> None:
    record = labelled(corpus, tmp_path, GOOD_FAKE, "v1")
    forecast = label_forecast(GOOD_FAKE, policy=POLICY_DIR, corpus=corpus, out=record.path)
    assert forecast == Forecast(num_new=0, num_reused=40 * NUM_ASKED, num_stale=0)
