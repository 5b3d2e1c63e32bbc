"""Variants of a student's lesson, each another in one thing: mixes and rules of mixing, and what is left out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from preceptor.contracts import OVERALL
from preceptor.recipe import (
    DistillConfig,
    FixedMixing,
    GradientMixing,
    Mix,
    Mixing,
    Recipe,
    TeacherConfig,
    UncertaintyMixing,
    Voice,
)

RULES: Final[Mapping[str, Mixing]] = {"uncertainty": UncertaintyMixing(), "gradient": GradientMixing()}
"""Rules that move the shares, at their defaults."""

LISTWISE: Final = 0.5
LISTNET: Final = 0.5
MARGIN: Final = 0.05
ACTION_MARGIN: Final = 0.3
ACTION_MSE: Final = 0.3
"""Weights of the terms that a recipe does not have. MarginMSE squares differences of log-odds, which reach several
nats where the other terms stay below one: hence a tenth of their weight."""

FEWER: Final = {"1/8": 1 / 8, "1/4": 1 / 4, "1/2": 1 / 2}


def sweep(config: DistillConfig, *, mixes: Sequence[float], rules: Sequence[str]) -> dict[str, DistillConfig]:
    """`config` at each share of the relevance teacher, and under each of the `rules`, by name; itself left out."""
    fixed = {
        f"mix {share:g} : {1 - share:g}": replace(
            config, mix=Mix(relevance=share, engagement=round(1 - share, 9)), mixing=FixedMixing()
        )
        for share in mixes
    }
    return _others(config, fixed | {f"mixing {rule}": replace(config, mixing=RULES[rule]) for rule in rules})


def ablations(recipe: Recipe, config: DistillConfig, *, least: float) -> dict[str, DistillConfig]:
    """`config`, the lesson of `recipe` with steps of one's own, with one thing changed each, by name.

    What the recipe has is left out, and what it has not is put in: a mask then is one of actions less probable than
    `least`. A warm start has no other where the two starts cannot have the same shape.
    """
    found = {
        "relevance teacher alone": replace(config, mix=Mix(relevance=1.0, engagement=0.0)),
        "engagement teacher alone": replace(config, mix=Mix(relevance=0.0, engagement=1.0)),
        "hard grades": _heard(config, tuple(_with_hard_grades(voice) for voice in config.heard)),
        "hard grades and actions": _heard(config, tuple(replace(voice, targets="hard") for voice in config.heard)),
        **_toggled(config, "listwise", LISTWISE, "listwise term"),
        **_toggled(config, "margin", MARGIN, "MarginMSE"),
        **_toggled(config, "action_margin", ACTION_MARGIN, "action MarginMSE"),
        **_toggled(config, "action_mse", ACTION_MSE, "action MSE"),
        **_toggled(config, "listnet", LISTNET, "ListNet"),
        **_masked(config, least),
        **_started(recipe, config),
        **_thinner(recipe, config),
        **{f"pairs {name}": replace(config, share=share * config.share) for name, share in FEWER.items()},
    }
    return _others(config, found)


def with_layers(config: DistillConfig, num_layers: int) -> DistillConfig:
    """`config` with a student of `num_layers` layers: of its teacher's, spaced evenly, or its backbone's lowest."""
    if config.backbone is None:
        return replace(config, num_layers=num_layers)
    return replace(config, backbone=replace(config.backbone, num_layers=num_layers))


def seeded(config: DistillConfig, number: int) -> DistillConfig:
    """`config` with the `number`-th seed, 0 being its own."""
    return replace(config, train=replace(config.train, seed=config.train.seed + number))


def _others(config: DistillConfig, found: Mapping[str, DistillConfig]) -> dict[str, DistillConfig]:
    return {name: variant for name, variant in found.items() if variant != config}


def _heard(config: DistillConfig, voices: tuple[Voice, ...]) -> DistillConfig:
    # Voices given have temperatures of their own, and refuse the student's.
    return replace(config, temperature=1.0, voices=voices)


def _with_hard_grades(voice: Voice) -> Voice:
    speaks = voice.teacher != "engagement" and (not voice.heads or OVERALL in voice.heads)
    return replace(voice, targets="hard") if speaks else voice


def _toggled(config: DistillConfig, term: str, weight: float, name: str) -> dict[str, DistillConfig]:
    has = getattr(config, term) > 0
    change: dict[str, Any] = {term: 0.0 if has else weight}
    return {f"no {name}" if has else f"{name} {weight:g}": replace(config, **change)}


def _masked(config: DistillConfig, least: float) -> dict[str, DistillConfig]:
    if any(voice.least or voice.slices for voice in config.heard):
        return {"no mask": _heard(config, tuple(replace(voice, least=0.0, slices=()) for voice in config.heard))}
    masked = (replace(voice, least=least) if voice.teacher == "engagement" else voice for voice in config.heard)
    return {f"mask: actions under {least:g}": _heard(config, tuple(masked))}


def _started(recipe: Recipe, config: DistillConfig) -> dict[str, DistillConfig]:
    """From as many layers of the pretrained backbone as the student has of its teacher, or the other way round."""
    teacher = recipe.relevance
    if not isinstance(teacher, TeacherConfig):
        return {}
    whole = teacher.backbone
    if config.backbone is None:
        assert config.num_layers is not None
        layers = min(config.num_layers, whole.num_layers or config.num_layers)
        return {"no warm start": replace(config, num_layers=None, backbone=replace(whole, num_layers=layers))}
    own = config.backbone
    if own.num_layers is None or own.source != whole.source or own.num_layers > (whole.num_layers or own.num_layers):
        return {}
    return {"warm start": replace(config, backbone=None, num_layers=own.num_layers)}


def _thinner(recipe: Recipe, config: DistillConfig) -> dict[str, DistillConfig]:
    """With a third of the teacher's layers, rounded down, where the student is cut from its teacher."""
    teacher = recipe.relevance
    if config.num_layers is None or not isinstance(teacher, TeacherConfig) or not teacher.backbone.num_layers:
        return {}
    return {"a third of the layers": replace(config, num_layers=max(teacher.backbone.num_layers // 3, 1))}
