"""How fast an actor may ask: requests and tokens per minute, and a pause for all of it when the server says so.

Our own and not a package, because a server's limit needs three things at once that we found nowhere together: no minute
in which more is sent than allowed (a leaky bucket as large as the limit lets twice as much through in its first), sizes
that are corrected afterwards, and a pause that holds everybody.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

_WINDOW_S: Final = 60.0

_REQUEST_BURST: Final = 1 / 60
_TOKEN_BURST: Final = 1 / 10
"""Shares of a minute's limit that may be sent at once: a second's worth of requests, and enough tokens for a prompt."""

# Requests do not all take equally long to reach the server, which counts them when they arrive: a second's worth of the
# limit is kept back.
_KEPT_BACK: Final = 1 / 60

_TOKENS_PER_BYTE: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Time as an actor sees it. `now_s` is for waiting, `wall_s` for dates (seconds since 1970)."""

    now_s: Callable[[], float] = time.monotonic
    wall_s: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(kw_only=True)
class Bucket:
    """What may still be sent: full at first with `burst`, refilled so that no minute sees more than `per_minute`.

    A bucket of size b refilled at rate r lets at most b + 60 r through in any minute, so r is (per_minute - b) / 60.
    Something larger than the bucket goes when it is full and leaves a debt; then a minute may see more, by what it is
    larger than the bucket.
    """

    per_minute: float
    burst: float
    level: float = field(init=False)
    seen_s: float = -math.inf

    def __post_init__(self) -> None:
        self.level = self.burst

    @property
    def rate(self) -> float:
        """What comes back in a second."""
        return (self.per_minute - self.burst) / _WINDOW_S

    def wait_s(self, size: float, now_s: float) -> float:
        """Seconds until `size` may be taken; 0 where it may be now."""
        if now_s > self.seen_s:
            self.level = min(self.burst, self.level + (now_s - self.seen_s) * self.rate)
            self.seen_s = now_s
        missing = min(size, self.burst) - self.level
        # A rounding error is nothing to wait for: the wait could be too short to move the clock.
        return missing / self.rate if missing > 1e-9 * self.burst else 0.0

    def take(self, size: float) -> None:
        """Takes `size`, which may be negative to give back, and may leave a debt."""
        self.level = min(self.burst, self.level - size)


@dataclass(kw_only=True)
class Pace:
    """One actor's turn-taking. Everybody who asks passes `enter` first, one at a time and in order of arrival."""

    clock: Clock
    requests: Bucket | None
    tokens: Bucket | None
    resume_s: float = -math.inf
    tokens_per_byte: float = _TOKENS_PER_BYTE
    num_answered: int = 0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _bytes_seen: int = 0
    _tokens_seen: int = 0

    async def enter(self, num_tokens: float) -> None:
        """Returns as soon as one more request of about `num_tokens` may be sent."""
        async with self._turn:
            while (wait_s := self._wait_s(num_tokens)) > 0:
                await self.clock.sleep(wait_s)
            for bucket, size in ((self.requests, 1.0), (self.tokens, num_tokens)):
                if bucket is not None:
                    bucket.take(size)

    def pause(self, wait_s: float) -> None:
        """Lets nobody enter for `wait_s` seconds from now."""
        self.resume_s = max(self.resume_s, self.clock.now_s() + wait_s)

    def estimate(self, num_bytes: int) -> float:
        """About how many tokens a prompt of `num_bytes` has, by what this server has counted so far."""
        return num_bytes * self.tokens_per_byte

    def settle(self, *, num_bytes: int, num_prompt_tokens: int, num_generated_tokens: int, taken: float) -> None:
        """Counts an answer, and corrects the `taken` estimate of its request by what the server counted."""
        self.num_answered += 1
        if num_prompt_tokens <= 0:
            return
        self._bytes_seen += num_bytes
        self._tokens_seen += num_prompt_tokens
        self.tokens_per_byte = self._tokens_seen / max(self._bytes_seen, 1)
        if self.tokens is not None:
            self.tokens.take(num_prompt_tokens + num_generated_tokens - taken)

    def _wait_s(self, num_tokens: float) -> float:
        now_s = self.clock.now_s()
        waits = [self.resume_s - now_s]
        waits += [self.requests.wait_s(1.0, now_s)] if self.requests is not None else []
        waits += [self.tokens.wait_s(num_tokens, now_s)] if self.tokens is not None else []
        return max(waits)


def pace_of(*, requests_per_minute: float | None, tokens_per_minute: float | None, clock: Clock) -> Pace:
    """The pace for these limits; None for no limit."""
    return Pace(
        clock=clock,
        requests=None if requests_per_minute is None else _bucket(requests_per_minute, _REQUEST_BURST),
        tokens=None if tokens_per_minute is None else _bucket(tokens_per_minute, _TOKEN_BURST),
    )


def _bucket(per_minute: float, burst: float) -> Bucket:
    return Bucket(per_minute=per_minute * (1 - _KEPT_BACK), burst=per_minute * burst)
