"""How likely each position is examined, estimated from IMPRESSIONS: pure functions on counts.

Both estimators rest on the position-based model P(click) = examination of the position * attraction of the pair
(Richardson et al. 2007; Craswell et al. 2008, section 3.3). Only ratios of examination can be seen in clicks, so
position 1 is set to 1. Shapes: C cells (a pair at a position), D pairs, K positions, F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from preceptor.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_ACTIONS: Final = 20
"""Actions that a position needs on pairs shown elsewhere too, before it can be harvested."""

_LEAST: Final = 1e-6


@dataclass(frozen=True, kw_only=True)
class Cells:
    """How often each pair was shown at each position, and how often an action was taken there."""

    pair_ids: tuple[str, ...]
    pair_C: Ints
    """Index into `pair_ids`."""
    place_C: Ints
    """The position less 1."""
    shown_C: Floats
    taken_C: Floats

    @property
    def num_positions(self) -> int:
        """The lowest position that was shown."""
        return int(self.place_C.max()) + 1 if len(self.place_C) else 0


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What regression-EM found: examination of positions 1, 2, ..., the first being 1, and each pair's attraction."""

    examination_K: Floats
    attraction_D: Floats
    num_rounds: int


def sums_of(values_C: Floats, index_C: Ints, num: int) -> Floats:
    """The sum of the values of each index 0 to `num` - 1, [num]."""
    return np.asarray(np.bincount(index_C, weights=values_C, minlength=num), dtype=np.float64)


def count_cells(rows: Iterable[Mapping[str, Any]], *, action: str = "click") -> Cells:
    """The cells of IMPRESSIONS rows, pairs in the order of their ids; what is not of split train is the caller's."""
    shown: dict[tuple[str, int], float] = {}
    taken: dict[tuple[str, int], float] = {}
    for row in rows:
        cell = row["pair_id"], int(row["position"]) - 1
        shown[cell] = shown.get(cell, 0.0) + 1
        taken[cell] = taken.get(cell, 0.0) + float(row[action])
    cells = sorted(shown)
    names = sorted({pair_id for pair_id, _ in cells})
    number = {pair_id: index for index, pair_id in enumerate(names)}
    return Cells(
        pair_ids=tuple(names),
        pair_C=np.array([number[pair_id] for pair_id, _ in cells], dtype=np.int64),
        place_C=np.array([place for _, place in cells], dtype=np.int64),
        shown_C=np.array([shown[cell] for cell in cells]),
        taken_C=np.array([taken[cell] for cell in cells]),
    )


def intervention_rates(cells: Cells) -> tuple[Floats, Floats]:
    """(taken_KK, not_taken_KK): at [k, l] what happened at k on pairs that were shown both at k and at l.

    These are the counts c and not-c of Agarwal et al., "Estimating Position Bias without Intrusive Interventions"
    (WSDM 2019), section 4: a pair that rankers, or a ranker's noise, put at both positions is equally attractive at
    both. Each pair's rate at k counts by n_k n_l / (n_k + n_l) of its impressions, the same at both positions, so that
    pairs seldom shown do not add more noise than knowledge; the paper counts each pair once.
    """
    num = cells.num_positions
    shown_DK = np.zeros((len(cells.pair_ids), num))
    rate_DK = np.zeros_like(shown_DK)
    shown_DK[cells.pair_C, cells.place_C] = cells.shown_C
    rate_DK[cells.pair_C, cells.place_C] = cells.taken_C / cells.shown_C
    taken_KK, missed_KK = np.zeros((num, num)), np.zeros((num, num))
    for upper in range(num):
        for lower in range(num):
            both_D = (shown_DK[:, upper] > 0) & (shown_DK[:, lower] > 0)
            if upper == lower or not both_D.any():
                continue
            here_D, there_D = shown_DK[both_D, upper], shown_DK[both_D, lower]
            weight_D = here_D * there_D / (here_D + there_D)
            taken_KK[upper, lower] = (weight_D * rate_DK[both_D, upper]).sum()
            missed_KK[upper, lower] = (weight_D * (1 - rate_DK[both_D, upper])).sum()
    return taken_KK, missed_KK


def harvested(cells: Cells, *, min_actions: float = MIN_ACTIONS) -> Floats:
    """Examination [K] of each position by intervention harvesting, the first being 1.

    The AllPairs estimator of Agarwal et al. 2019, section 4.2: over examination p and the mean attraction r of the
    pairs that two positions share, both in (0, 1] and r symmetric, it maximises

        sum over k != l of  c[k, l] log(p_k r_kl) + not-c[k, l] log(1 - p_k r_kl).

    InputError naming the position where pairs shown elsewhere too were acted on less than `min_actions` times.
    """
    from scipy.optimize import minimize

    taken_KK, missed_KK = intervention_rates(cells)
    num = cells.num_positions
    _require_support(cells, taken_KK, min_actions)
    upper_P, lower_P = np.triu_indices(num, k=1)
    used_P = taken_KK[upper_P, lower_P] + taken_KK[lower_P, upper_P] > 0
    upper_P, lower_P = upper_P[used_P], lower_P[used_P]
    here_2P = np.concatenate([upper_P, lower_P])
    there_2P = np.concatenate([lower_P, upper_P])
    set_2P = np.tile(np.arange(len(upper_P)), 2)
    taken_2P, missed_2P = taken_KK[here_2P, there_2P], missed_KK[here_2P, there_2P]
    total = (taken_2P + missed_2P).sum()

    def loss(logs: Floats) -> tuple[float, Floats]:
        log_2P = logs[here_2P] + logs[num + set_2P]
        probability_2P = np.exp(log_2P)
        value = -(taken_2P * log_2P + missed_2P * np.log1p(-probability_2P)).sum()
        slope_2P = -(taken_2P - missed_2P * probability_2P / (1 - probability_2P))
        gradient = np.concatenate(
            [
                sums_of(slope_2P, here_2P, num),
                sums_of(slope_2P, set_2P, len(upper_P)),
            ]
        )
        return float(value / total), gradient / total

    pooled = taken_2P.sum() / total
    start = np.concatenate([np.full(num, -0.5), np.full(len(upper_P), np.log(min(max(pooled, _LEAST), 0.5)))])
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[(-12.0, 0.0)] * num + [(-16.0, -_LEAST)] * len(upper_P),
        options={"maxiter": 5000, "maxfun": 50_000, "ftol": 1e-14, "gtol": 1e-9},
    )  # fmt: skip
    logs_K = found.x[:num]
    return np.asarray(np.exp(logs_K - logs_K[0]), dtype=np.float64)


def _require_support(cells: Cells, taken_KK: Floats, min_actions: float) -> None:
    shared_K = taken_KK.max(axis=1) if len(taken_KK) else np.zeros(0)
    on_both = np.zeros(cells.num_positions)
    positions_D = np.bincount(cells.pair_C, minlength=len(cells.pair_ids)) if len(cells.pair_C) else np.zeros(0)
    np.add.at(on_both, cells.place_C, cells.taken_C * (positions_D[cells.pair_C] > 1))
    poor_K = np.flatnonzero((on_both < min_actions) | (shared_K <= 0))
    if len(poor_K) or not len(on_both):
        place = int(poor_K[0]) if len(poor_K) else 0
        seen = on_both[place] if len(on_both) else 0.0
        raise InputError(
            f"position {place + 1} cannot be harvested: {seen:.0f} actions there on pairs shown elsewhere too, "
            f"{min_actions:g} are needed. Log more traffic, or use known propensities."
        )


def regression_em(
    cells: Cells,
    features_DF: Any = None,
    *,
    penalty: float = 1.0,
    max_rounds: int = 300,
    tolerance: float = 1e-5,
) -> Examined:
    """Examination and attraction by regression-EM (Wang et al., "Position bias estimation for unbiased learning to rank
    in personal search", WSDM 2018, section 4.2), the first position's examination being 1.

    With theta_k examination and gamma attraction, an impression without the action was

        examined and unattractive  with theta_k (1 - gamma) / (1 - theta_k gamma),
        attractive and unexamined  with gamma (1 - theta_k) / (1 - theta_k gamma),

    and one with it was both (E step). theta_k is the mean of "examined" at k; gamma the regression of "attractive" on
    the pair's features: a logistic one, on the probabilities themselves instead of labels drawn from them, with an L2
    penalty on all but the constant, warm from the last round. Without `features_DF` gamma is each pair's own mean: the
    plain EM, which needs pairs shown at several positions. Stops where no theta moves by `tolerance`.
    """
    num, num_pairs = cells.num_positions, len(cells.pair_ids)
    shown_K = sums_of(cells.shown_C, cells.place_C, num)
    shown_D = sums_of(cells.shown_C, cells.pair_C, num_pairs)
    rate = float(cells.taken_C.sum() / cells.shown_C.sum())
    theta_K = 1.0 / np.sqrt(np.arange(1, num + 1))
    gamma_D = np.full(num_pairs, min(max(rate / float(theta_K.mean()), _LEAST), 0.9))
    regression = None if features_DF is None else _Regression(features_DF, shown_D, penalty)
    num_rounds = 0
    while num_rounds < max_rounds:
        num_rounds += 1
        theta_C, gamma_C = theta_K[cells.place_C], gamma_D[cells.pair_C]
        missed_C = (cells.shown_C - cells.taken_C) / np.maximum(1 - theta_C * gamma_C, _LEAST)
        examined_C = cells.taken_C + missed_C * theta_C * (1 - gamma_C)
        attractive_C = cells.taken_C + missed_C * gamma_C * (1 - theta_C)
        moved_K = sums_of(examined_C, cells.place_C, num) / np.maximum(shown_K, 1)
        target_D = sums_of(attractive_C, cells.pair_C, num_pairs) / shown_D
        gamma_D = target_D if regression is None else regression.fitted(target_D)
        change = float(np.abs(moved_K / moved_K[0] - theta_K / theta_K[0]).max())
        theta_K = moved_K
        if change < tolerance:
            break
    return Examined(
        examination_K=theta_K / theta_K[0], attraction_D=np.minimum(gamma_D * theta_K[0], 1.0), num_rounds=num_rounds
    )


class _Regression:
    """A logistic regression on shares, warm from one call to the next."""

    def __init__(self, features_DF: Any, weights_D: Floats, penalty: float) -> None:
        self._features_DF, self._weights_D, self._penalty = features_DF, weights_D, penalty
        self._coefficients = np.zeros(features_DF.shape[1] + 1)

    def fitted(self, target_D: Floats) -> Floats:
        """The regression's own shares [D] after at most 10 quasi-Newton steps towards `target_D`: enough for an EM."""
        from scipy.optimize import minimize

        total = self._weights_D.sum()

        def loss(coefficients: Floats) -> tuple[float, Floats]:
            score_D = self._features_DF @ coefficients[1:] + coefficients[0]
            value = (self._weights_D * (np.logaddexp(0, score_D) - target_D * score_D)).sum()
            value += self._penalty / 2 * (coefficients[1:] ** 2).sum()
            error_D = self._weights_D * (_sigmoid(score_D) - target_D)
            slope = np.concatenate([[error_D.sum()], self._features_DF.T @ error_D + self._penalty * coefficients[1:]])
            return float(value / total), slope / total

        found = minimize(loss, self._coefficients, jac=True, method="L-BFGS-B", options={"maxiter": 10})
        self._coefficients = found.x
        return _sigmoid(self._features_DF @ found.x[1:] + found.x[0])


def _sigmoid(scores: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0, -scores)), dtype=np.float64)
