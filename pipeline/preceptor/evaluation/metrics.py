"""Ranking, agreement and probability metrics with bootstrap intervals, in NumPy alone.

Every metric that takes `weights` treats an integer weight as that many copies of the row. Labels of `auc`,
`within_auc`, `log_loss` and `ece` may be rates: a row shown n times and clicked c times, given as label c / n with
weight n, stands for c positives and n - c negatives. A metric that is undefined on its input is NaN, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from preceptor.contracts import NUM_GRADES

Floats = NDArray[np.float64]
Group = TypeVar("Group")

_SMALLEST_PROB: Final = 1e-7


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with the ends of its 95 % bootstrap interval, over `num_groups` resampled groups."""

    value: float
    low: float
    high: float
    num_groups: int


def gain(grades: ArrayLike) -> Floats:
    """2^grade - 1, the exponential gain of Burges et al., "Learning to rank using gradient descent" (2005)."""
    return np.exp2(_floats(grades)) - 1


def ndcg_at(grades: ArrayLike, scores: ArrayLike, *, k: int = 10) -> float:
    """NDCG of one ranked list at depth `k`, 0 to 1, with gain 2^grade - 1 and discount log2(rank + 1).

    Ties are broken against the system: among equal scores the lower grade stands first, so a constant score earns
    the worst order. NaN where no grade is above 0, for nothing can be ranked well there; callers drop those lists.
    Source: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques" (2002).
    """
    gains = gain(grades)
    best = _dcg(np.sort(gains)[::-1], k)
    if best == 0:
        return float("nan")
    return _dcg(gains[np.lexsort((gains, -_floats(scores)))], k) / best


def mean_ndcg(groups: Iterable[tuple[ArrayLike, ArrayLike]], *, k: int = 10) -> float:
    """Mean NDCG over (grades, scores) lists, without those that hold no positive grade; NaN where none is left."""
    values = _floats([ndcg_at(grades, scores, k=k) for grades, scores in groups])
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def quadratic_kappa(
    truth: ArrayLike, predicted: ArrayLike, weights: ArrayLike | None = None, *, num_grades: int = NUM_GRADES
) -> float:
    """Cohen's kappa with quadratic weights, 1 for equal grades, 0 for chance agreement of the same marginals.

    `truth` and `predicted` are whole grades below `num_grades`. NaN where both are one and the same constant.
    Source: Cohen, "Weighted kappa" (1968).
    """
    grades = np.arange(num_grades)
    cost = (grades[:, None] - grades[None, :]) ** 2
    return float(kappa_of(confusion(truth, predicted, weights, num_grades=num_grades), cost))


def kappa_of(observed: ArrayLike, cost: ArrayLike) -> Floats:
    """Cohen's weighted kappa of each (..., G, G) confusion matrix, where cell (i, j) costs ``cost[i, j]``.

    Costs |i - j| give linear, their squares quadratic kappa; costs of 1 across a threshold and 0 inside give kappa of
    the grades cut in two there. NaN where chance agreement would cost nothing. Source: Cohen, "Weighted kappa" (1968).
    """
    counts, cost = _floats(observed), _floats(cost)
    chance = counts.sum(axis=-1)[..., :, None] * counts.sum(axis=-2)[..., None, :]
    by_chance = (cost * chance).sum(axis=(-2, -1))
    found = (cost * counts).sum(axis=(-2, -1)) * counts.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(by_chance > 0, 1 - found / by_chance, np.nan)


def confusion(
    truth: ArrayLike, predicted: ArrayLike, weights: ArrayLike | None = None, *, num_grades: int = NUM_GRADES
) -> Floats:
    """The (num_grades, num_grades) matrix of row weights: true grade down, predicted grade across."""
    cell = np.asarray(truth, dtype=np.int64) * num_grades + np.asarray(predicted, dtype=np.int64)
    counted = np.bincount(cell, weights=_weights(weights, len(cell)), minlength=num_grades**2)
    return _floats(counted).reshape(num_grades, num_grades)


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Probability that a positive outscores a negative, ties counting half; NaN without both kinds.

    Source: the Mann-Whitney form of Hanley and McNeil, "The meaning and use of the area under a ROC curve" (1982).
    """
    wins, num_pairs = pair_wins(labels, scores, weights)
    return wins / num_pairs if num_pairs > 0 else float("nan")


def within_auc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, weights: ArrayLike | None = None) -> float:
    """AUC over the positive-negative pairs of one and the same group, pooled: each group counts by its pairs.

    `groups` names each row's group (a test, a query). NaN where no group holds both kinds.
    """
    labels, scores = _floats(labels), _floats(scores)
    mass = _weights(weights, len(labels))
    parts = [pair_wins(labels[rows], scores[rows], mass[rows]) for rows in rows_by_group(groups)]
    wins, num_pairs = sum(part[0] for part in parts), sum(part[1] for part in parts)
    return wins / num_pairs if num_pairs > 0 else float("nan")


def pair_wins(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, float]:
    """Weight of the positive-negative pairs that `scores` order rightly (ties half), and of all such pairs."""
    labels, scores = _floats(labels), _floats(scores)
    if not len(scores):
        return 0.0, 0.0
    mass = _weights(weights, len(scores))
    order = np.argsort(scores, kind="stable")
    starts = _block_starts(scores[order])
    positive = np.add.reduceat((mass * labels)[order], starts)
    negative = np.add.reduceat((mass * (1 - labels))[order], starts)
    num_below = np.cumsum(negative) - negative
    return float((positive * (num_below + negative / 2)).sum()), float(positive.sum() * negative.sum())


def log_loss(labels: ArrayLike, probs: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean cross-entropy in nats; `probs` are held 1e-7 away from 0 and 1. NaN without rows."""
    labels = _floats(labels)
    probs = np.clip(_floats(probs), _SMALLEST_PROB, 1 - _SMALLEST_PROB)
    losses = -(labels * np.log(probs) + (1 - labels) * np.log1p(-probs))
    mass = _weights(weights, len(labels))
    return float((losses * mass).sum() / mass.sum()) if mass.sum() > 0 else float("nan")


def ece(labels: ArrayLike, probs: ArrayLike, weights: ArrayLike | None = None, *, num_bins: int = 10) -> float:
    """Expected calibration error: mass-weighted |observed rate - mean prob| over equal-mass bins. NaN without rows.

    Source: Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning" (2015); equal-mass bins
    because most click probabilities crowd into the lowest tenth of 0..1.
    """
    mean_prob, rate, share = reliability(labels, probs, weights, num_bins=num_bins)
    return float((share * np.abs(rate - mean_prob)).sum()) if len(share) else float("nan")


def graded_ece(grades: ArrayLike, probs: ArrayLike, weights: ArrayLike | None = None, *, num_bins: int = 10) -> float:
    """Mean over the grades of the calibration error of each one's probability; `probs` is (rows, 5). NaN without rows.

    Source: the classwise error of Kull et al., "Beyond temperature scaling" (2019), section 2.
    """
    grades, probs = np.asarray(grades), _floats(probs)
    errors = [ece(grades == grade, probs[:, grade], weights, num_bins=num_bins) for grade in range(NUM_GRADES)]
    return float(np.mean(errors))


def reliability(
    labels: ArrayLike, probs: ArrayLike, weights: ArrayLike | None = None, *, num_bins: int = 10
) -> tuple[Floats, Floats, Floats]:
    """Mean prob, observed rate and share of mass of each non-empty equal-mass bin, by rising prob.

    Rows of equal prob share a bin, the one where the middle of their mass falls: the result depends neither on the
    order of the rows nor on how a weight is split over copies.
    """
    labels, probs = _floats(labels), _floats(probs)
    mass = _weights(weights, len(labels))
    total = mass.sum()
    if not total > 0:
        return np.empty(0), np.empty(0), np.empty(0)
    order = np.argsort(probs, kind="stable")
    starts = _block_starts(probs[order])
    block_mass = np.add.reduceat(mass[order], starts)
    block_clicks = np.add.reduceat((mass * labels)[order], starts)
    middle = np.cumsum(block_mass) - block_mass / 2
    bins = np.minimum((num_bins * middle / total).astype(np.int64), num_bins - 1)
    bin_mass = np.bincount(bins, weights=block_mass)
    bin_prob = np.bincount(bins, weights=block_mass * probs[order][starts])
    bin_clicks = np.bincount(bins, weights=block_clicks)
    used = bin_mass > 0
    return bin_prob[used] / bin_mass[used], bin_clicks[used] / bin_mass[used], bin_mass[used] / total


def bootstrap(
    statistic: Callable[[Sequence[Group]], float], groups: Sequence[Group], *, num: int, seed: int
) -> Interval:
    """`statistic(groups)` with its 95 % percentile interval over `num` resamples of whole groups with replacement.

    A group is what was sampled independently: all rows of one query. The same `seed` and number of groups give the
    same resamples, so systems are compared on equal draws. Resamples on which the statistic is NaN are left out of
    the interval; all NaN without groups.
    """
    if not len(groups):
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"), num_groups=0)
    generator = np.random.default_rng(seed)
    draws = (generator.integers(len(groups), size=len(groups)).tolist() for _ in range(num))
    estimates = _floats([statistic([groups[pick] for pick in draw]) for draw in draws])
    defined = estimates[~np.isnan(estimates)]
    low, high = np.percentile(defined, (2.5, 97.5)) if len(defined) else (np.nan, np.nan)
    return Interval(value=float(statistic(groups)), low=float(low), high=float(high), num_groups=len(groups))


def retention(
    student: Callable[[Sequence[Group]], float],
    teacher: Callable[[Sequence[Group]], float],
    groups: Sequence[Group],
    *,
    num: int,
    seed: int,
) -> Interval:
    """The student's statistic over the teacher's, with a paired interval: both see the same resamples of `groups`."""

    def ratio(drawn: Sequence[Group]) -> float:
        whole = teacher(drawn)
        return student(drawn) / whole if whole != 0 else float("nan")

    return bootstrap(ratio, groups, num=num, seed=seed)


def rows_by_group(groups: ArrayLike) -> list[NDArray[np.int64]]:
    """The row numbers of each distinct value of `groups`, groups in sorted order, rows in their own."""
    names = np.asarray(groups)
    order = np.argsort(names, kind="stable")
    return np.split(order, _block_starts(names[order])[1:]) if len(names) else []


def _dcg(gains: Floats, k: int) -> float:
    shown = gains[:k]
    return float((shown / np.log2(np.arange(len(shown)) + 2)).sum())


def _block_starts(ordered: NDArray[np.generic]) -> NDArray[np.int64]:
    return np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _weights(weights: ArrayLike | None, num_rows: int) -> Floats:
    return np.ones(num_rows) if weights is None else _floats(weights)
