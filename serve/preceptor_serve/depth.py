"""How many documents of a request are scored where not all can be in time: its first ones, as retrieval ordered them.

Two things cut a request. A deadline: as many documents as can be answered by it. And, where the operator says so, what
waits: a request stays whole up to `over_wait_s` of work, keeps half of its documents at twice as much, and so on, so
that under f times the load that can be answered each request keeps about 1/f. Neither cuts below the least number that
the request names, or else the operator; where neither names one, a request stays whole.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from pydantic import ConfigDict


@dataclass(frozen=True, kw_only=True)
class DepthOptions:
    """What the operator lets overload cut: above `over_wait_s` seconds of work that wait, and to no less than
    `least_documents` nor than `least_share` of a request's documents."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    over_wait_s: float
    least_documents: int
    least_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.over_wait_s < math.inf:
            raise ValueError(f"depth.over_wait_s must be above 0 and finite, got {self.over_wait_s:g}")
        if self.least_documents < 1:
            raise ValueError(f"depth.least_documents must be 1 or more, got {self.least_documents}")
        if not 0 <= self.least_share <= 1:
            raise ValueError(f"depth.least_share is a share from 0 to 1, got {self.least_share:g}")

    def least_of(self, num_documents: int) -> int:
        """Documents that a request of `num_documents` keeps at least."""
        return min(num_documents, max(self.least_documents, math.ceil(self.least_share * num_documents)))

    def share_at(self, waiting_s: float) -> float:
        """The share of its documents that a request keeps where `waiting_s` of work wait."""
        return 1.0 if waiting_s <= self.over_wait_s else self.over_wait_s / waiting_s


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The work of one query: what it takes once, what each document takes, and how many have to be scored."""

    once: float
    documents: Sequence[float]
    least: int


def depths(costs: Sequence[Cost], *, room: float, share: float) -> list[int]:
    """How many documents of each of `costs` to score: `share` of them, and no more than fit into `room` together.

    Queries of one body are cut to the same number of documents, where they have so many. None goes below its least,
    whether that fits or not.
    """
    tops = [max(cost.least, math.ceil(share * len(cost.documents))) for cost in costs]
    sums = [[0.0, *accumulate(cost.documents)] for cost in costs]

    def at(depth: int) -> list[int]:
        return [min(top, max(cost.least, depth)) for cost, top in zip(costs, tops, strict=True)]

    def work(depth: int) -> float:
        parts = zip(costs, sums, at(depth), strict=True)
        return sum(cost.once + total[number] for cost, total, number in parts)

    deepest = max(tops, default=0)
    return at(bisect_right(range(deepest + 1), room, key=work) - 1)
