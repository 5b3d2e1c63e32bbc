from __future__ import annotations

import itertools
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.contracts import (
    LABELS,
    OVERALL,
    REJECTS,
    rows_to_table,
)
from preceptor.errors import InputError, PolicyError
from preceptor.judge.engine import environment, over_long, reason_of
from preceptor.judge.hosted import read_checkpoint
from preceptor.judge.judges import open_judge, revision_of
from preceptor.judge.overall import overall_probs
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
from preceptor.logits import sigmoid, softmax
from preceptor.policy import Rubric, load_policy
from preceptor.recipe import POLICY_DIR, EngineConfig
from preceptor.record import Record
from tests.unit.labelling import judge_config

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


@pytest.mark.parametrize("weights", [None, (0.1, 2.5, 0.3, 0.7, 7.0, 0.2, 12.25, 3.3, 0.05)])
def test_the_overall_distribution_of_all_dimensions_is_the_enumerated_one(weights: tuple[float, ...] | None) -> None:
    rubric = POLICY.rubric
    if weights is not None:
        known = zip(rubric.dimensions, weights, strict=True)
        rubric = replace(rubric, dimensions=tuple(replace(item, weight=weight) for item, weight in known))
    draw = np.random.default_rng(7)
    for _ in range(5):
        chances = {name: draw.uniform(0.05, 0.95) for name in rubric.names}
        ends = {name: draw.choice(5, size=2, replace=False) for name in rubric.names}
        probs = {name: np.bincount(ends[name], weights=(chance, 1 - chance), minlength=5).tolist()
                 for name, chance in chances.items()}  # fmt: skip
        wanted = [0.0] * 5
        for taken in itertools.product((0, 1), repeat=len(rubric.names)):
            grades = {name: int(ends[name][end]) for name, end in zip(rubric.names, taken, strict=True)}
            wanted[rubric.aggregate(grades)] += math.prod(probs[name][grade] for name, grade in grades.items())
        assert overall_probs(rubric, probs).tolist() == pytest.approx(wanted)


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


def test_a_model_of_other_weights_is_another_judge(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(3 * 2**20))
    before = revision_of(str(tmp_path))
    assert re.fullmatch("[0-9a-f]{8}", before) and revision_of(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_bytes(bytes(3 * 2**20 - 1) + b"1")
    assert revision_of(str(tmp_path)) != before
    assert revision_of("nobody/has-this-model") == ""


@pytest.mark.parametrize(("num_replicas", "cpus", "share"), [(1, 1, 1.0), (2, 1, 0.5), (1, 3, None), (99, 1, 0.0)])
def test_cpu_engines_that_reserve_one_core_share_the_machines(
    num_replicas: int, cpus: int, share: float | None
) -> None:
    found = environment("model", EngineConfig(num_replicas=num_replicas, cpus_per_replica=cpus))["OMP_NUM_THREADS"]
    assert int(found) == (cpus if share is None else max(1, int(len(os.sched_getaffinity(0)) * share)))
