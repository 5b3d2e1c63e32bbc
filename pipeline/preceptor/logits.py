"""From raw logits to probabilities, for code that holds a few numbers and no tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence


def softmax(logits: Sequence[float]) -> tuple[float, ...]:
    """Probabilities of raw `logits`, of any size."""
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def sigmoid(logit: float) -> float:
    """Probability of one raw `logit`, of any size."""
    # The exponent is never above 0: exp of a large logit would overflow.
    power = math.exp(-abs(logit))
    return 1.0 / (1.0 + power) if logit >= 0 else power / (1.0 + power)
