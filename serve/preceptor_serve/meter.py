"""What a replica tells the autoscaler: tokens that wait, and how fast and for how much of the time it has computed."""

from __future__ import annotations

from typing import Final

from preceptor_serve.engine.counts import Counts

FORGET: Final = 0.8
"""Weight of what was measured before at each new measurement: about the last five count."""
SHORTEST_S: Final = 0.2
"""Readings closer together than this say too little of the share of time; they are put off."""


class Meter:
    """Turns an engine's counts into rates, beginning with `counts`."""

    def __init__(self, counts: Counts, *, now_s: float) -> None:
        self._counts = counts
        self._seen_s = now_s
        self._num_requests = 0
        self._tokens = self._busy_s = 0.0
        self._read_tokens = self._read_requests = 0.0
        self._busy_share = 0.0

    def asked(self) -> None:
        """Note a request."""
        self._num_requests += 1

    def read(self, counts: Counts, *, queued_tokens: int, now_s: float) -> dict[str, float]:
        """The figures that autoscale.py knows by these names; a rate that was never measured is left out."""
        if now_s - self._seen_s >= SHORTEST_S:
            self._measure(counts, now_s)
        found = {"queued_tokens": float(queued_tokens), "busy": self._busy_share}
        if self._busy_s > 0:
            found["tokens_per_s"] = self._tokens / self._busy_s
        if self._read_requests > 0:
            found["request_tokens"] = self._read_tokens / self._read_requests
        return found

    def _measure(self, counts: Counts, now_s: float) -> None:
        num_tokens, busy_s = counts.num_tokens - self._counts.num_tokens, counts.busy_s - self._counts.busy_s
        self._busy_share = min(1.0, busy_s / (now_s - self._seen_s))
        if num_tokens:
            self._tokens = FORGET * self._tokens + num_tokens
            self._busy_s = FORGET * self._busy_s + busy_s
        if num_tokens or self._num_requests:
            # Apart from each other: a long request is asked in one reading and computed in the next ones.
            self._read_tokens = FORGET * self._read_tokens + num_tokens
            self._read_requests = FORGET * self._read_requests + self._num_requests
        self._counts, self._seen_s, self._num_requests = counts, now_s, 0
