"""What teachers and a student are told: clicks become rates, voices keep to their masks, recipes their fingerprints."""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from preceptor.contracts import (
    EXAMPLES,
    IMPRESSIONS,
    OVERALL,
    TEACHER_SCORES,
    make_pair,
    rows_to_table,
    split_of,
    write_table,
)
from preceptor.errors import InputError, RecipeError
from preceptor.recipe import DistillConfig, GradientMixing, Mix, UncertaintyMixing, Voice
from preceptor.recipes import SHIPPED
from preceptor.record import Record, fingerprint_of, to_jsonable
from preceptor.student.distill import hardened, is_drawn, learnable, merged, objective_of, stored_scores, voice_examples
from preceptor.teachers.engagement import MIN_PROPENSITY, click_examples, exposures
from tests.unit.ranking import softmax

FINGERPRINTS = {
    "tiny": "3261f06a8c12fa80",
    "demo": "3a5aee684f2c91d1",
    "jobmatch": "89544516fcbecd25",
    "cluster": "23578eea4e2ec1f8",
}
"""Of the shipped recipes' distillation, without inputs, before there were voices, mixing rules or losses of order.

That of jobmatch since its student learns differences, and actions' log-odds as they are.
"""


# what the teachers and the student learn from


def test_rates_given_examination_recover_attraction_where_raw_rates_do_not() -> None:
    # The best document was mostly shown at the bottom, as an earlier ranker had it.
    attraction = {"best": 0.6, "good": 0.4, "poor": 0.2}
    shown_at = {"best": 0.2, "good": 0.5, "poor": 0.9}
    draw = random.Random(4)
    rows = []
    for pair_id, rate in attraction.items():
        for _ in range(20_000):
            # A fifth of the time anywhere, as exploration would show it.
            examined = shown_at[pair_id] if draw.random() < 0.8 else draw.choice([0.2, 0.5, 0.9])
            click = float(draw.random() < examined * rate)
            rows.append({"pair_id": pair_id, "examined": examined, "click": click, "apply": None})
    corrected = {row["pair_id"]: row["target"][0] for row in click_examples(rows)}
    raw = {row["pair_id"]: row["target"][0] for row in click_examples([{**row, "examined": 1.0} for row in rows])}
    # 20,000 draws at 0.29 examinations each or more: a standard deviation of at most 0.008.
    assert corrected == pytest.approx(attraction, abs=0.04)
    assert raw["best"] < raw["poor"] < attraction["poor"]


def test_an_action_counts_where_it_was_seen_and_ever_taken() -> None:
    rows = [
        {"pair_id": "a", "examined": 0.25, "click": 1.0, "apply": 0.0},
        {"pair_id": "a", "examined": 0.5, "click": 0.0, "apply": 0.0},
        {"pair_id": "b", "examined": 0.5, "click": 1.0, "apply": 0.0},
        {"pair_id": "c", "examined": 2.0, "click": None, "apply": 0.0},
    ]
    found = {row["pair_id"]: row for row in click_examples(rows)}
    assert found == {
        "a": {"pair_id": "a", "head": "click", "target": [1.0], "weight": 0.75},  # 1 / 0.75, cut
        "b": {"pair_id": "b", "head": "click", "target": [1.0], "weight": 0.5},
    }
    assert rows_to_table(found.values(), EXAMPLES).num_rows == 2
    applied = list(click_examples([*rows, {"pair_id": "c", "examined": 2.0, "click": None, "apply": 1.0}]))
    rates = {row["pair_id"]: row["target"] for row in applied if row["head"] == "apply"}
    assert rates == {"a": [0.0], "b": [0.0], "c": [0.25]}


def test_a_position_that_nobody_examines_cannot_dominate(tmp_path: Path) -> None:
    pair = make_pair("nurse", "", "ward", slice="s")
    ids = {name: pair[name] for name in ("pair_id", "query_id", "profile_id", "document_id", "split")}
    when = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    rows = [
        {**ids, "request_id": "r", "position": 9, "shown_at": when, "click": True, "apply": False, "propensity": given}
        for given in (1e-6, 0.5)
    ]
    write_table(rows_to_table(rows, IMPRESSIONS), tmp_path / "impressions" / "0.parquet", IMPRESSIONS)
    corpus = Record(stage="market", version="v1", fingerprint="c", path=tmp_path, config={})
    assert [row["examined"] for row in exposures(corpus)] == [MIN_PROPENSITY, 0.5]


def test_stored_logits_become_probabilities_at_the_temperature_asked(tmp_path: Path) -> None:
    logits = [4.0, 2.0, 0.0, -2.0, -40.0]
    rows = [
        {"pair_id": "a", "teacher": "relevance_teacher", "head": OVERALL, "logits": logits},
        {"pair_id": "a", "teacher": "relevance_teacher", "head": "role", "logits": logits},
        {"pair_id": "b", "teacher": "engagement_teacher", "head": "click", "logits": [-1.5]},
    ]
    write_table(rows_to_table(rows, TEACHER_SCORES), tmp_path / "0.parquet", TEACHER_SCORES)
    slices = {"a": "s", "b": "s"}
    (graded,) = voice_examples(tmp_path, Voice(teacher="relevance", temperature=2.0, heads=(OVERALL,)), slices)
    (acted,) = voice_examples(tmp_path, Voice(teacher="engagement", heads=("click",)), slices)
    assert graded == {
        "pair_id": "a",
        "head": OVERALL,
        "target": pytest.approx(softmax([2, 1, 0, -1, -20])),
        "weight": 1,
    }
    assert acted == {"pair_id": "b", "head": "click", "target": [pytest.approx(1 / (1 + math.exp(1.5)))], "weight": 1}
    write_table(
        rows_to_table([{**rows[0], "logits": [1.0, 2.0]}], TEACHER_SCORES), tmp_path / "1.parquet", TEACHER_SCORES
    )
    with pytest.raises(InputError, match="expected 5 logits, got 2"):
        list(voice_examples(tmp_path, Voice(teacher="relevance"), slices))


# voices


def score_rows(scores: dict[str, list[float]], head: str) -> list[dict[str, Any]]:
    return [{"pair_id": pair_id, "teacher": "t", "head": head, "logits": logits} for pair_id, logits in scores.items()]


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Grades of pairs a and b, clicks and applies of a, b and c; c is in no slice that may be learnt."""
    rows = [
        *score_rows({"a": [0.0, 0, 0, 0, 2], "b": [2.0, 0, 0, 0, 0], "c": [0.0] * 5}, OVERALL),
        *score_rows({"a": [0.0, 0, 0, 0, 2]}, "role"),
        *score_rows({"a": [-4.0], "b": [1.0], "c": [0.0]}, "click"),
        *score_rows({"a": [-6.0], "b": [-1.0]}, "apply"),
    ]
    write_table(rows_to_table(rows, TEACHER_SCORES), tmp_path / "scores" / "0.parquet", TEACHER_SCORES)
    return tmp_path / "scores"


SLICES = {"a": "plain", "b": "vague"}


@pytest.mark.parametrize(
    ("voice", "heard"),
    [
        (Voice(teacher="relevance"), ["a overall", "b overall", "a click", "b click", "a apply", "b apply"]),
        (Voice(teacher="relevance", heads=(OVERALL,)), ["a overall", "b overall"]),
        (Voice(teacher="engagement", heads=("apply",)), ["a apply", "b apply"]),
        (Voice(teacher="engagement", heads=("click", "apply"), least=0.05), ["b click", "b apply"]),
        (Voice(teacher="relevance", slices=("vague",)), ["b overall", "b click", "b apply"]),
        (Voice(teacher="relevance", slices=("nowhere",)), []),
    ],
)
def test_a_voice_is_heard_where_no_mask_leaves_it_out(voice: Voice, heard: list[str], scores: Path) -> None:
    found = voice_examples(scores, voice, SLICES)
    assert [f"{row['pair_id']} {row['head']}" for row in found] == heard


def test_a_voice_has_a_weight_and_a_temperature_of_its_own(scores: Path) -> None:
    voice = Voice(teacher="engagement", heads=("click",), weight=3.0, temperature=2.0)
    found = {row["pair_id"]: row for row in voice_examples(scores, voice, SLICES)}
    assert found["a"]["weight"] == 3.0
    assert found["a"]["target"] == [pytest.approx(1 / (1 + math.exp(2)))]


def test_hard_targets_are_the_top_grade_and_whether_an_action_is_likely(scores: Path) -> None:
    voice = Voice(teacher="relevance", targets="hard", temperature=3.0)
    found = {(row["pair_id"], row["head"]): row["target"] for row in voice_examples(scores, voice, SLICES)}
    assert found == {
        ("a", OVERALL): [0.0, 0.0, 0.0, 0.0, 1.0],
        ("b", OVERALL): [1.0, 0.0, 0.0, 0.0, 0.0],
        ("a", "click"): [0.0],
        ("b", "click"): [1.0],
        ("a", "apply"): [0.0],
        ("b", "apply"): [0.0],
    }
    assert hardened([0.2, 0.3, 0.3, 0.1, 0.1]) == [0.0, 1.0, 0.0, 0.0, 0.0], "the lower of equals"


def test_masks_look_at_probabilities_where_targets_are_hard(scores: Path) -> None:
    voice = Voice(teacher="engagement", heads=("click", "apply"), least=0.2, targets="hard")
    found = [(row["pair_id"], row["head"], row["target"]) for row in voice_examples(scores, voice, SLICES)]
    assert found == [("b", "click", [1.0]), ("b", "apply", [0.0])]


def test_a_share_draws_whole_queries_and_a_larger_one_holds_it() -> None:
    queries = [f"query {number}" for number in range(4000)]
    drawn = {share: {query for query in queries if is_drawn(query, share)} for share in (0.125, 0.25, 0.5, 1.0)}
    assert drawn[0.125] < drawn[0.25] < drawn[0.5] < drawn[1.0] == set(queries)
    for share, found in drawn.items():
        assert len(found) == pytest.approx(share * len(queries), rel=0.15)
    rows = [
        {"pair_id": f"{query}/{number}", "query_id": query, "slice": "plain", "split": split}
        for query in queries[:40]
        for number, split in enumerate(("train", "train", "holdout"))
    ]
    halved = learnable(rows, share=0.5)
    assert halved == {
        f"{query}/{number}": "plain" for query in queries[:40] if query in drawn[0.5] for number in (0, 1)
    }
    # Not the hash of the splits: that would draw train queries unevenly.
    train = [query for query in queries if split_of(query) == "train"]
    assert len(drawn[0.5].intersection(train)) == pytest.approx(len(train) / 2, rel=0.1)


def test_voices_of_one_head_pull_as_a_term_for_each_would(scores: Path) -> None:
    other = scores.parent / "other"
    rows = [*score_rows({"a": [3.0, 0, 0, 0, 0]}, OVERALL), *score_rows({"a": [2.0]}, "click")]
    write_table(rows_to_table(rows, TEACHER_SCORES), other / "0.parquet", TEACHER_SCORES)
    first = list(voice_examples(scores, Voice(teacher="relevance", temperature=2.0), SLICES))
    second = list(voice_examples(other, Voice(teacher="second", scores=other, weight=0.5), SLICES))
    together = {(row["pair_id"], row["head"]): row for row in merged([*first, *second])}
    assert len(together) == len(first), "one row for each pair and head"
    assert together["b", OVERALL] in first, "what one voice says alone is not touched"
    assert together["a", OVERALL]["weight"] == 1.5

    def gradient(rows: Sequence[dict[str, Any]]) -> Tensor:
        logits = torch.tensor([0.3, -1.0, 0.2, 0.8, 0.0, 0.4], requires_grad=True)
        loss = torch.zeros(())
        for row in rows:
            target, weight = torch.tensor(row["target"]), row["weight"]
            if row["pair_id"] == "a" and row["head"] == OVERALL:
                loss = loss + weight * (torch.xlogy(target, target) - target * logits[:5].log_softmax(-1)).sum()
            if row["pair_id"] == "a" and row["head"] == "click":
                loss = loss + weight * torch.nn.functional.binary_cross_entropy_with_logits(logits[5:], target)
        loss.backward()
        assert logits.grad is not None
        return logits.grad

    torch.testing.assert_close(gradient(list(together.values())), gradient([*first, *second]), atol=1e-6, rtol=1e-5)


def test_scores_of_another_run_must_be_finished(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no finished scores stage for voice 'second'.*record\.json"):
        stored_scores(Voice(teacher="second", scores=tmp_path / "nowhere"))


# recipes


def shipped(name: str) -> DistillConfig:
    config = SHIPPED[name]().distill
    assert config is not None
    return config


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_recipes_from_before_keep_their_fingerprint(name: str) -> None:
    assert fingerprint_of("distill", to_jsonable(shipped(name)), {}, None) == FINGERPRINTS[name]


@pytest.mark.parametrize(
    "change",
    [
        {"margin": 0.1},
        {"listnet": 0.1},
        {"action_margin": 0.1},
        {"action_mse": 0.1},
        {"mixing": UncertaintyMixing()},
        {"mixing": GradientMixing()},
        {"voices": (Voice(teacher="relevance"),)},
        {"share": 0.5},
    ],
)
def test_what_a_recipe_chooses_is_in_its_fingerprint(change: dict[str, Any]) -> None:
    config = to_jsonable(replace(shipped("tiny"), **change))
    assert fingerprint_of("distill", config, {}, None) != FINGERPRINTS["tiny"]
    assert change.keys() <= config.keys()


def test_actions_may_weigh_their_differences_more_than_grades_do() -> None:
    config = replace(shipped("tiny"), mix=Mix(relevance=0.75, engagement=0.25), margin=0.5, action_margin=1.5)
    objective = objective_of(replace(config, action_mse=3.0))
    assert (objective.grade_margin, objective.action_margin) == (0.75 * 0.5, 0.25 * 2.0)
    assert objective.action_mse == 0.25 * 3.0 and objective_of(config).action_mse == 0


def test_how_groups_are_read_is_in_no_fingerprint() -> None:
    config = shipped("tiny")
    assert to_jsonable(replace(config, train=replace(config.train, feed="ray_data"))) == to_jsonable(config)


def test_voices_from_before_keep_their_fingerprint() -> None:
    voice = to_jsonable(Voice(teacher="relevance"))
    assert "targets" not in voice
    assert to_jsonable(Voice(teacher="relevance", targets="hard")) == {**voice, "targets": "hard"}


def test_without_voices_both_teachers_are_heard() -> None:
    config = replace(shipped("tiny"), temperature=2.0)
    assert config.heard == (Voice(teacher="relevance", temperature=2.0), Voice(teacher="engagement"))


@pytest.mark.parametrize(
    ("build", "seen"),
    [
        (lambda: Voice(teacher="second"), "give `scores`"),
        (lambda: Voice(teacher="relevance", scores=Path("x")), "give `scores`"),
        (lambda: Voice(teacher="relevance", heads=("role",)), "'role'"),
        (lambda: Voice(teacher="relevance", weight=0.0), "leave the voice out"),
        (lambda: Voice(teacher="relevance", temperature=-1.0), "-1.0"),
        (lambda: Voice(teacher="engagement", least=1.0), "least"),
        (lambda: Voice(teacher="engagement", targets=cast(Any, "sharp")), "'sharp'"),
        (lambda: replace(shipped("tiny"), margin=-0.5), "-0.5"),
        (lambda: replace(shipped("tiny"), share=0.0), "share"),
        (lambda: replace(shipped("tiny"), share=1.5), "1.5"),
        (lambda: replace(shipped("tiny"), voices=(Voice(teacher="relevance"),) * 2), "relevance, relevance"),
        (lambda: replace(shipped("tiny"), temperature=2.0, voices=(Voice(teacher="relevance"),)), "2.0"),
        (lambda: UncertaintyMixing(rate=0.0), "rate"),
        (lambda: UncertaintyMixing(bound=1.0), "bound"),
        (lambda: GradientMixing(memory=1.0), "memory"),
        (lambda: GradientMixing(bound=0.5), "bound"),
    ],
)
def test_a_lesson_that_cannot_work_is_refused(build: Callable[[], object], seen: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build()
    assert seen in str(caught.value) and "\n" not in str(caught.value)
