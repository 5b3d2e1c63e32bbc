"""What is cut out of a distilled student, by which importance, and how long it recovers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from preceptor.recipe.checks import require
from preceptor.recipe.compute import TrainConfig

Importance = Literal["osscar", "activation", "magnitude", "random"]
SHARES: Final = ("mlp", "heads", "groups", "layers")
GENTLE: Final = 0.1
"""Of the student's learning rate, for its recovery (bench/RESULTS.md, "Pruning")."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """The shares of a student that are cut out, and the training on the same stored scores that follows.

    `mlp` is the share of neurons of every layer; `heads` of the query heads of every key-value group; `groups` of the
    key-value groups, each with its query heads; `layers` of the layers. Every layer keeps as many as every other, so
    that the result is a plain checkpoint. With `vocabulary` "seen" the rows go that no text of the student's training
    pairs can reach; such words are then read in smaller pieces.

    `importance` says how neurons, heads and groups are chosen, `correction` whether the projection after them is solved
    anew, `layer_importance` how layers are chosen (student/importance.py). All is measured on `num_pairs` training
    pairs. Each of `num_rounds` cuts an equal part and recovers for its part of the `recovery_steps`, at
    `learning_rate` (a tenth of the student's own unless given: at half of it the demo's student lost more by the
    recovery than by the cut).
    """

    recovery_steps: int
    mlp: float = 0.0
    heads: float = 0.0
    groups: float = 0.0
    layers: float = 0.0
    vocabulary: Literal["whole", "seen"] = "whole"
    importance: Importance = "osscar"
    correction: Literal["least_squares", "none"] = "least_squares"
    layer_importance: Literal["cosine", "ablation"] = "cosine"
    num_rounds: int = 1
    num_pairs: int = 1024
    learning_rate: float | None = None
    seed: int = 23

    def __post_init__(self) -> None:
        for name in SHARES:
            share = getattr(self, name)
            require(0 <= share < 1, f"prune: {name} must be a share, at least 0 and below 1, got {share}")
        require(
            self.vocabulary != "whole" or any(getattr(self, name) for name in SHARES),
            f"prune: nothing to cut; give {', '.join(SHARES)} a share or leave prune out",
        )
        require(self.num_rounds > 0, f"prune: num_rounds must be above 0, got {self.num_rounds}")
        require(self.num_pairs > 0, f"prune: num_pairs must be above 0, got {self.num_pairs}")
        require(
            self.recovery_steps >= self.num_rounds,
            f"prune: each of {self.num_rounds} rounds recovers for a step at least, "
            f"got {self.recovery_steps} recovery_steps",
        )
        require(
            self.learning_rate is None or self.learning_rate > 0,
            f"prune: learning_rate must be above 0, got {self.learning_rate}",
        )

    @property
    def deciding(self) -> PruneConfig:
        """The config with what changes no cut set back: other recovery leaves a finished first cut as it is."""
        return replace(self, recovery_steps=self.num_rounds, learning_rate=None)

    def recovery(self, train: TrainConfig, *, round: int) -> TrainConfig:
        """How the student recovers in `round` (from 1), from how it was trained; the rounds' steps add up."""
        done, due = (self.recovery_steps * part // self.num_rounds for part in (round - 1, round))
        return replace(
            train,
            num_steps=due - done,
            warmup_steps=min(train.warmup_steps, due - done),
            learning_rate=self.learning_rate or train.learning_rate * GENTLE,
            # Not the batches in the order in which the student saw them.
            seed=train.seed + 1000 * round,
        )
