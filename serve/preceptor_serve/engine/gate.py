"""May int8 be used? It may where it ranks as bfloat16 does, on requests scored by both when a bundle is loaded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Protocol

from preceptor.bundle import DocumentScore
from preceptor.errors import ParityError

TELLING_GAP: Final = 0.02
"""A difference of scores that bfloat16 can be relied on for: engines may differ by that much (preceptor.bundle)."""
MAX_TELLING_SWAPS: Final = 0.01
"""Share of the pairs that bfloat16 tells apart by more than TELLING_GAP which int8 may put the other way round."""
MAX_SWAPS: Final = 0.10
"""Share of all pairs of documents that int8 may put the other way round; most of them differ by next to nothing."""


class Scoring(Protocol):
    """A scorer asked about its weights, and not about what it remembers."""

    def score_afresh(self, query: str, profile: str, documents: Sequence[str]) -> Sequence[DocumentScore]: ...


@dataclass(frozen=True, kw_only=True)
class RankedRequest:
    """A request to compare rankings on."""

    query: str
    profile: str
    documents: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RankingGap:
    """How many pairs of documents two scorers order differently. `num_telling` differ by more than TELLING_GAP."""

    num_pairs: int
    num_swapped: int
    num_telling: int
    num_telling_swapped: int
    largest_score_gap: float

    @property
    def swapped(self) -> float:
        return self.num_swapped / max(self.num_pairs, 1)

    @property
    def telling_swapped(self) -> float:
        return self.num_telling_swapped / max(self.num_telling, 1)

    @property
    def within_bounds(self) -> bool:
        """Whether the candidate may be used in the place of the reference."""
        return self.telling_swapped <= MAX_TELLING_SWAPS and self.swapped <= MAX_SWAPS


def ranking_gap(reference: Scoring, candidate: Scoring, requests: Sequence[RankedRequest]) -> RankingGap:
    """How `candidate` orders the documents of `requests`, compared with `reference`."""
    num_pairs = num_swapped = num_telling = num_telling_swapped = 0
    largest = 0.0
    for request in requests:
        sides = (
            scorer.score_afresh(request.query, request.profile, request.documents) for scorer in (reference, candidate)
        )
        left, right = ([score.score for score in side] for side in sides)
        largest = max([largest, *(abs(a - b) for a, b in zip(left, right, strict=True))])
        for one, other in combinations(range(len(left)), 2):
            gap = left[one] - left[other]
            other_gap = right[one] - right[other]
            # Not a product: of tiny numbers it is 0. A score that is not finite is in no order, and counts as swapped.
            swapped = not ((gap >= 0 and other_gap >= 0) or (gap <= 0 and other_gap <= 0))
            telling = abs(gap) > TELLING_GAP
            num_pairs += 1
            num_swapped += swapped
            num_telling += telling
            num_telling_swapped += swapped and telling
    return RankingGap(
        num_pairs=num_pairs,
        num_swapped=num_swapped,
        num_telling=num_telling,
        num_telling_swapped=num_telling_swapped,
        largest_score_gap=largest,
    )


def require_int8(reference: Scoring, candidate: Scoring, *, bundle_id: str) -> RankingGap:
    """How int8 (`candidate`) ranks beside bfloat16 (`reference`); ParityError where it must not be used."""
    found = ranking_gap(reference, candidate, probe_requests())
    if not found.within_bounds:
        raise ParityError(
            f"{bundle_id}: int8 orders {found.swapped:.1%} of {found.num_pairs} pairs otherwise than bfloat16 (bound "
            f"{MAX_SWAPS:.0%}), and {found.telling_swapped:.1%} of the {found.num_telling} that differ by over "
            f"{TELLING_GAP} (bound {MAX_TELLING_SWAPS:.0%}). Serve this bundle with precision bfloat16."
        )
    return found


_ROLES: Final = ("nurse", "welder", "baker", "data engineer", "forklift driver", "maths teacher", "tax adviser", "chef")
_PLACES: Final = ("Leeds", "Hull", "Rotterdam", "remote")
_TERMS: Final = ("night shifts", "part time", "permanent, full time", "weekends only")


def probe_requests() -> tuple[RankedRequest, ...]:
    """Eight constructed requests of twelve documents, from the role asked for to unrelated ones; always the same."""
    source = random.Random(8)

    def posting(role: str) -> str:
        years = source.randrange(1, 9)
        return f"{role.capitalize()}, {source.choice(_PLACES)}. {source.choice(_TERMS)}. {years} years of experience."

    return tuple(
        RankedRequest(
            query=f"{role} {source.choice(_PLACES)}",
            profile=f"{role.capitalize()} for {source.randrange(2, 15)} years, wants {source.choice(_TERMS)}.",
            documents=(*(posting(role) for _ in range(5)), *(posting(other) for other in _ROLES if other != role)),
        )
        for role in _ROLES
    )
