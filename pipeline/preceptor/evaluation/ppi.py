"""Quality from few human grades and many judge grades: prediction-powered estimates, one figure for each query.

A query is the unit that was sampled. Its figure under judge grades is known for all queries, under golden grades for a
few; what the judge's figures are off by on those few corrects their mean over all. The interval holds whatever the
judge is worth, as long as the few queries are a random sample of all: a bad judge makes it no narrower, not wrong.
Source: Angelopoulos et al., "Prediction-powered inference" (2023); the weight of the judge is tuned as in
Angelopoulos, Duchi and Zrnic, "PPI++" (2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from preceptor.contracts import OVERALL
from preceptor.errors import InputError
from preceptor.evaluation.metrics import Floats, Interval, ndcg_at

FEWEST_QUERIES: Final = 20
"""Below this many queries with golden grades an interval of the normal kind promises more than it holds."""

_MOST_ROUNDS: Final = 100
_CLOSE: Final = 1e-9

Figures = Mapping[str, float]
"""One figure for each query, by query_id; NaN where the query has none, such as NDCG where nothing is good."""

Grades = Mapping[str, Mapping[str, int]]
"""Grades by query_id and pair_id."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The mean of a figure over queries: `powered` from both kinds of grades, `classical` from golden grades alone,
    `judged` from judge grades alone, which is off by what the judge is off."""

    powered: Interval
    classical: Interval
    judged: float
    num_golden: int
    num_judged: int


def powered_mean(golden: Figures, judge: Figures, *, alpha: float = 0.05) -> Estimate:
    """The mean of a figure over the queries that have one under golden grades, with intervals of level 1 - `alpha`.

    `judge` holds the figure under judge grades for all queries, `golden` the true one for a random sample of them.
    InputError where a query of `golden` is not in `judge`, or where either kind of query is too rare for an interval.
    """
    from ppi_py import classical_mean_ci, ppi_mean_ci

    both, others = _queries(golden, judge)
    truth, said = (np.array([figures[query] for query in both]) for figures in (golden, judge))
    unlabelled = np.array([judge[query] for query in others])
    mean, share = _powered_point(truth, said, unlabelled)
    # A query without a figure stands at the mean: it moves no sum of deviations. What is left is a ratio's interval.
    ends = ppi_mean_ci(*(_filled(figures, mean) for figures in (truth, said, unlabelled)), alpha=alpha)
    golden_mean, golden_share = float(np.nanmean(truth)), float(np.mean(~np.isnan(truth)))
    golden_ends = classical_mean_ci(_filled(truth, golden_mean), alpha=alpha)
    return Estimate(
        powered=_interval(mean, ends, share=share, num_groups=len(judge)),
        classical=_interval(golden_mean, golden_ends, share=golden_share, num_groups=len(both)),
        judged=float(np.nanmean(np.concatenate([said, unlabelled]))),
        num_golden=len(both),
        num_judged=len(judge),
    )


def _queries(golden: Figures, judge: Figures) -> tuple[list[str], list[str]]:
    """The queries with both figures, and those with the judge's alone; InputError where there are too few."""
    unknown = sorted(golden.keys() - judge.keys())
    if unknown:
        raise InputError(f"{len(unknown)} golden queries have no judge's figure, the first {unknown[0]}. Label them.")
    others = sorted(judge.keys() - golden.keys())
    num_golden = sum(not np.isnan(figure) for figure in golden.values())
    for what, num in (("with golden grades", num_golden), ("with judge grades alone", len(others))):
        if num < FEWEST_QUERIES:
            raise InputError(f"an estimate needs at least {FEWEST_QUERIES} queries {what}, got {num}. Grade more.")
    return sorted(golden), others


def _powered_point(truth: Floats, said: Floats, unlabelled: Floats) -> tuple[float, float]:
    """The prediction-powered mean over queries with a true figure, and the share of queries that have one."""
    from ppi_py import ppi_mean_pointestimate

    mean, share = float(np.nanmean(truth)), 1.0
    has = [~np.isnan(figures) for figures in (truth, said, unlabelled)]
    if not all(map(np.all, has)):
        share = float(np.squeeze(ppi_mean_pointestimate(*(known.astype(np.float64) for known in has))))
    for _ in range(_MOST_ROUNDS):
        filled = (_filled(figures, mean) for figures in (truth, said, unlabelled))
        before, mean = mean, float(np.squeeze(ppi_mean_pointestimate(*filled)))
        if abs(mean - before) < _CLOSE:
            break
    return mean, share


def _filled(figures: Floats, value: float) -> Floats:
    return np.where(np.isnan(figures), value, figures)


def query_ndcg(grades: Grades, scores: Mapping[str, float], *, k: int = 10) -> dict[str, float]:
    """NDCG at depth `k` of each query whose every graded pair has a score, ranked by `scores` (by pair_id).

    NaN where no grade is above 0: the mean is then over the other queries, as in `evaluation.metrics.mean_ndcg`.
    """
    return {
        query: ndcg_at(list(by_pair.values()), [scores[pair] for pair in by_pair], k=k)
        for query, by_pair in grades.items()
        if by_pair.keys() <= scores.keys()
    }


def query_mean_grade(grades: Grades) -> dict[str, float]:
    """The mean grade of each query's pairs."""
    return {query: float(np.mean(list(by_pair.values()))) for query, by_pair in grades.items()}


def query_agreement(grades: Grades, predicted: Mapping[str, int]) -> dict[str, float]:
    """The share of each query's pairs that `predicted` (a system's grades by pair_id) gives the same grade.

    Queries with a pair that it does not grade are left out.
    """
    return {
        query: float(np.mean([predicted[pair] == grade for pair, grade in by_pair.items()]))
        for query, by_pair in grades.items()
        if by_pair.keys() <= predicted.keys()
    }


def golden_grades(golden: pa.Table, *, dimension: str = OVERALL) -> dict[str, dict[str, int]]:
    """The grades of a GOLDEN table on `dimension`, by query and pair."""
    rows = golden.select(["query_id", "pair_id", "dimension", "grade"]).to_pylist()
    return _gathered((row["query_id"], row["pair_id"], row["grade"]) for row in rows if row["dimension"] == dimension)


def judge_grades(pairs: pa.Table, labels: pa.Table, *, dimension: str = OVERALL) -> dict[str, dict[str, int]]:
    """The grades of a LABELS table on `dimension`, by query and pair; `pairs` (PAIRS) says which query a pair is of.

    A query with a pair that has no such label is left out, so that its figure is of the same list as golden's.
    """
    rows = labels.select(["pair_id", "dimension", "grade"]).to_pylist()
    found = {row["pair_id"]: row["grade"] for row in rows if row["dimension"] == dimension}
    listed = pairs.select(["query_id", "pair_id"]).to_pylist()
    partly = {pair["query_id"] for pair in listed if pair["pair_id"] not in found}
    return _gathered(
        (pair["query_id"], pair["pair_id"], found[pair["pair_id"]]) for pair in listed if pair["query_id"] not in partly
    )


def _gathered(rows: Iterable[tuple[str, str, int]]) -> dict[str, dict[str, int]]:
    gathered: dict[str, dict[str, int]] = {}
    for query, pair, grade in rows:
        gathered.setdefault(query, {})[pair] = grade
    return gathered


def _interval(value: float, ends: tuple[float, float], *, share: float, num_groups: int) -> Interval:
    """`value` with an interval as wide as `ends` are apart, over the share of queries that have a figure."""
    low, high = (float(np.squeeze(end)) for end in ends)
    half = (high - low) / 2 / share
    return Interval(value=value, low=value - half, high=value + half, num_groups=num_groups)
