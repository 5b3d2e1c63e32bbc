"""A run from input to bundle, and what its teachers, its student and its gate are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from preceptor.recipe.checks import LATER, require
from preceptor.recipe.clicks import ClicksConfig, LinearConfig
from preceptor.recipe.compute import BackboneConfig, ScoringConfig, TrainConfig
from preceptor.recipe.judges import JudgeConfig
from preceptor.recipe.lessons import FixedMixing, Mix, Mixing, Voice
from preceptor.recipe.matching import MatchConfig
from preceptor.recipe.pruning import PruneConfig
from preceptor.recipe.sources import JobmatchConfig, Source


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """One teacher: its backbone and training, and how it scores pairs. `listwise` weighs the order of a request's
    documents beside their grades; `clicks` is how an engagement teacher reads impressions."""

    backbone: BackboneConfig
    train: TrainConfig
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    listwise: float = 0.5
    clicks: ClicksConfig = field(default=ClicksConfig(), metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class Blend:
    """What ranks: score = relevance * expected_grade / 4 + sum of action weights * probabilities."""

    relevance: float
    click: float
    apply: float

    def __post_init__(self) -> None:
        require(min(self.relevance, self.click, self.apply) >= 0, "weights must be 0 or above")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """The student and how it is taught.

    It starts from `num_layers` layers of the relevance teacher, or from a `backbone` of its own.

    It hears the relevance teacher at `temperature` and the engagement teacher, or the `voices` given in their place.
    Beside graded KL and action cross-entropy its loss has what these weigh: `listwise` the order of a request's
    documents by grade, `listnet` and `margin` their order and their differences by every head, `action_margin` their
    differences by actions alone, beside `margin`, `action_mse` the actions' log-odds as they are (ranker/losses.py).
    The mix gives the shares; `mixing` is the rule that may move them while it learns. With `share` below 1 it learns
    the pairs of about that share of the train queries, drawn by a hash of their ids: what a larger share draws holds
    them.

    Where actions are rare give them some `action_margin`: cross-entropy's gradient is the error in probability, so at
    a rate of a tenth it is small beside that of grades, and a student may read nothing that only actions depend on.
    Where their scores are compared across requests, as an AUC over all of them does, give `action_mse` too: differences
    within a request say nothing of its mean, and cross-entropy, of rare actions, little.
    """

    mix: Mix
    blend: Blend
    train: TrainConfig
    num_layers: int | None = None
    backbone: BackboneConfig | None = None
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    temperature: float = 1.0
    listwise: float = 0.5
    margin: float = field(default=0.0, metadata=LATER)
    listnet: float = field(default=0.0, metadata=LATER)
    action_margin: float = field(default=0.0, metadata=LATER)
    action_mse: float = field(default=0.0, metadata=LATER)
    mixing: Mixing = field(default=FixedMixing(), metadata=LATER)
    voices: tuple[Voice, ...] = field(default=(), metadata=LATER)
    share: float = field(default=1.0, metadata=LATER)

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"temperature must be above 0, got {self.temperature}")
        require(
            min(self.margin, self.listnet, self.action_margin, self.action_mse) >= 0,
            "margin, listnet, action_margin and action_mse must be 0 or above, "
            f"got {self.margin}, {self.listnet}, {self.action_margin} and {self.action_mse}",
        )
        require(0 < self.share <= 1, f"share must be above 0 and at most 1, got {self.share}")
        names = [voice.teacher for voice in self.voices]
        require(len(names) == len(set(names)), f"each voice is another teacher's, got {', '.join(names)}")
        require(
            not self.voices or self.temperature == 1.0,
            f"with voices each has a temperature of its own; leave out the student's, {self.temperature}",
        )
        require(
            (self.num_layers is None) != (self.backbone is None),
            "a student starts from num_layers of its teacher or from a backbone: give one of the two",
        )
        require(self.num_layers is None or self.num_layers > 0, f"num_layers must be above 0, got {self.num_layers}")

    @property
    def heard(self) -> tuple[Voice, ...]:
        """The voices the student hears: those given, or both teachers of the recipe."""
        both = (Voice(teacher="relevance", temperature=self.temperature), Voice(teacher="engagement"))
        return self.voices or both


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Thresholds of the gate: ``{"student overall ndcg@10": 0.7}`` asks for at least that; ``ece`` for at most."""

    thresholds: Mapping[str, float]
    num_bootstrap: int = 1000
    seed: int = 11


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run from input to bundle. `relevance` or `engagement` is None where the source has no such truth.

    `num_tuned_pairs` is about how many golden pairs a tuned teacher is calibrated on. `check_vllm` asks for vLLM's
    agreement before export; `storage` is where Ray Train keeps checkpoints (a path or an S3 address) in place of the
    run's own directory. Work that the version `base` has finished in the same way is taken from it. With `prune` the
    bundle is the pruned and recovered student.
    """

    name: str
    source: Source
    policy: Path
    labeller: Literal["judge", "teacher"]
    """Who labels the pool once calibrated: the judge as it is, or the relevance teacher tuned on golden-train."""
    judge: JudgeConfig | None
    relevance: TeacherConfig | MatchConfig | None
    engagement: TeacherConfig | LinearConfig | None
    distill: DistillConfig | None
    gate: GateConfig
    num_tuned_pairs: int = 100
    check_vllm: bool = True
    version: str = "v1"
    base: str | None = None
    storage: str | None = None
    prune: PruneConfig | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        require(
            self.relevance is not None or self.engagement is not None,
            f"recipe {self.name}: at least one teacher is needed",
        )
        require(
            self.distill is None or (self.relevance is not None and self.engagement is not None),
            f"recipe {self.name}: distillation needs both teachers",
        )
        require(
            self.prune is None or self.distill is not None,
            f"recipe {self.name}: prune cuts a distilled student; give distill or leave prune out",
        )
        require(
            self.relevance is None or self.judge is not None, f"recipe {self.name}: a relevance teacher needs a judge"
        )
        require(
            not isinstance(self.relevance, MatchConfig)
            or (isinstance(self.source, JobmatchConfig) and self.labeller == "teacher"),
            f"recipe {self.name}: a teacher that matches needs a jobmatch source and labels from the teacher",
        )
        require(
            not isinstance(self.relevance, MatchConfig) or self.distill is None or self.distill.backbone is not None,
            f"recipe {self.name}: a teacher that matches has no layers to start a student from; give it a backbone",
        )
        require(
            self.base is None or len({self.base, self.version, "dev"}) == 3,
            f"recipe {self.name}: a base is another version, and neither is dev; got {self.base} for {self.version}",
        )


POLICY_DIR: Final = Path(__file__).resolve().parents[3] / "policy" / "job_match"
