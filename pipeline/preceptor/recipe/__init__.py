"""Recipes: every choice of a run as one frozen value.

A recipe is a function that returns a `Recipe`; variants are `dataclasses.replace(...)`. Values that are product
decisions (the floor a judge must reach, the mix of the teachers, the gate's thresholds) have no default. A recipe
checks itself when it is built and raises RecipeError.
"""

from preceptor.recipe.clicks import ClicksConfig, LinearConfig, Negatives, PositionBias
from preceptor.recipe.compute import BackboneConfig, EngineConfig, ScoringConfig, TrainConfig
from preceptor.recipe.judges import JudgeConfig
from preceptor.recipe.lessons import FixedMixing, GradientMixing, Mix, Mixing, UncertaintyMixing, Voice
from preceptor.recipe.matching import MatchConfig
from preceptor.recipe.pruning import Importance, PruneConfig
from preceptor.recipe.refinement import Budget, RefineConfig, ReflectionConfig
from preceptor.recipe.signals import PLAIN_SIGNALS, SIGNALS, PlainSignal, Signal, TunedSignal
from preceptor.recipe.sources import (
    CORPUS_FIELDS,
    STYLE_NEEDS,
    CorporaConfig,
    CorpusFile,
    EncoderConfig,
    HeadlinesConfig,
    JobmatchConfig,
    MarketConfig,
    PairSet,
    QueryStyle,
    Source,
    WeakSource,
    WriterConfig,
)
from preceptor.recipe.whole import POLICY_DIR, Blend, DistillConfig, GateConfig, Recipe, TeacherConfig

__all__ = [
    "CORPUS_FIELDS",
    "PLAIN_SIGNALS",
    "POLICY_DIR",
    "SIGNALS",
    "STYLE_NEEDS",
    "BackboneConfig",
    "Blend",
    "Budget",
    "ClicksConfig",
    "CorporaConfig",
    "CorpusFile",
    "DistillConfig",
    "EncoderConfig",
    "EngineConfig",
    "FixedMixing",
    "GateConfig",
    "GradientMixing",
    "HeadlinesConfig",
    "Importance",
    "JobmatchConfig",
    "JudgeConfig",
    "LinearConfig",
    "MarketConfig",
    "MatchConfig",
    "Mix",
    "Mixing",
    "Negatives",
    "PairSet",
    "PlainSignal",
    "PositionBias",
    "PruneConfig",
    "QueryStyle",
    "Recipe",
    "RefineConfig",
    "ReflectionConfig",
    "ScoringConfig",
    "Signal",
    "Source",
    "TeacherConfig",
    "TrainConfig",
    "TunedSignal",
    "UncertaintyMixing",
    "Voice",
    "WeakSource",
    "WriterConfig",
]
