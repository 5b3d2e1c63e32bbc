from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from preceptor.contracts import GOLDEN, LABELS, OVERALL, PAIRS, make_pair, rows_to_table
from preceptor.errors import InputError
from preceptor.evaluation.metrics import ndcg_at
from preceptor.evaluation.ppi import (
    FEWEST_QUERIES,
    Estimate,
    golden_grades,
    judge_grades,
    powered_mean,
    query_agreement,
    query_mean_grade,
    query_ndcg,
)

NUM_GOLDEN = 80
NUM_QUERIES = 700
NUM_DOCUMENTS = 8
Figures = dict[str, float]


class World:
    """Many queries with known grades, a judge that errs and is too kind, and a system whose ranking is measured."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        shape = (6_000, NUM_DOCUMENTS)
        ease = random.normal(size=(shape[0], 1))
        quality = random.normal(size=shape) + ease
        scores = quality + random.normal(size=shape) * np.exp(random.normal(size=(shape[0], 1)))
        judged = quality + 0.3 + 0.3 * random.normal(size=shape)
        self.truth, self.judged = by_query(quality), by_query(judged)
        self.scores = {f"{query}/{n}": float(scores[query, n]) for query, n in np.ndindex(shape)}


def by_query(quality: np.ndarray) -> dict[str, dict[str, int]]:
    grades = np.clip(np.round(quality + 1.5), 0, 4).astype(int)
    return {str(query): {f"{query}/{n}": int(grade) for n, grade in enumerate(row)} for query, row in enumerate(grades)}


@pytest.fixture(scope="module")
def world() -> World:
    return World(1)


def estimates(truth: Figures, judged: Figures, *, num: int) -> list[Estimate]:
    """Estimates from `num` samples of the world's queries, of each of which people grade some."""
    random = np.random.default_rng(5)
    names = np.array(sorted(truth))
    found = []
    for _ in range(num):
        sample = random.choice(names, size=NUM_QUERIES, replace=False)
        golden = {query: truth[query] for query in sample[:NUM_GOLDEN]}
        found.append(powered_mean(golden, {query: judged[query] for query in sample}))
    return found


def coverage(found: list[Estimate], true_mean: float, kind: str) -> float:
    return float(np.mean([getattr(e, kind).low <= true_mean <= getattr(e, kind).high for e in found]))


def width(found: list[Estimate], kind: str) -> float:
    return float(np.mean([getattr(e, kind).high - getattr(e, kind).low for e in found]))


def test_ndcg_has_a_narrower_interval_that_holds_as_often_as_it_says(world: World) -> None:
    truth, judged = query_ndcg(world.truth, world.scores), query_ndcg(world.judged, world.scores)
    assert 0 < sum(map(math.isnan, truth.values())) != sum(map(math.isnan, judged.values()))
    check(estimates(truth, judged, num=400), float(np.nanmean(list(truth.values()))))


def test_a_mean_grade_has_a_narrower_interval_that_holds_as_often_as_it_says(world: World) -> None:
    truth, judged = query_mean_grade(world.truth), query_mean_grade(world.judged)
    found = estimates(truth, judged, num=400)
    true_mean = float(np.mean(list(truth.values())))
    check(found, true_mean)
    assert all(estimate.judged > true_mean + 0.15 for estimate in found), "the judge alone is sure and wrong"
    assert {(estimate.num_golden, estimate.num_judged) for estimate in found} == {(NUM_GOLDEN, NUM_QUERIES)}


def test_a_systems_agreement_has_a_narrower_interval_that_holds_as_often_as_it_says(world: World) -> None:
    predicted = {pair: min(4, max(0, round(score + 1.5))) for pair, score in world.scores.items()}
    truth, judged = query_agreement(world.truth, predicted), query_agreement(world.judged, predicted)
    check(estimates(truth, judged, num=400), float(np.mean(list(truth.values()))))


def check(found: list[Estimate], true_mean: float) -> None:
    # Of 400 draws, 0.95 +- 0.033 is three standard errors.
    assert 0.917 <= coverage(found, true_mean, "powered") <= 0.983
    assert width(found, "powered") < 0.85 * width(found, "classical")
    means = [estimate.powered.value for estimate in found]
    # The judge's bias is gone. Tuning its weight on the same few queries leaves one that goes with 1 / n.
    assert abs(np.mean(means) - true_mean) < np.std(means) / 3


def test_a_judge_that_knows_nothing_costs_nothing_and_gains_nothing(world: World) -> None:
    truth = query_mean_grade(world.truth)
    random = np.random.default_rng(0)
    noise = {query: float(value) for query, value in zip(truth, random.normal(size=len(truth)), strict=True)}
    found = estimates(truth, noise, num=300)
    assert coverage(found, float(np.mean(list(truth.values()))), "powered") >= 0.91
    assert 0.93 * width(found, "classical") <= width(found, "powered") <= 1.05 * width(found, "classical")


def test_figures_are_of_one_query_each_and_of_whole_lists() -> None:
    grades = {"a": {"p": 4, "q": 0, "r": 2}, "b": {"s": 0, "t": 0}, "c": {"u": 3, "v": 1}}
    scores = {"p": 0.1, "q": 0.9, "r": 0.5, "s": 1.0, "t": 0.0, "u": 1.0}
    found = query_ndcg(grades, scores, k=2)
    assert found == {
        "a": pytest.approx(ndcg_at([4, 0, 2], [0.1, 0.9, 0.5], k=2)),
        "b": pytest.approx(math.nan, nan_ok=True),
    }
    assert query_mean_grade(grades) == {"a": 2.0, "b": 0.0, "c": 2.0}
    assert query_agreement(grades, {"p": 4, "q": 1, "r": 2, "u": 3}) == {"a": pytest.approx(2 / 3)}


def test_grades_come_from_the_contracts_tables_and_only_of_whole_queries() -> None:
    pairs = [make_pair(f"query {n // 2}", "a cook", f"posting {n}", slice="s") for n in range(4)]
    golden = [
        {**pair, "dimension": name, "grade": 3, "grader_id": "g", "reason": None, "policy_version": "v"}
        for pair in pairs
        for name in (OVERALL, "pay")
    ]
    labels = [
        {
            "pair_id": pair["pair_id"],
            "dimension": name,
            "grade": grade,
            "probs": [0.2] * 5,
            "label_mass": 1.0,
            "rationale": None,
            "judge_id": "j",
            "policy_version": "v",
            "prompt_hash": "h",
        }
        for pair in pairs[:3]
        for name, grade in ((OVERALL, 2), ("pay", 1))
    ]
    whole, partly = pairs[0]["query_id"], pairs[2]["query_id"]
    judged = judge_grades(rows_to_table(pairs, PAIRS), rows_to_table(labels, LABELS))
    assert judged == {whole: {pair["pair_id"]: 2 for pair in pairs[:2]}}
    found = golden_grades(rows_to_table(golden, GOLDEN))
    assert found.keys() == {whole, partly} and set(found[whole].values()) == {3}


def test_too_few_queries_or_unknown_ones_are_refused() -> None:
    judge = {str(n): float(n % 5) for n in range(100)}
    few = {str(n): 1.0 for n in range(FEWEST_QUERIES - 1)}
    with pytest.raises(InputError, match=r"at least 20 queries with golden grades, got 19"):
        powered_mean(few, judge)
    with pytest.raises(InputError, match=r"at least 20 queries with judge grades alone, got 10"):
        powered_mean({str(n): 1.0 for n in range(90)}, judge)
    with pytest.raises(InputError, match=r"1 golden queries have no judge's figure, the first z"):
        powered_mean({**few, "z": 1.0}, judge)


def test_the_estimator_is_loaded_only_when_asked() -> None:
    program = "import sys, preceptor.evaluation.ppi; print('ppi_py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "False"
