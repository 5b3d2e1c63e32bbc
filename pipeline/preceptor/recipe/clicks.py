"""How an engagement teacher reads what members did: position, rare actions, loss, calibration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from preceptor.recipe.checks import require

PositionBias = Literal["known", "ignored", "harvested", "em", "regression_em", "additive_tower", "factorised_tower"]
"""known: the impressions' own propensities. ignored: every impression was examined. harvested, em, regression_em:
estimated from the train impressions (teachers/position_bias.py). The towers learn examination with the model and drop
it at scoring: as a logit added for the position, or as a factor, click = examined x attracted."""

TOWERS: Final = ("additive_tower", "factorised_tower")

Negatives = Literal["shown", "clicked", "sampled"]
"""What counts against a rare action. shown: every impression without it. clicked: only opened documents without it; the
head then says how likely the action is once opened. sampled: a share of the pairs that never saw it, weighed up by
one over the share, so that the head's meaning stays."""


@dataclass(frozen=True, kw_only=True)
class ClicksConfig:
    """How impressions become lessons.

    `negatives` is for apply; clicks always count where shown. With `isotonic` calibration each action's logits are
    mapped, in the stored scores, to the log-odds that the calibration split shows.
    """

    position_bias: PositionBias = "known"
    negatives: Negatives = "shown"
    negative_share: float = 0.1
    loss: Literal["pointwise", "within"] = "pointwise"
    """pointwise: cross-entropy of each rate. within: which of a request's documents the actions went to, and no more;
    what differs between requests, as the topic or the day, then teaches nothing."""
    weight: Literal["examined", "shown"] = "examined"
    """What a pair's rate weighs. examined: how often it was, the least noise. shown: how often it was shown, as it will
    be shown again: a model that cannot fit every rate then fits those of documents a ranker put low as well."""
    calibration: Literal["none", "isotonic"] = "none"

    def __post_init__(self) -> None:
        require(0 < self.negative_share <= 1, f"negative_share lies above 0 up to 1, got {self.negative_share}")
        require(
            self.loss == "pointwise" or self.position_bias not in TOWERS,
            f"a tower needs the pointwise loss, got {self.loss} with {self.position_bias}",
        )
        require(
            self.loss == "pointwise" or self.weight == "examined",
            f"the loss within requests counts examinations, got weight {self.weight}; use examined",
        )


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """An engagement teacher that is linear in words, word pairs and, with an `encoder`, sentence embeddings.

    It trains on every impression in seconds on one core, where a language model sees a few hundred pairs in that time.
    Words and pairs are hashed into `num_hashed` features. `penalties` are the L2 penalties tried, an example weighing 1
    on average: the best on held-out requests of the train split wins, the first of equals.
    """

    clicks: ClicksConfig = field(default_factory=lambda: ClicksConfig(weight="shown"))
    encoder: Literal["none", "minilm"] = "none"
    num_hashed: int = 8192
    penalties: tuple[float, ...] = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
    num_folds: int = 4
    seed: int = 17

    def __post_init__(self) -> None:
        require(self.num_hashed > 0, f"num_hashed must be above 0, got {self.num_hashed}")
        require(len(self.penalties) > 0 < min(self.penalties, default=0), "penalties: one at least, each above 0")
        require(self.num_folds > 1, f"num_folds must be 2 or more, got {self.num_folds}")
