"""Signals to one score, and a score to grade logits: a few numbers, fitted on queries the signals were not tuned on.

Shapes: Q queries, N postings, S signals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from preceptor.contracts import NUM_GRADES
from preceptor.sources.signals import Matrix

if TYPE_CHECKING:
    from torch import Tensor

_DEPTH = 50
"""Of each query this many best postings say what a share means in grades."""


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """score = signals . weights; the logit of grade g is offsets[g] + slope * g * log share, an ordinal softmax.

    A posting's share of its query's gain is the softmax of the scores over the whole collection. Scores of two queries
    have no common zero, their shares have. The expected gain of a posting's grades rises with its score, and both rank
    alike.
    """

    weights: tuple[float, ...]
    slope: float
    offsets: tuple[float, ...]

    def scores(self, signals_QNS: Matrix) -> Matrix:
        """Scores [Q, N] of the queries' postings."""
        return np.asarray(signals_QNS @ np.array(self.weights, dtype=np.float32), dtype=np.float32)

    def logits(self, scores: Matrix) -> Matrix:
        """Grade logits of `scores`, [..., N] of all postings of a query: their shape and a last axis of 5."""
        grades = np.arange(NUM_GRADES, dtype=np.float32)
        log_shares = log_softmax(scores, axis=-1)
        return np.asarray(
            np.array(self.offsets, dtype=np.float32) + self.slope * log_shares[..., None] * grades, dtype=np.float32
        )


def fit_fusion(signals_QNS: Matrix, grades_QN: npt.NDArray[np.int8], *, ridge: float) -> Fusion:
    """The weights of least listwise cross-entropy plus `ridge` * |weights|^2, and then the logits of least
    cross-entropy of the grades on each query's best postings.

    The target of a query is its gains 2^grade - 1 as shares, over the whole collection (ListNet, Cao et al. 2007).
    """
    import torch

    signals = torch.from_numpy(np.ascontiguousarray(signals_QNS))
    gains = torch.from_numpy((2.0**grades_QN - 1).astype(np.float32))
    shares = gains / gains.sum(1, keepdim=True)
    weights = torch.zeros(signals.shape[2], requires_grad=True)

    def listwise() -> Tensor:
        log_probs = torch.log_softmax(signals @ weights, dim=1)
        return -(shares * log_probs).sum(1).mean() + ridge * weights.square().sum()

    _minimise([weights], listwise)
    log_shares = torch.log_softmax(signals @ weights.detach(), dim=1)
    best = log_shares.topk(min(_DEPTH, log_shares.shape[1]), dim=1).indices
    graded = torch.from_numpy(grades_QN.astype(np.int64)).gather(1, best).flatten()
    seen = log_shares.gather(1, best).flatten()
    steps = torch.arange(NUM_GRADES, dtype=torch.float32)
    offsets = torch.zeros(NUM_GRADES, requires_grad=True)
    log_slope = torch.tensor(-1.0, requires_grad=True)

    def ordinal() -> Tensor:
        logits = offsets + log_slope.exp() * seen[:, None] * steps
        # A grade that no pair has would be driven to minus infinity.
        return torch.nn.functional.cross_entropy(logits, graded) + 1e-4 * offsets.square().sum()

    _minimise([offsets, log_slope], ordinal)
    return Fusion(
        weights=tuple(weights.detach().tolist()),
        slope=float(log_slope.detach().exp()),
        offsets=tuple(offsets.detach().tolist()),
    )


def _minimise(parameters: list[Any], loss: Callable[[], Tensor]) -> None:
    import torch

    optimizer = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return float(value.detach())

    optimizer.step(closure)
