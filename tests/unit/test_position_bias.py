"""Position bias: it comes out of clicks as it was put in, and each estimate equals plain loops."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest

from preceptor.errors import InputError
from preceptor.market import clicks
from preceptor.teachers.position_bias import count_cells, harvested, intervention_rates, regression_em
from tests.unit.clicking import NUM_POSITIONS, TRUTH, logged


def test_interventions_are_counted_as_by_plain_loops() -> None:
    rows = logged(3, num_requests=60, num_pairs=12)
    taken, missed = intervention_rates(count_cells(rows))
    shown = {(pair, k): [r for r in rows if (r["pair_id"], r["position"]) == (pair, k)]
             for pair in {r["pair_id"] for r in rows} for k in range(1, NUM_POSITIONS + 1)}  # fmt: skip
    for k, other in itertools.permutations(range(1, NUM_POSITIONS + 1), 2):
        wanted = [0.0, 0.0]
        for pair in {pair for pair, _ in shown}:
            here, there = shown[pair, k], shown[pair, other]
            if here and there:
                weight = len(here) * len(there) / (len(here) + len(there))
                rate = sum(row["click"] for row in here) / len(here)
                wanted[0] += weight * rate
                wanted[1] += weight * (1 - rate)
        assert (taken[k - 1, other - 1], missed[k - 1, other - 1]) == pytest.approx(tuple(wanted))


def test_harvesting_recovers_the_markets_propensities() -> None:
    # 40,000 impressions: a standard error of about 0.01 at each position.
    assert harvested(count_cells(logged(5))) == pytest.approx(TRUTH, abs=0.04)


def test_harvesting_reads_several_rankers_without_noise() -> None:
    # Two rankers that never change their mind still put the same documents at different places.
    rng, rows = random.Random(8), []
    attractions = [0.2 + 0.1 * pair for pair in range(NUM_POSITIONS)]
    for number in range(20_000):
        order = [0, 1, 2, 3, 4] if number % 2 else [4, 0, 1, 2, 3]
        for position, pair in enumerate(order, start=1):
            response = clicks.respond(rng, position=position, attracted=attractions[pair], applies=0.0)
            rows.append({"pair_id": str(pair), "position": position, "click": response.click})
    assert harvested(count_cells(rows)) == pytest.approx(TRUTH, abs=0.06)


def test_nothing_near_fits_interventions_better_than_what_was_harvested() -> None:
    cells = count_cells(logged(6, num_requests=2000))
    taken, missed = intervention_rates(cells)

    def best_likelihood(examination: np.ndarray[Any, Any]) -> float:
        """With each set's attraction at its best, by bisection on the slope, one dimension at a time."""
        total = 0.0
        for k, other in itertools.combinations(range(NUM_POSITIONS), 2):
            sides = ((k, other), (other, k))

            def slope(rate: float, sides: Any = sides) -> float:
                return sum(taken[s] / rate - missed[s] * examination[s[0]] / (1 - examination[s[0]] * rate)
                           for s in sides)  # fmt: skip

            low, high = 1e-9, 1 / max(examination[k], examination[other]) - 1e-9
            for _ in range(80):
                middle = (low + high) / 2
                low, high = (middle, high) if slope(middle) > 0 else (low, middle)
            for s in sides:
                total += taken[s] * math.log(examination[s[0]] * low)
                total += missed[s] * math.log(1 - examination[s[0]] * low)
        return total

    found = harvested(cells)
    for place in range(1, NUM_POSITIONS):
        for factor in (0.98, 1.02):
            moved = found.copy()
            moved[place] *= factor
            assert best_likelihood(moved) < best_likelihood(found)


def test_a_position_without_interventions_cannot_be_harvested() -> None:
    rows = [{"pair_id": str(k), "position": k, "click": True} for k in (1, 2) for _ in range(100)]
    with pytest.raises(InputError, match="position 1 cannot be harvested: 0 actions there on pairs shown elsewhere"):
        harvested(count_cells(rows))
    with pytest.raises(InputError, match="cannot be harvested"):
        harvested(count_cells([]))


def test_em_equals_plain_loops_over_impressions() -> None:
    rows = logged(7, num_requests=40, num_pairs=8)
    found = regression_em(count_cells(rows), max_rounds=12, tolerance=0.0)
    theta = {k: k**-0.5 for k in range(1, NUM_POSITIONS + 1)}
    rate = sum(row["click"] for row in rows) / len(rows)
    gamma = dict.fromkeys({row["pair_id"] for row in rows}, rate / (sum(theta.values()) / NUM_POSITIONS))
    for _ in range(12):
        examined: dict[int, list[float]] = {k: [] for k in theta}
        attracted: dict[str, list[float]] = {pair: [] for pair in gamma}
        for row in rows:
            t, g = theta[row["position"]], gamma[row["pair_id"]]
            rest = 1 - t * g
            examined[row["position"]].append(1.0 if row["click"] else t * (1 - g) / rest)
            attracted[row["pair_id"]].append(1.0 if row["click"] else g * (1 - t) / rest)
        theta = {k: sum(values) / len(values) for k, values in examined.items()}
        gamma = {pair: sum(values) / len(values) for pair, values in attracted.items()}
    assert found.examination_K == pytest.approx([theta[k] / theta[1] for k in sorted(theta)], abs=1e-9)
    wanted = [min(gamma[pair] * theta[1], 1.0) for pair in sorted(gamma)]
    assert found.attraction_D == pytest.approx(wanted, abs=1e-9)


def test_em_recovers_the_markets_propensities() -> None:
    assert regression_em(count_cells(logged(9))).examination_K == pytest.approx(TRUTH, abs=0.04)


def test_regression_on_features_finds_position_where_no_pair_is_shown_twice() -> None:
    # Each pair is shown once, so its own rate says nothing of position; that its kind also stands elsewhere does.
    rng, rows, kinds = random.Random(10), [], []
    for number in range(12_000):
        kind, position = rng.randrange(3), 1 + number % NUM_POSITIONS
        response = clicks.respond(rng, position=position, attracted=(0.2, 0.5, 0.8)[kind], applies=0.0)
        rows.append({"pair_id": f"{number:05}", "position": position, "click": response.click})
        kinds.append([float(kind == item) for item in range(3)])
    found = regression_em(count_cells(rows), np.array(kinds), penalty=0.01)
    assert found.examination_K == pytest.approx(TRUTH, abs=0.06)
