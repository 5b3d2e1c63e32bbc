"""Recipes: a value that cannot work is refused when the recipe is built, in one line that shows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace

import pytest

from preceptor.errors import RecipeError
from preceptor.recipe import (
    POLICY_DIR,
    BackboneConfig,
    Blend,
    DistillConfig,
    EngineConfig,
    GateConfig,
    JudgeConfig,
    MarketConfig,
    Mix,
    Recipe,
    TeacherConfig,
    TrainConfig,
)

TRAIN = TrainConfig(num_steps=2, groups_per_step=4, learning_rate=1e-4, head_learning_rate=1e-3)
TEACHER = TeacherConfig(backbone=BackboneConfig(source="random-tiny"), train=TRAIN)
JUDGE = JudgeConfig(kind="fake", model="fake", floor=0.4, max_reject_share=0.1, num_calibration_pairs=20)
DISTILL = DistillConfig(
    num_layers=2,
    mix=Mix(relevance=0.5, engagement=0.5),
    blend=Blend(relevance=1.0, click=0.1, apply=0.2),
    train=TRAIN,
)
RECIPE = Recipe(
    name="small",
    source=MarketConfig(num_queries=10, documents_per_query=4, num_requests=20, num_holdout_requests=5),
    policy=POLICY_DIR,
    labeller="judge",
    judge=JUDGE,
    relevance=TEACHER,
    engagement=TEACHER,
    distill=DISTILL,
    gate=GateConfig(thresholds={}),
)


@pytest.mark.parametrize(
    ("build", "seen"),
    [
        (lambda: replace(JUDGE, floor=1.5), "1.5"),
        (lambda: replace(JUDGE, max_reject_share=-0.1), "max_reject_share"),
        (lambda: replace(JUDGE, kind="openai"), "--base-url"),
        (lambda: Mix(relevance=0.5, engagement=0.6), "1.1"),
        (lambda: Mix(relevance=1.5, engagement=-0.5), "0 or above"),
        (lambda: Blend(relevance=1.0, click=-1.0, apply=0.0), "0 or above"),
        (lambda: replace(DISTILL, temperature=0.0), "temperature"),
        (lambda: replace(DISTILL, num_layers=0), "num_layers"),
        (lambda: replace(DISTILL, num_layers=None), "give one of the two"),
        (lambda: replace(DISTILL, backbone=TEACHER.backbone), "give one of the two"),
        (lambda: replace(TRAIN, num_steps=0), "num_steps"),
        (lambda: replace(TRAIN, groups_per_step=5), "5 and 2"),
        (lambda: EngineConfig(num_replicas=0), "num_replicas"),
        (lambda: EngineConfig(batch_size=0), "batch_size"),
        (lambda: BackboneConfig(source="random-tiny", num_layers=0), "num_layers"),
        (lambda: BackboneConfig(source="random-tiny", max_document_tokens=0), "token lengths"),
        (lambda: replace(RECIPE, relevance=None, engagement=None, distill=None), "at least one teacher"),
        (lambda: replace(RECIPE, engagement=None), "distillation needs both teachers"),
        (lambda: replace(RECIPE, judge=None), "a relevance teacher needs a judge"),
    ],
)
def test_a_value_that_cannot_work_is_refused(build: Callable[[], object], seen: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build()
    assert seen in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_without_relevance_needs_no_judge() -> None:
    recipe = replace(RECIPE, judge=None, relevance=None, distill=None)
    assert recipe.engagement is TEACHER


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPE.judge.floor = 0.0  # type: ignore[misc, union-attr]


@pytest.mark.parametrize(
    ("config", "decisions"),
    [
        (JudgeConfig, {"floor", "max_reject_share", "num_calibration_pairs"}),
        (Mix, {"relevance", "engagement"}),
        (Blend, {"relevance", "click", "apply"}),
        (GateConfig, {"thresholds"}),
        (DistillConfig, {"mix", "blend"}),
    ],
)
def test_product_decisions_have_no_default(config: type, decisions: set[str]) -> None:
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name in decisions:
        assert fields[name].default is dataclasses.MISSING
        assert fields[name].default_factory is dataclasses.MISSING
