"""What the tests of clicks share: the market's own propensities, and clicks on what a ranker showed."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from preceptor.market import clicks

NUM_POSITIONS = 5
TRUTH = np.array([clicks.propensity(position) for position in range(1, NUM_POSITIONS + 1)])


def logged(seed: int, *, num_requests: int = 8000, num_pairs: int = 40, noise: float = 0.3) -> list[dict[str, Any]]:
    """Clicks of the market's own model on requests that a ranker of attraction with noise ordered."""
    rng = random.Random(seed)
    attractions = [rng.uniform(0.1, 0.9) for _ in range(num_pairs)]
    rows = []
    for _ in range(num_requests):
        shown = rng.sample(range(num_pairs), NUM_POSITIONS)
        shown.sort(key=lambda pair: -attractions[pair] - rng.gauss(0, noise))
        for position, pair in enumerate(shown, start=1):
            response = clicks.respond(rng, position=position, attracted=attractions[pair], applies=0.0)
            rows.append({"pair_id": f"{pair:03}", "position": position, "click": response.click})
    return rows
