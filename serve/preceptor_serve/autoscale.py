"""How many replicas there should be, by tokens that wait and not by requests: Ray Serve's autoscaling policy.

Requests differ a hundredfold in work, so their number says little. What replicas report (meter.py) are tokens. Those
that wait, at the present speed, are seconds of work; one replica for each `target_wait_s` of them. Requests that wait
in front of the replicas count as the mean request did.

Waiting work alone would flap: what three replicas keep short looks like work for one. So replicas are let go only
where the others would then be busy for at most `max_busy` of the time.

Serve sends this module to its controller by value: it imports nothing of this package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The scorers over the last seconds; means of what was reported, empty or 0 where nothing was.

    `target` is how many replicas there are to be and `running` how many are. `num_requests` are unanswered, `num_ahead`
    of them at no replica yet. The lists have a number for each replica that said so: tokens that wait or are computed,
    tokens a second while it computed, tokens of a request, and the share of time it computed.
    """

    target: int
    running: int
    num_requests: float
    num_ahead: float
    queued_tokens: tuple[float, ...] = ()
    tokens_per_s: tuple[float, ...] = ()
    request_tokens: tuple[float, ...] = ()
    busy: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QueuedTokens:
    """The policy, as serve.yaml names it.

    `target_wait_s` of work for each replica, at its measured speed. Above it replicas are added; they are let go where
    that leaves the others busy for `max_busy` of the time at most.
    """

    target_wait_s: float = 2.0
    max_busy: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.target_wait_s < math.inf:
            raise ValueError(f"target_wait_s must be above 0 and finite, got {self.target_wait_s:g}")
        if not 0 < self.max_busy <= 1:
            raise ValueError(f"max_busy is a share of time above 0 and at most 1, got {self.max_busy:g}")

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The replicas wanted, before Serve applies its delays and bounds, and no state."""
        config: Any = context.config  # Serve's own context always has one
        return replicas_wanted(seen_in(context), self, target_requests=config.target_ongoing_requests), {}


def seen_in(context: AutoscalingContext) -> Seen:
    """What Serve knows, as this policy reads it."""
    reported: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}

    def all_of(name: str) -> tuple[float, ...]:
        return tuple(reported.get(name, {}).values())

    return Seen(
        target=context.target_num_replicas,
        running=context.current_num_replicas,
        num_requests=context.total_num_requests,
        num_ahead=context.total_queued_requests or 0.0,
        queued_tokens=all_of("queued_tokens"),
        tokens_per_s=all_of("tokens_per_s"),
        request_tokens=all_of("request_tokens"),
        busy=all_of("busy"),
    )


def replicas_wanted(seen: Seen, aims: QueuedTokens, *, target_requests: float) -> float:
    """How many replicas `seen` asks for.

    `target_requests` unanswered requests for each where no speed is known: nothing was computed yet, or the bundle is
    served by transformers, whose tokens nobody counts.
    """
    if not any(seen.tokens_per_s):
        return seen.target if seen.running == 0 else seen.num_requests / target_requests
    for_queue = _for_queue(seen, aims)
    if for_queue > seen.target:
        return for_queue
    if seen.running < seen.target:
        # Some are still starting: what they will take over is not known yet.
        return seen.target
    busy = fmean(seen.busy) * seen.running if seen.busy else float(seen.running)
    return min(seen.target, max(for_queue, math.ceil(busy / aims.max_busy - 1e-9)))


def _for_queue(seen: Seen, aims: QueuedTokens) -> int:
    """Replicas that would each have `target_wait_s` of the waiting work, and no more than there are requests."""
    a_request = fmean(seen.request_tokens) if seen.request_tokens else 0.0
    tokens = sum(seen.queued_tokens) + seen.num_ahead * a_request
    speed = fmean([speed for speed in seen.tokens_per_s if speed > 0])
    # One request is computed by one replica, however long it takes.
    return max(0, math.ceil(min(tokens / (speed * aims.target_wait_s), seen.num_requests) - 1e-9))
