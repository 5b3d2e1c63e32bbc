"""How much of something a minute: a token bucket whose clock is handed in."""

from __future__ import annotations

import math


class Bucket:
    """`per_minute` units, refilled evenly, full at first.

    One request larger than the whole bucket is let through while it is full and leaves a debt, so that a limit on
    documents never forbids a request for good and yet holds over time.
    """

    def __init__(self, per_minute: float, *, now_s: float) -> None:
        self.per_minute = per_minute
        self._level = per_minute
        self._seen_s = now_s

    def take(self, cost: float, *, now_s: float) -> float:
        """0 after taking `cost`; or the seconds until it could be taken, and nothing is taken."""
        self._level = min(self.per_minute, self._level + (now_s - self._seen_s) * self.per_minute / 60)
        self._seen_s = now_s
        lacking = min(cost, self.per_minute) - self._level
        if lacking > 1e-9:
            return lacking * 60 / self.per_minute
        self._level -= cost
        return 0.0


def retry_after(seconds: float) -> int:
    """`seconds` as Retry-After says them: whole, and 1 at least."""
    return max(1, math.ceil(seconds))
