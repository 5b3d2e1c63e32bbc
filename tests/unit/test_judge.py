from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.contracts import (
    GOLDEN,
    LABELS,
    OVERALL,
    PAIRS,
    REJECTS,
    make_pair,
    read_table,
    rows_to_table,
    write_table,
)
from preceptor.errors import InputError, JudgeRefused, PolicyError, RejectCeilingError
from preceptor.judge import Answers, FakeJudge, Judge, Reply, calibrate, label
from preceptor.judge.calibrate import calibration_rows
from preceptor.judge.engine import over_long, reason_of
from preceptor.judge.hosted import read_checkpoint
from preceptor.judge.judges import open_judge, revision_of
from preceptor.judge.label import label_forecast
from preceptor.judge.replies import (
    INCOMPLETE,
    NO_GRADE,
    TIMEOUT,
    graded,
    label_rows,
    one_hot,
    overall_reply,
    rejected,
    restricted,
)
from preceptor.judge.reuse import Forecast
from preceptor.logits import sigmoid, softmax
from preceptor.policy import Rubric, load_policy
from preceptor.recipe import POLICY_DIR, EngineConfig, JudgeConfig
from preceptor.record import Record

DIMENSIONS = ("role", "place", "quality")
POLICY = load_policy(POLICY_DIR)
SMALL = restricted(POLICY.rubric, DIMENSIONS)

masses = st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5)


# ---------------------------------------------------------------- replies


@given(masses)
def test_a_graded_reply_keeps_the_distribution_and_its_label_mass(five: list[float]) -> None:
    scaled = [0.9 * mass / sum(five) for mass in five]
    reply = graded("p", "role", scaled)
    assert reply.probs is not None
    assert sum(reply.probs) == pytest.approx(1.0)
    assert reply.label_mass == pytest.approx(0.9)
    assert np.array(reply.probs) * 0.9 == pytest.approx(scaled)


@pytest.mark.parametrize("five", [[0.0] * 5, [float("nan")] * 5, [1e-6] * 5, [-1.0, 1, 1, 1, 1], [0.5, 0.5]])
def test_masses_that_are_no_distribution_are_rejected_and_never_grade_0(five: list[float]) -> None:
    reply = graded("p", "role", five)
    assert (reply.probs, reply.reason) == (None, NO_GRADE)


@pytest.mark.parametrize(("text", "grade"), [("3", 3), (" 4\n", 4), ('"2"', 2), ("0.", 0)])
def test_a_lone_digit_is_a_grade(text: str, grade: int) -> None:
    found = one_hot(text)
    assert found is not None
    assert found.index(1.0) == grade


@pytest.mark.parametrize("text", ["", None, "5", "10", "-1", "3 or 4", "A solid 3", "zero", "3.5"])
def test_anything_else_is_not(text: str | None) -> None:
    assert one_hot(text) is None


def brute_force_overall(rubric: Rubric, probs: dict[str, tuple[float, ...]]) -> list[float]:
    found = [0.0] * 5
    for grades in itertools.product(range(5), repeat=len(rubric.dimensions)):
        chosen = dict(zip(rubric.names, grades, strict=True))
        weight = 1.0
        for name, grade in chosen.items():
            weight *= probs[name][grade]
        found[rubric.aggregate(chosen)] += weight
    return found


@settings(max_examples=20, deadline=None)
@given(st.tuples(masses, masses, masses))
def test_the_overall_distribution_is_the_enumerated_one(drawn: tuple[list[float], ...]) -> None:
    replies = {
        name: graded("p", name, [0.8 * mass / sum(five) for mass in five])
        for name, five in zip(DIMENSIONS, drawn, strict=True)
    }
    overall = overall_reply(SMALL, "p", replies)
    wanted = brute_force_overall(SMALL, {name: reply.probs or () for name, reply in replies.items()})
    assert overall.probs == pytest.approx(wanted)
    assert overall.label_mass == pytest.approx(0.8**3)


def test_sure_grades_aggregate_as_the_rubric_does() -> None:
    grades = {"role": 4, "place": 0, "quality": 3}
    replies = {name: graded("p", name, [float(each == grade) for each in range(5)]) for name, grade in grades.items()}
    probs = overall_reply(SMALL, "p", replies).probs
    assert probs is not None
    assert probs.index(1.0) == SMALL.aggregate(grades) == 1


def test_without_one_dimension_there_is_no_overall_grade() -> None:
    replies = {name: graded("p", name, [0.2] * 5) for name in DIMENSIONS}
    replies["place"] = rejected("p", "place", TIMEOUT)
    overall = overall_reply(SMALL, "p", replies)
    assert (overall.probs, overall.reason, overall.raw) == (None, INCOMPLETE, "place")


def test_every_reply_becomes_one_label_or_one_reject() -> None:
    replies = [graded("p", "role", [0, 0.1, 0.7, 0, 0]), rejected("p", "place", NO_GRADE, raw="x" * 5000, attempt=3)]
    labels, rejects = label_rows(
        replies, stage="label", judge_id="j", policy_version="v", prompt_hashes={"role": "abc"}
    )
    (found,) = rows_to_table(labels, LABELS).to_pylist()
    assert (found["grade"], found["prompt_hash"]) == (2, "abc")
    assert found["label_mass"] == pytest.approx(0.8)
    (reject,) = rows_to_table(rejects, REJECTS).to_pylist()
    assert (reject["id"], reject["reason"], reject["attempt"], len(reject["raw"])) == ("p/place", NO_GRADE, 3, 2000)


@pytest.mark.parametrize("logit", [0.0, 3.0, -3.0, 1000.0, -1000.0])
def test_sigmoid_is_the_softmax_against_zero_however_large_the_logit(logit: float) -> None:
    assert softmax([logit, 0.0]) == pytest.approx((sigmoid(logit), sigmoid(-logit)))


def test_engine_errors_are_counted_by_kind() -> None:
    engine = EngineConfig(max_model_len=100)
    assert over_long(99, engine, num_new=1) == ""
    assert reason_of(over_long(100, engine, num_new=1)) == "over-long"
    assert reason_of("ValueError: prompt 17 is odd") == reason_of("ValueError: prompt 18 is odd")


# ---------------------------------------------------------------- stages


def pool(num: int, *, per_query: int = 4, split: str = "train") -> list[dict[str, Any]]:
    return [
        make_pair(f"{split} query {n // per_query}", "a welder", f"posting {n}", slice="s", split=split)
        for n in range(num)
    ]


def truth_of(pair_id: str) -> dict[str, int]:
    grades = {name: FakeJudge(dimensions=(), judge_id="t").answer(pair_id, name) for name in POLICY.rubric.names}
    chosen = {name: int(np.argmax(reply.probs or ())) for name, reply in grades.items()}
    return {**chosen, OVERALL: POLICY.rubric.aggregate(chosen)}


@pytest.fixture
def corpus(tmp_path: Path) -> Record:
    """A corpus whose constructed truth is what FakeJudge says."""
    out = tmp_path / "corpus" / "v1"
    write_table(rows_to_table(pool(40), PAIRS), out / "pairs" / "a.parquet", PAIRS)
    rows = [
        {**pair, "dimension": name, "grade": grade, "grader_id": "test", "reason": None, "policy_version": "v"}
        for pair in pool(40, split="calibration")
        for name, grade in truth_of(pair["pair_id"]).items()
    ]
    write_table(rows_to_table(rows, GOLDEN), out / "golden" / "a.parquet", GOLDEN)
    return Record(stage="market", version="v1", fingerprint="c0", path=out, config={})


def judge_config(**changes: Any) -> JudgeConfig:
    defaults = {"floor": 0.6, "max_reject_share": 0.5, "num_calibration_pairs": 30}
    return JudgeConfig(kind="fake", model="m", **{**defaults, **changes})


GOOD_FAKE = FakeJudge(dimensions=POLICY.rubric.names, judge_id="good")


def contrarian() -> FakeJudge:
    pairs = pool(40, split="calibration")
    known = {(pair["pair_id"], name): 4 - truth_of(pair["pair_id"])[name] for pair in pairs for name in ("role", "pay")}
    return replace(GOOD_FAKE, judge_id="contrarian", known=known)


def calibrated(corpus: Record, tmp_path: Path, judge: Judge, **changes: Any) -> Record:
    out = tmp_path / "calibrate" / judge.judge_id
    return calibrate(judge_config(**changes), policy=POLICY_DIR, corpus=corpus, judge=judge, out=out)


def test_a_judge_that_agrees_passes_and_the_record_says_how_well(corpus: Record, tmp_path: Path) -> None:
    record = calibrated(corpus, tmp_path, GOOD_FAKE)
    metrics = record.metrics
    assert set(metrics) == {
        "kappa",
        "kappa_low",
        "kappa_high",
        "floor",
        "passed",
        "num_pairs",
        "confusion",
        "per_dimension",
        "label_mass",
        "judge_id",
    }
    assert metrics["passed"] is True
    assert metrics["num_pairs"] == 28, "whole groups of four, at most 30"
    assert np.sum(metrics["confusion"]) == 28
    assert metrics["per_dimension"] == pytest.approx(dict.fromkeys(POLICY.rubric.names, 1.0))
    assert metrics["kappa_low"] <= metrics["kappa"] <= metrics["kappa_high"]


def test_a_judge_under_the_floor_is_recorded_and_then_refused(corpus: Record, tmp_path: Path) -> None:
    judge = contrarian()
    record = calibrated(corpus, tmp_path, judge)
    assert record.metrics["passed"] is False
    out = tmp_path / "label" / "v1"
    with pytest.raises(JudgeRefused) as refusal:
        label(judge_config(), policy=POLICY_DIR, corpus=corpus, calibration=record, judge=judge, out=out)
    message = str(refusal.value)
    assert "\n" not in message
    assert "contrarian" in message and "0.600" in message and f"{record.metrics['kappa']:.3f}" in message
    assert "'role'" in message or "'pay'" in message
    assert not out.exists()


def test_a_calibration_of_another_judge_or_policy_does_not_count(corpus: Record, tmp_path: Path) -> None:
    record = calibrated(corpus, tmp_path, GOOD_FAKE)
    out = tmp_path / "label" / "v1"
    with pytest.raises(JudgeRefused, match="Calibrate this judge first"):
        label(judge_config(), policy=POLICY_DIR, corpus=corpus, calibration=record, judge=contrarian(), out=out)
    stale = replace(record, policy_version="0.9.0+00000000")
    with pytest.raises(JudgeRefused, match=r"0\.9\.0"):
        label(judge_config(), policy=POLICY_DIR, corpus=corpus, calibration=stale, judge=GOOD_FAKE, out=out)


def test_labelling_accounts_for_every_row_and_skips_when_done(corpus: Record, tmp_path: Path) -> None:
    poisoned = pool(40)[5]["pair_id"]
    judge = replace(GOOD_FAKE, poison=frozenset({poisoned}))
    calibration = calibrated(corpus, tmp_path, judge)
    args: dict[str, Any] = {"policy": POLICY_DIR, "corpus": corpus, "calibration": calibration, "judge": judge}
    out = tmp_path / "label" / "v1"
    record = label(judge_config(), **args, pairs_per_block=8, out=out)
    labels, rejects = read_table(out / "labels", LABELS), read_table(out / "rejects", REJECTS)
    keys = [f"{row['pair_id']}/{row['dimension']}" for row in labels.to_pylist()] + rejects.column("id").to_pylist()
    wanted = {f"{pair['pair_id']}/{name}" for pair in pool(40) for name in (*POLICY.rubric.names, OVERALL)}
    assert sorted(keys) == sorted(wanted)
    assert {key.split("/")[0] for key in rejects.column("id").to_pylist()} == {poisoned}
    assert (record.num_rows_in, record.num_rows_kept) == (len(wanted), labels.num_rows)
    assert record.rejected == {NO_GRADE: 7, INCOMPLETE: 1}
    assert label(judge_config(), **args, pairs_per_block=8, out=out) == replace(record, path=out)


@dataclass(frozen=True, kw_only=True)
class Refusing(FakeJudge):
    """A judge that must not be asked."""

    async def grade(self, pairs: pa.Table) -> Answers:
        raise AssertionError(f"asked again for {pairs.num_rows} pairs")


@dataclass(frozen=True, kw_only=True)
class Quitting(FakeJudge):
    """A judge that breaks down in its third block."""

    blocks: list[int] = field(default_factory=list)

    async def grade(self, pairs: pa.Table) -> Answers:
        self.blocks.append(pairs.num_rows)
        if len(self.blocks) == 3:
            raise RuntimeError("broken")
        return await super().grade(pairs)


def test_a_judge_that_breaks_down_leaves_whole_blocks_that_a_rerun_keeps(corpus: Record, tmp_path: Path) -> None:
    calibration = calibrated(corpus, tmp_path, GOOD_FAKE)
    args: dict[str, Any] = {"policy": POLICY_DIR, "corpus": corpus, "calibration": calibration, "pairs_per_block": 8}
    out = tmp_path / "label" / "v1"
    with pytest.raises(RuntimeError, match="broken"):
        label(judge_config(), **args, judge=Quitting(dimensions=POLICY.rubric.names, judge_id="good"), out=out)
    assert len(list(out.glob("open/*/done-*.json"))) == 2
    judge = Counting(dimensions=POLICY.rubric.names, judge_id="good")
    record = label(judge_config(), **args, judge=judge, out=out)
    assert len({pair_id for pair_id, _ in judge.asked}) == 40 - 2 * 8
    assert record.num_rows_kept == 40 * 8 and not (out / "open").exists() and not (out / "pool").exists()


def test_too_many_rejects_stop_the_stage_and_a_rerun_asks_nothing_again(corpus: Record, tmp_path: Path) -> None:
    calibration = calibrated(corpus, tmp_path, GOOD_FAKE)
    args: dict[str, Any] = {"policy": POLICY_DIR, "corpus": corpus, "calibration": calibration}
    out = tmp_path / "label" / "v1"
    poisoned = replace(GOOD_FAKE, poison_share=1.0)
    with pytest.raises(RejectCeilingError, match=f"{NO_GRADE}: 280"):
        label(judge_config(), **args, judge=poisoned, out=out)
    assert not (out / "record.json").exists()
    with pytest.raises(RejectCeilingError):
        label(judge_config(), **args, judge=Refusing(dimensions=POLICY.rubric.names, judge_id="good"), out=out)


@dataclass(frozen=True, kw_only=True)
class Flaky(FakeJudge):
    """A judge that times out on each row for its first `num_faults` tries."""

    num_faults: int
    tries: Counter[tuple[str, str]] = field(default_factory=Counter)

    def answer(self, pair_id: str, dimension: str) -> Reply:
        self.tries[pair_id, dimension] += 1
        if self.tries[pair_id, dimension] <= self.num_faults:
            return rejected(pair_id, dimension, TIMEOUT)
        return super().answer(pair_id, dimension)


def test_a_row_that_fails_for_the_moment_is_tried_again_within_bounds(
    corpus: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preceptor.judge.blocks._RETRY_WAIT_S", 0.0)
    calibration = calibrated(corpus, tmp_path, GOOD_FAKE)
    args: dict[str, Any] = {"policy": POLICY_DIR, "corpus": corpus, "calibration": calibration}
    judge = Flaky(dimensions=POLICY.rubric.names, judge_id="good", num_faults=2)
    assert label(judge_config(), **args, judge=judge, out=tmp_path / "label" / "v1").rejected == {}

    broken = Flaky(dimensions=POLICY.rubric.names, judge_id="good", num_faults=99)
    with pytest.raises(RejectCeilingError, match=f"{TIMEOUT}: 280"):
        label(judge_config(), **args, judge=broken, out=tmp_path / "other" / "v1")
    assert set(broken.tries.values()) == {judge_config().max_attempts}


def test_rejects_that_a_new_try_may_cure_are_tried_again_by_the_next_run(
    corpus: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preceptor.judge.blocks._RETRY_WAIT_S", 0.0)
    calibration = calibrated(corpus, tmp_path, GOOD_FAKE)
    args: dict[str, Any] = {"policy": POLICY_DIR, "corpus": corpus, "calibration": calibration}
    out = tmp_path / "label" / "v1"
    with pytest.raises(RejectCeilingError, match=TIMEOUT):
        label(
            judge_config(),
            **args,
            judge=Flaky(dimensions=POLICY.rubric.names, judge_id="good", num_faults=99),
            out=out,
        )
    assert label(judge_config(), **args, judge=GOOD_FAKE, out=out).rejected == {}


@dataclass(frozen=True, kw_only=True)
class Counting(FakeJudge):
    """A judge that remembers what it was asked."""

    asked: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, pair_id: str, dimension: str) -> Reply:
        self.asked.append((pair_id, dimension))
        return super().answer(pair_id, dimension)


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
        num_new=0, num_reused=40 * 6, num_stale=40
    )

    calibration = calibrate(
        judge_config(), policy=policy, corpus=corpus, judge=GOOD_FAKE, out=tmp_path / "calibrate" / "v2"
    )
    judge = Counting(dimensions=POLICY.rubric.names, judge_id="good")
    second = label(judge_config(), policy=policy, corpus=corpus, calibration=calibration, judge=judge, out=out)
    assert sorted(judge.asked) == sorted((pair["pair_id"], "skills") for pair in pool(40))
    assert second.metrics["num_rows_reused"] == 40 * 6
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
    assert forecast == Forecast(num_new=12 * 7, num_reused=40 * 7, num_stale=0)

    judge = Counting(dimensions=POLICY.rubric.names, judge_id="good")
    calibration = replace(first, metrics={"judge_id": "good", "passed": True})
    out = tmp_path / "label" / "v2"
    second = label(judge_config(), policy=POLICY_DIR, corpus=grown, calibration=calibration, judge=judge, out=out)
    assert {pair_id for pair_id, _ in judge.asked} == {pair["pair_id"] for pair in pool(52)[40:]}
    assert len(judge.asked) == 12 * 7
    before, after = label_set(first), label_set(second)
    assert len(after) == 52 * 8
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
    assert again == Forecast(num_new=7, num_reused=39 * 7, num_stale=0)


def test_a_finished_version_has_nothing_to_ask(corpus: Record, tmp_path: Path) -> None:
    record = labelled(corpus, tmp_path, GOOD_FAKE, "v1")
    forecast = label_forecast(GOOD_FAKE, policy=POLICY_DIR, corpus=corpus, out=record.path)
    assert forecast == Forecast(num_new=0, num_reused=40 * 7, num_stale=0)


def test_a_model_of_other_weights_is_another_judge(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(3 * 2**20))
    before = revision_of(str(tmp_path))
    assert re.fullmatch("[0-9a-f]{8}", before) and revision_of(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_bytes(bytes(3 * 2**20 - 1) + b"1")
    assert revision_of(str(tmp_path)) != before
    assert revision_of("nobody/has-this-model") == ""


def test_calibration_needs_calibration_pairs_and_takes_whole_groups(corpus: Record, tmp_path: Path) -> None:
    fewer = calibration_rows(corpus.path / "golden", num_pairs=9)
    more = calibration_rows(corpus.path / "golden", num_pairs=20)
    ids, larger = set(fewer.column("pair_id").to_pylist()), set(more.column("pair_id").to_pylist())
    assert (len(ids), len(larger)) == (8, 20)
    assert ids < larger, "a larger number extends the choice"
    train = fewer.set_column(fewer.column_names.index("split"), GOLDEN.field("split"), pa.array(["train"] * len(fewer)))
    write_table(train, tmp_path / "golden" / "a.parquet", GOLDEN)
    with pytest.raises(InputError, match="no golden pair in split 'calibration'"):
        calibration_rows(tmp_path / "golden", num_pairs=9)


def test_labelling_a_split_that_is_not_there_names_those_that_are(corpus: Record, tmp_path: Path) -> None:
    calibration = calibrated(corpus, tmp_path, GOOD_FAKE)
    with pytest.raises(InputError, match="splits there: train"):
        label(
            judge_config(),
            policy=POLICY_DIR,
            corpus=corpus,
            calibration=calibration,
            judge=GOOD_FAKE,
            splits=("holdout",),
            out=tmp_path / "label" / "v1",
        )


# ---------------------------------------------------------------- which judge


def test_a_dimension_the_rubric_lacks_is_refused() -> None:
    with pytest.raises(PolicyError, match="charm"):
        open_judge(judge_config(dimensions=("charm",)), POLICY, teacher=None, model=None)


def test_a_teacher_answers_with_the_grade_heads_it_has(tmp_path: Path) -> None:
    heads = [{"name": OVERALL, "kind": "grade"}, {"name": "click", "kind": "action"}, {"name": "role", "kind": "grade"}]
    config = {"preceptor_heads": heads, "preceptor_max_prefix_tokens": 32, "preceptor_max_document_tokens": 64}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    checkpoint = read_checkpoint(tmp_path / "model")
    assert checkpoint.heads == {OVERALL: slice(0, 5), "click": slice(5, 6), "role": slice(6, 11)}
    teacher = Record(stage="relevance", version="v1", fingerprint="f00", path=tmp_path, config={})
    judge = open_judge(judge_config(), POLICY, teacher=teacher, model=None)
    assert judge.dimensions == (OVERALL, "role")
    assert judge.judge_id == "teacher:f00"
    assert judge.heads == (OVERALL, "click", "role")


def test_a_checkpoint_that_is_not_ours_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: not a model's config"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="preceptor_heads"):
        read_checkpoint(tmp_path)
