"""A relevance teacher that compares texts: what it compares, and how it learns to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from preceptor.recipe.checks import require
from preceptor.recipe.signals import SIGNALS, Signal
from preceptor.recipe.sources import WeakSource

_SOURCES: Final = ("judged", *get_args(WeakSource))


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """A teacher whose score is a learnt sum of signals over a frozen sentence encoder.

    The tuned signals come from an adapter of the embeddings, trained in `rounds` of `num_steps` steps, each of
    `pairs_per_step` titles against all postings that any title asks for. A title comes from the judged train queries or
    from a weak source; in the first round with the chances in `shares`, of those sources that the corpus has. In each
    round after that a title is drawn the likelier the worse its best posting stood in the round before, whatever its
    source. The sum is fitted on signals of `num_folds` adapters, each of which saw no occupation that it is asked
    about. `ridge` draws its weights to zero.
    """

    encoder: str = "minilm"
    shares: Mapping[WeakSource | Literal["judged"], float] = field(
        default_factory=lambda: {"judged": 0.35, "occupation_title": 0.45, "posting_title": 0.2}
    )
    signals: tuple[Signal, ...] = SIGNALS
    rounds: int = 2
    num_steps: int = 40
    pairs_per_step: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    temperature: float = 0.05
    num_folds: int = 3
    ridge: float = 1e-4
    seed: int = 17

    def __post_init__(self) -> None:
        require(bool(self.signals), f"signals must name at least one of: {', '.join(SIGNALS)}")
        unknown = ", ".join(set(self.signals) - set(SIGNALS))
        require(not unknown, f"signals: no signal {unknown}; there are: {', '.join(SIGNALS)}")
        require(self.num_folds > 1, f"num_folds must be above 1, got {self.num_folds}")
        require(self.rounds > 0, f"rounds must be above 0, got {self.rounds}")
        require(min(self.num_steps, self.pairs_per_step) > 0, "num_steps and pairs_per_step must be above 0")
        require(self.temperature > 0, f"temperature must be above 0, got {self.temperature}")
        strange = ", ".join(set(self.shares) - set(_SOURCES))
        require(not strange, f"shares: no source {strange}; there are: {', '.join(_SOURCES)}")
        require(
            min(self.shares.values(), default=0.0) >= 0 and sum(self.shares.values()) > 0,
            f"shares must be 0 or above and not all 0, got {dict(self.shares)}",
        )

    @property
    def tunes(self) -> bool:
        """Whether any signal needs the adapter."""
        return any(name.startswith("tuned_") for name in self.signals)
