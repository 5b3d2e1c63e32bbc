"""What a student is told to learn: from which teachers, by which losses, mixed by which rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from preceptor.contracts import ACTIONS, OVERALL
from preceptor.recipe.checks import LATER, require

OWN_TEACHERS: Final = ("relevance", "engagement")
"""Teachers that a recipe trains and scores itself."""

TargetKind = Literal["soft", "hard"]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Shares of the teachers in the distillation loss. A product decision: no default."""

    relevance: float
    engagement: float

    def __post_init__(self) -> None:
        require(self.relevance >= 0 <= self.engagement, "shares must be 0 or above")
        total = self.relevance + self.engagement
        require(abs(total - 1) < 1e-9, f"shares must add up to 1, got {total}")


@dataclass(frozen=True, kw_only=True)
class Voice:
    """How much of one teacher's stored scores the student hears.

    `teacher` is ``relevance`` or ``engagement``, whose scores the run stores itself, or a name of yours for `scores`:
    the directory of a finished scores stage of any run with the same pairs, ``runs/other/relevance_scores/v1``.

    `heads` are those it speaks for (none named: overall and every action). `weight` says how much it counts beside
    other voices of the same head; how much grades count beside actions is the `Mix`. Its logits are divided by
    `temperature`. Two masks leave rows out: only pairs of `slices` are heard (none named: all), and of an action only
    probabilities of at least `least`, so that the many near-certain negatives of a rare action say nothing.

    `targets` are "soft", its probabilities, or "hard": the most probable grade alone, and whether an action is at least
    as probable as not. Masks look at the probabilities either way.
    """

    teacher: str
    scores: Path | None = None
    heads: tuple[str, ...] = ()
    weight: float = 1.0
    temperature: float = 1.0
    slices: tuple[str, ...] = ()
    least: float = 0.0
    targets: TargetKind = field(default="soft", metadata=LATER)

    def __post_init__(self) -> None:
        name = f"voice {self.teacher!r}"
        own = self.teacher in OWN_TEACHERS
        require(
            own == (self.scores is None),
            f"{name}: the run stores the scores of {' and '.join(OWN_TEACHERS)} itself; "
            "give `scores` for any other name, and for no other",
        )
        unknown = sorted(set(self.heads) - {OVERALL, *ACTIONS})
        require(not unknown, f"{name}: a student has no head {unknown}; its heads: {', '.join((OVERALL, *ACTIONS))}")
        require(self.weight > 0, f"{name}: weight must be above 0, got {self.weight}; leave the voice out instead")
        require(self.temperature > 0, f"{name}: temperature must be above 0, got {self.temperature}")
        require(0 <= self.least < 1, f"{name}: least must be a probability below 1, got {self.least}")
        require(self.targets in get_args(TargetKind), f"{name}: targets must be soft or hard, got {self.targets!r}")


@dataclass(frozen=True, kw_only=True)
class FixedMixing:
    """Every loss term keeps the share that the recipe gives it."""


@dataclass(frozen=True, kw_only=True)
class UncertaintyMixing:
    """Each term also gets a learnt weight exp(-s), where s falls by `rate` along its gradient (Kendall et al. 2018).

    Where it settles a term weighs half of one over its loss. Weights stay between 1 / `bound` and `bound`: a
    divergence, unlike a likelihood, may fall to 0.
    """

    rate: float = 0.05
    bound: float = 8.0

    def __post_init__(self) -> None:
        require(self.rate > 0, f"rate must be above 0, got {self.rate}")
        require(self.bound > 1, f"bound must be above 1, got {self.bound}")


@dataclass(frozen=True, kw_only=True)
class GradientMixing:
    """Each term is also scaled so that its gradient at the logits has the mean length: shares are then of gradient.

    After GradNorm (Chen et al. 2018), with the target reached at once instead of by descent, and no restoring force.
    Lengths are running means that keep `memory` of the past; scales stay between 1 / `bound` and `bound`.
    """

    memory: float = 0.9
    bound: float = 8.0

    def __post_init__(self) -> None:
        require(0 <= self.memory < 1, f"memory must be at least 0 and below 1, got {self.memory}")
        require(self.bound > 1, f"bound must be above 1, got {self.bound}")


Mixing = FixedMixing | UncertaintyMixing | GradientMixing
