"""How expected grade and actions become the one number that ranks, and how far a request may change that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import ClassVar, NoReturn

from pydantic import ConfigDict

from preceptor.bundle import Blend, DocumentScore
from preceptor.contracts import NUM_GRADES

Bound = tuple[float, float]


class OutOfBounds(ValueError):
    """A blend that may not rank; `part` is the weight at fault, None where it is all of them together."""

    def __init__(self, message: str, *, part: str | None) -> None:
        super().__init__(message)
        self.part = part


@dataclass(frozen=True, kw_only=True)
class BlendBounds:
    """Least and greatest value that a request may give each weight. (0, 0) for all: the bundle's own blend alone."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    relevance: Bound = (0.0, 1.0)
    click: Bound = (0.0, 1.0)
    apply: Bound = (0.0, 1.0)

    def __post_init__(self) -> None:
        for part in fields(self):
            low, high = getattr(self, part.name)
            if not 0 <= low <= high <= 1000:
                raise ValueError(f"blend.{part.name} needs 0 <= least <= greatest <= 1000, got {low:g} and {high:g}")

    def check(self, blend: Blend) -> None:
        """Nothing; OutOfBounds where `blend` is outside or weighs nothing."""
        for name, weight in asdict(blend).items():
            low, high = getattr(self, name)
            if not low <= weight <= high:
                raise OutOfBounds(
                    f"This weight may lie from {low:g} to {high:g} here, got {weight:g}. Choose one within, "
                    "or leave blend out for the bundle's own.",
                    part=name,
                )
        if sum(asdict(blend).values()) == 0:
            raise OutOfBounds("A blend of zeros ranks nothing. Give a weight above 0.", part=None)


def blended(score: DocumentScore, blend: Blend) -> float:
    """What ranks under `blend`; OutOfBounds where it weighs an action that the bundle does not predict."""
    total = blend.relevance * score.expected_grade / (NUM_GRADES - 1)
    for action, weight in (("click", blend.click), ("apply", blend.apply)):
        if weight > 0:
            total += weight * (score.actions[action] if action in score.actions else _refuse(action, score.actions))
    return total


def _refuse(action: str, known: Mapping[str, float]) -> NoReturn:
    names = ", ".join(known) or "none"
    raise OutOfBounds(f"This bundle predicts no such action (it has: {names}). Give it the weight 0.", part=action)


def total_weight(blend: Blend) -> float:
    """The greatest score that `blend` can give."""
    return blend.relevance + blend.click + blend.apply
