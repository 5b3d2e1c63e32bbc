from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from preceptor.evaluation.metrics import (
    auc,
    bootstrap,
    confusion,
    ece,
    graded_ece,
    log_loss,
    mean_ndcg,
    ndcg_at,
    quadratic_kappa,
    reliability,
    retention,
    within_auc,
)

GRADES = st.integers(0, 4)
COARSE_SCORES = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 2.0])
PROBS = st.sampled_from([0.05, 0.1, 0.2, 0.35, 0.6, 0.9])


def rows(*columns: st.SearchStrategy, min_size: int = 1) -> st.SearchStrategy[list[tuple]]:
    return st.lists(st.tuples(*columns), min_size=min_size, max_size=14)


def dcg(grades: list[int], k: int) -> float:
    return sum((2**grade - 1) / math.log2(rank + 2) for rank, grade in enumerate(grades[:k]))


@given(rows(GRADES, COARSE_SCORES, min_size=1).filter(lambda found: len(found) <= 6), st.integers(1, 7))
def test_ndcg_is_the_worst_order_that_the_scores_allow(pairs: list[tuple[int, float]], k: int) -> None:
    orders = [
        order for order in itertools.permutations(pairs) if all(a[1] >= b[1] for a, b in itertools.pairwise(order))
    ]
    lowest_first = min(orders, key=lambda order: [(-score, grade) for grade, score in order])
    best = dcg(sorted((grade for grade, _ in pairs), reverse=True), k)
    found = ndcg_at([grade for grade, _ in pairs], [score for _, score in pairs], k=k)
    if best == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(dcg([grade for grade, _ in lowest_first], k) / best)
        if k >= len(pairs):
            assert found == pytest.approx(min(dcg([grade for grade, _ in order], k) for order in orders) / best)


@given(st.lists(GRADES, min_size=2, max_size=30).filter(any), st.randoms(use_true_random=False))
def test_ndcg_equals_scikit_learn_without_ties(grades: list[int], random) -> None:
    scores = list(range(len(grades)))
    random.shuffle(scores)
    gains = [2**grade - 1 for grade in grades]
    assert ndcg_at(grades, scores) == pytest.approx(reference.ndcg_score([gains], [scores], k=10))


def test_a_constant_score_earns_the_worst_order() -> None:
    assert ndcg_at([4, 0, 0], [1, 1, 1]) == pytest.approx(1 / math.log2(4))


def test_mean_ndcg_leaves_out_lists_without_a_positive_grade() -> None:
    assert mean_ndcg([([1, 0], [2, 1]), ([0, 0], [1, 2])]) == 1.0
    assert math.isnan(mean_ndcg([([0, 0], [1, 2])]))


@given(rows(GRADES, GRADES, st.integers(1, 3), min_size=2))
def test_kappa_equals_scikit_learn(found: list[tuple[int, int, int]]) -> None:
    truth, predicted, weights = (list(column) for column in zip(*found, strict=True))
    if len({*truth, *predicted}) == 1:
        assert math.isnan(quadratic_kappa(truth, predicted, weights))
        return
    expected = reference.cohen_kappa_score(
        truth, predicted, weights="quadratic", labels=[0, 1, 2, 3, 4], sample_weight=weights
    )
    assert quadratic_kappa(truth, predicted, weights) == pytest.approx(expected)


def test_kappa_ends_at_agreement_and_reversal() -> None:
    assert quadratic_kappa([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]) == 1
    assert quadratic_kappa([0, 1, 2, 3, 4], [4, 3, 2, 1, 0]) == pytest.approx(-1)
    assert confusion([0, 0, 4], [1, 1, 4], num_grades=5)[0, 1] == 2


@given(rows(st.booleans(), COARSE_SCORES, st.integers(1, 4)))
def test_auc_counts_pairs_with_ties_as_half(found: list[tuple[bool, float, int]]) -> None:
    labels, scores, weights = (list(column) for column in zip(*found, strict=True))
    if len(set(labels)) == 1:
        assert math.isnan(auc(labels, scores, weights))
        return
    wins = total = 0.0
    for (one, high, left), (other, low, right) in itertools.product(found, found):
        if one and not other:
            wins += left * right * ((high > low) + (high == low) / 2)
            total += left * right
    assert auc(labels, scores, weights) == pytest.approx(wins / total)
    assert auc(labels, scores, weights) == pytest.approx(reference.roc_auc_score(labels, scores, sample_weight=weights))


@given(rows(st.integers(0, 3), st.integers(1, 3), COARSE_SCORES, st.integers(0, 2)))
def test_a_rate_stands_for_its_positives_and_negatives(found: list[tuple[int, int, float, int]]) -> None:
    unrolled = [
        (label, score, group) for clicks, others, score, group in found for label in [1] * clicks + [0] * others
    ]
    labels, scores, groups = (list(column) for column in zip(*unrolled, strict=True))
    rates = [clicks / (clicks + others) for clicks, others, _, _ in found]
    shown = [clicks + others for clicks, others, _, _ in found]
    given_scores, given_groups = [row[2] for row in found], [row[3] for row in found]
    probs = 1 / (1 + np.exp(-np.array(scores)))
    given_probs = 1 / (1 + np.exp(-np.array(given_scores)))

    def same(value: float) -> object:
        return pytest.approx(value, nan_ok=True, abs=1e-9)

    assert auc(rates, given_scores, shown) == same(auc(labels, scores))
    assert within_auc(rates, given_scores, given_groups, shown) == same(within_auc(labels, scores, groups))
    assert log_loss(rates, given_probs, shown) == same(log_loss(labels, probs))
    assert ece(rates, given_probs, shown) == same(ece(labels, probs))


@given(rows(st.booleans(), COARSE_SCORES, st.sampled_from("abc"), st.integers(1, 3)))
def test_within_auc_compares_only_inside_a_group(found: list[tuple[bool, float, str, int]]) -> None:
    labels, scores, groups, weights = (list(column) for column in zip(*found, strict=True))
    wins = total = 0.0
    for (one, high, here, left), (other, low, there, right) in itertools.product(found, found):
        if one and not other and here == there:
            wins += left * right * ((high > low) + (high == low) / 2)
            total += left * right
    value = within_auc(labels, scores, groups, weights)
    assert math.isnan(value) if total == 0 else value == pytest.approx(wins / total)


@given(rows(st.booleans(), PROBS, st.integers(1, 4)))
def test_log_loss_equals_scikit_learn(found: list[tuple[bool, float, int]]) -> None:
    labels, probs, weights = (list(column) for column in zip(*found, strict=True))
    expected = reference.log_loss(labels, probs, labels=[False, True], sample_weight=weights)
    assert log_loss(labels, probs, weights) == pytest.approx(expected)


def test_log_loss_of_a_confident_mistake_is_finite() -> None:
    assert log_loss([1], [0.0]) == pytest.approx(-math.log(1e-7))


@given(rows(st.booleans(), PROBS, st.integers(1, 4)), st.integers(1, 10), st.randoms(use_true_random=False))
def test_ece_equals_a_loop_over_bins_in_any_row_order(found: list[tuple], num_bins: int, random) -> None:
    bins: dict[int, list[tuple[bool, float]]] = {}
    below, total = 0, sum(weight for _, _, weight in found)
    for prob in sorted({prob for _, prob, _ in found}):
        block = [(label, prob) for label, at, weight in found if at == prob for _ in range(weight)]
        bins.setdefault(num_bins * (2 * below + len(block)) // (2 * total), []).extend(block)
        below += len(block)
    expected = sum(
        abs(sum(label for label, _ in content) - sum(prob for _, prob in content)) / total for content in bins.values()
    )
    random.shuffle(found)
    labels, probs, weights = (list(column) for column in zip(*found, strict=True))
    assert ece(labels, probs, weights, num_bins=num_bins) == pytest.approx(expected, abs=1e-12)


def test_reliability_bins_hold_equal_mass() -> None:
    probs = np.linspace(0.01, 0.99, 200)
    mean_prob, rate, share = reliability(probs > 0.5, probs)
    assert share == pytest.approx(np.full(10, 0.1))
    assert list(rate) == [0] * 5 + [1] * 5
    assert np.all(np.diff(mean_prob) > 0)


@given(grades=st.lists(st.integers(0, 4), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_ece_of_grades_is_the_mean_of_each_grades_own(grades: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    probs = generator.dirichlet(np.ones(5), size=len(grades))
    weights = generator.integers(0, 3, size=len(grades)) + (np.arange(len(grades)) == 0)
    own = [ece([float(found == grade) for found in grades], probs[:, grade], weights) for grade in range(5)]
    assert graded_ece(grades, probs, weights) == pytest.approx(sum(own) / 5, abs=1e-12)
    assert graded_ece(grades, np.eye(5)[grades]) == 0, "sure and right"
    assert graded_ece(grades, np.eye(5)[[(grade + 1) % 5 for grade in grades]]) > 0.1, "sure and wrong"


def test_ece_of_grades_without_rows_is_undefined() -> None:
    assert math.isnan(graded_ece([], np.empty((0, 5))))


@pytest.mark.parametrize("metric", [auc, log_loss, ece])
def test_metrics_of_nothing_are_undefined(metric) -> None:
    assert math.isnan(metric([], []))


def test_bootstrap_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(120):
        sample = generator.normal(3.0, 1.0, size=60).tolist()
        interval = bootstrap(lambda drawn: float(np.mean(drawn)), sample, num=200, seed=trial)
        hits += interval.low <= 3.0 <= interval.high
    assert 105 <= hits <= 119


def test_bootstrap_resamples_whole_groups() -> None:
    # Two groups that agree inside and differ between: rows drawn alone would give a far narrower interval.
    groups = [([4, 0], [1, 0]), ([4, 0], [0, 1])]
    interval = bootstrap(mean_ndcg, groups, num=300, seed=1)
    assert interval.low == pytest.approx(1 / math.log2(3))
    assert interval.high == 1.0
    assert interval.num_groups == 2
    assert interval == bootstrap(mean_ndcg, groups, num=300, seed=1)


def test_bootstrap_leaves_undefined_resamples_out() -> None:
    interval = bootstrap(lambda drawn: auc(drawn, drawn), [0, 1], num=50, seed=0)
    assert (interval.value, interval.low, interval.high) == (1, 1, 1)
    assert math.isnan(bootstrap(lambda drawn: 1.0, [], num=5, seed=0).value)


@settings(max_examples=20)
@given(st.lists(st.floats(0.1, 1), min_size=2, max_size=20), st.floats(0.2, 0.9))
def test_retention_is_paired(teacher: list[float], share: float) -> None:
    interval = retention(
        lambda drawn: share * float(np.mean(drawn)), lambda drawn: float(np.mean(drawn)), teacher, num=30, seed=2
    )
    assert [interval.value, interval.low, interval.high] == pytest.approx([share] * 3)
