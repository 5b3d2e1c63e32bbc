"""Position-based clicks with known propensities: a member clicks what they examine and are attracted by.

Attraction is part suitability, part shine (brand, perks, pay, hype), so that what attracts and what suits partly
disagree. Behaviour is simulated. Model: Craswell et al., "An experimental comparison of click position-bias models"
(WSDM 2008), section 3.3; correction by propensity: Joachims et al., "Unbiased learning-to-rank with biased feedback"
(WSDM 2017), section 4.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from preceptor.market.latent import Posting
from preceptor.market.roles import catalogue

EXAMINATION_DECAY: Final = 0.7
"""Examination falls as position ** -0.7."""

SHINY: Final = 0.6
"""Shine from which a posting counts as attractive."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """What the member did with one shown posting."""

    click: bool
    apply: bool


def propensity(position: int) -> float:
    """Probability that `position` (1 is the top) is examined."""
    return float(position**-EXAMINATION_DECAY)


def shine(posting: Posting) -> float:
    """How tempting the posting looks whoever looks at it, 0 to 1."""
    level = 2 if posting.level is None else posting.level
    paid = 0.0 if posting.pay is None else posting.pay[1] / catalogue().roles[posting.role].typical_pay(level) - 1
    return (
        0.25 * (posting.brand is not None)
        + 0.1 * min(len(posting.perks), 2)
        + 0.2 * (posting.tone != "plain")
        + 0.35 * min(max(paid / 0.5, 0.0), 1.0)
    )


def attraction(overall: int, posting: Posting) -> float:
    """Probability of a click once examined: a logistic function of the overall grade and of `shine`."""
    return 1 / (1 + math.exp(3.0 - 0.75 * overall - 3.0 * shine(posting)))


def application(overall: int, credentials: int) -> float:
    """Probability that a click leads to an application; low where a licence is missing."""
    return (0.02 + 0.1 * overall) * (1.0 if credentials >= 2 else 0.2)


def respond(rng: random.Random, *, position: int, attracted: float, applies: float) -> Response:
    """One simulated response; every call draws three numbers whatever happens."""
    examined, tempted, decided = rng.random(), rng.random(), rng.random()
    click = examined < propensity(position) and tempted < attracted
    return Response(click=click, apply=click and decided < applies)


def logged_order(rng: random.Random, attractions: Sequence[float], overlaps: Sequence[float]) -> list[int]:
    """Indices as an engagement-driven ranker with a lexical part would show them, best first, with noise."""
    scores = [
        appeal + 0.5 * overlap + rng.gauss(0, 0.25) for appeal, overlap in zip(attractions, overlaps, strict=True)
    ]
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def uniform_order(rng: random.Random, count: int) -> list[int]:
    """A uniformly random order of `count` indices."""
    return rng.sample(range(count), count)


def word_overlap(asked: str, document: str) -> float:
    """Share of the words of `asked` that stand in `document`, lower-cased."""
    words = set(asked.lower().split())
    return len(words & set(document.lower().split())) / max(len(words), 1)
