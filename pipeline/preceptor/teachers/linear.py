"""The linear engagement teacher: words, word pairs, numbers and sentence embeddings, fitted to every impression.

Shapes: D pairs, F features, C cells (a pair at a position), K positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from preceptor.contracts import content_id
from preceptor.ranker.text import split_features
from preceptor.recipe.clicks import LinearConfig
from preceptor.teachers.position_bias import Cells, Floats, Ints, sums_of

if TYPE_CHECKING:
    from collections.abc import Mapping

Loss = Literal["pointwise", "within", "additive_tower", "factorised_tower"]

_LEAST: Final = 1e-9
_EMBEDDED: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What one action head is told. `examined_C` is the expected number of examinations of each cell."""

    cells: Cells
    examined_C: Floats
    group_D: Ints
    """The request text (query and member) of each pair."""
    loss: Loss

    def of(self, kept_D: Any) -> Lesson:
        """The lesson of the pairs in the mask alone; pairs keep their numbers."""
        kept_C = kept_D[self.cells.pair_C]
        cells = replace(
            self.cells,
            pair_C=self.cells.pair_C[kept_C],
            place_C=self.cells.place_C[kept_C],
            shown_C=self.cells.shown_C[kept_C],
            taken_C=self.cells.taken_C[kept_C],
        )
        return replace(self, cells=cells, examined_C=self.examined_C[kept_C])


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How a numeric feature is distributed over the train pairs."""

    mean: float
    spread: float

    def of(self, value: float | None) -> float:
        """The value's distance from the mean in spreads, 0 for a missing one."""
        return 0.0 if value is None else (value - self.mean) / self.spread


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """One action's weights: its logit is features @ weights + constant. `tower_K` is what scoring drops."""

    weights_F: Floats
    constant: float
    penalty: float
    tower_K: Floats


Slopes = tuple[float, Floats, Floats]
"""A loss, its gradient by the pairs' scores [D], and by the tower [K]."""


def number_scales(pairs: Sequence[Mapping[str, str]]) -> dict[str, Scale]:
    """Mean and standard deviation of each numeric feature that documents end with (`ranker.text.with_numbers`); a
    feature that never varies is left out."""
    values: dict[str, list[float]] = {}
    for row in pairs:
        for name, value in split_features(row["document"])[1].items():
            values.setdefault(name, []).append(value)
    scales = {name: Scale(mean=float(np.mean(found)), spread=float(np.std(found))) for name, found in values.items()}
    return {name: scale for name, scale in sorted(scales.items()) if scale.spread > 0}


def pair_features(
    pairs: Sequence[Mapping[str, str]], config: LinearConfig, scales: Mapping[str, Scale] = MappingProxyType({})
) -> Any:
    """Sparse features [D, F] of PAIRS rows; they depend on the row alone.

    Words and word pairs of the document, hashed and of unit length; with an encoder also the document's embedding, and
    its products with those of query and member, coordinate by coordinate, where these are not empty. Numeric features
    at a document's end are no words: each of `scales` is one more column, in its spreads from the mean, 0 where the
    document does not say it.
    """
    from scipy import sparse

    said = [split_features(row["document"]) for row in pairs]
    blocks = [word_features([text for text, _ in said], num_hashed=config.num_hashed)]
    if scales:
        columns = [[scale.of(numbers.get(name)) for _, numbers in said] for name, scale in scales.items()]
        blocks += [sparse.csr_matrix(np.array(columns).T)]
    if config.encoder == "minilm":
        documents, *asked = (_embedded([row[name] for row in pairs]) for name in ("document", "query", "profile"))
        blocks += [sparse.csr_matrix(_EMBEDDED * documents)]
        blocks += [sparse.csr_matrix(documents * other * np.sqrt(documents.shape[1])) for other in asked if other.any()]
    return sparse.hstack(blocks).tocsr()


def word_features(texts: Sequence[str], *, num_hashed: int = 8192) -> Any:
    """Sparse rows [len(texts), num_hashed] of unit length: which words, signs and pairs of them stand in each text."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hashed = HashingVectorizer(
        n_features=num_hashed, ngram_range=(1, 2), binary=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]"
    )
    return hashed.transform(texts)


def _embedded(texts: Sequence[str]) -> Floats:
    """Embeddings of the texts, each distinct one encoded once; zeros for an empty text."""
    from preceptor.sources.retrieval import NUM_DIMENSIONS, embed

    distinct = sorted({text for text in texts if text})
    if not distinct:
        return np.zeros((len(texts), NUM_DIMENSIONS))
    number = {text: index for index, text in enumerate(distinct)}
    vectors = np.vstack([embed(distinct), np.zeros((1, NUM_DIMENSIONS), dtype=np.float32)]).astype(np.float64)
    return np.asarray(vectors[[number.get(text, -1) for text in texts]])


def fit_head(features_DF: Any, lesson: Lesson, config: LinearConfig) -> LinearHead:
    """The head with the penalty that does best on held-out groups; folds are by the hash of the group's number."""
    hashes = (int(content_id(str(config.seed), str(group)), 16) for group in range(lesson.group_D.max() + 1))
    fold_D = np.array([number % config.num_folds for number in hashes])[lesson.group_D]
    losses = []
    for penalty in config.penalties if len(config.penalties) > 1 else ():
        total = 0.0
        for fold in range(config.num_folds):
            rest, held_out = lesson.of(fold_D != fold), lesson.of(fold_D == fold)
            if len(rest.cells.pair_C) and len(held_out.cells.pair_C):
                head = _fitted(features_DF, rest, penalty)
                scores_D = features_DF @ head.weights_F + head.constant
                total += slopes(lesson.loss)(scores_D, head.tower_K, held_out)[0]
        losses.append(total)
    best = config.penalties[int(np.argmin(losses))] if losses else config.penalties[0]
    return _fitted(features_DF, lesson, best)


def _fitted(features_DF: Any, lesson: Lesson, penalty: float) -> LinearHead:
    from scipy.optimize import minimize

    num_features, num_positions = features_DF.shape[1], lesson.cells.num_positions
    # An example weighs 1 on average, so that a penalty means the same whatever the traffic.
    used = np.unique(lesson.cells.pair_C)
    scale = len(used) / max(float(lesson.examined_C.sum()), _LEAST)
    if lesson.loss == "within":
        scale = len(used) / max(float(lesson.cells.taken_C.sum()), _LEAST)
    terms = slopes(lesson.loss)
    tower = lesson.loss in ("additive_tower", "factorised_tower")

    def loss(values: Floats) -> tuple[float, Floats]:
        weights_F, constant, tower_K = values[:num_features], values[num_features], values[num_features + 1 :]
        value, slope_D, slope_K = terms(features_DF @ weights_F + constant, tower_K, lesson)
        # The first position's examination is 1, whatever the tower; an action's logit has no other scale.
        slope_K = slope_K.copy()
        slope_K[:1] = 0.0
        gradient = np.concatenate(
            [scale * (features_DF.T @ slope_D) + penalty * weights_F, [scale * slope_D.sum()], scale * slope_K * tower]
        )
        return float(scale * value + penalty / 2 * (weights_F**2).sum()) / len(used), gradient / len(used)

    rate = float(lesson.cells.taken_C.sum()) / max(float(lesson.examined_C.sum()), _LEAST)
    start = np.zeros(num_features + 1 + num_positions)
    start[num_features] = 0.0 if lesson.loss == "within" else _logit(rate)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-10}).x
    return LinearHead(
        weights_F=found[:num_features],
        constant=float(found[num_features]),
        penalty=penalty,
        tower_K=found[num_features + 1 :],
    )


def slopes(loss: Loss) -> Callable[[Floats, Floats, Lesson], Slopes]:
    """The function that gives loss and gradients, sums over the lesson."""
    return {
        "pointwise": pointwise,
        "within": within,
        "additive_tower": additive_tower,
        "factorised_tower": factorised_tower,
    }[loss]


def pointwise(scores_D: Floats, tower_K: Floats, lesson: Lesson) -> Slopes:
    """Cross-entropy to actions / examinations, cut to 1, weighed by the pair's expected examinations, in nats.

    The inverse-propensity estimate of Joachims et al. (WSDM 2017, section 4) with clicks divided by their propensity
    summed over a pair's impressions.
    """
    num = len(scores_D)
    examined_D = sums_of(lesson.examined_C, lesson.cells.pair_C, num)
    taken_D = np.minimum(sums_of(lesson.cells.taken_C, lesson.cells.pair_C, num), examined_D)
    value = (examined_D * np.logaddexp(0, scores_D) - taken_D * scores_D).sum()
    return float(value), examined_D * sigmoid(scores_D) - taken_D, np.zeros_like(tower_K)


def within(scores_D: Floats, tower_K: Floats, lesson: Lesson) -> Slopes:
    """Negative log-likelihood of which documents of a group the group's actions went to, given how many, in nats.

    With actions Poisson of mean examined_i * exp(s_i + group), and given their sum, document i has the share
    examined_i exp(s_i) / sum over the group: the conditional logit of McFadden (1974), listwise over the group with
    its clicks as soft targets and exposure as offset. What is common to a group drops out.
    """
    num = len(scores_D)
    examined_D = sums_of(lesson.examined_C, lesson.cells.pair_C, num)
    taken_D = sums_of(lesson.cells.taken_C, lesson.cells.pair_C, num)
    num_groups = int(lesson.group_D.max()) + 1
    highest = float(scores_D.max())
    raised_D = examined_D * np.exp(scores_D - highest)
    raised_G = sums_of(raised_D, lesson.group_D, num_groups)
    taken_G = sums_of(taken_D, lesson.group_D, num_groups)
    share_D = raised_D / np.maximum(raised_G[lesson.group_D], _LEAST * _LEAST)
    log_G = np.log(np.where(raised_G > 0, raised_G, 1.0)) + highest
    value = (taken_G * log_G).sum() - (taken_D * (scores_D + np.log(np.where(examined_D > 0, examined_D, 1.0)))).sum()
    return float(value), taken_G[lesson.group_D] * share_D - taken_D, np.zeros_like(tower_K)


def additive_tower(scores_D: Floats, tower_K: Floats, lesson: Lesson) -> Slopes:
    """Cross-entropy of each cell's actions with the logit s + b_k, b of the first position 0: the examination tower.

    The shallow tower of Zhao et al., "Recommending what video to watch next" (RecSys 2019), section 4.3, whose logit
    is added to the main tower's in training and missing when serving.
    """
    cells = lesson.cells
    tower = _first_zero(tower_K)
    logit_C = scores_D[cells.pair_C] + tower[cells.place_C]
    error_C = cells.shown_C * sigmoid(logit_C) - cells.taken_C
    value = (cells.shown_C * np.logaddexp(0, logit_C) - cells.taken_C * logit_C).sum()
    return (
        float(value),
        sums_of(error_C, cells.pair_C, len(scores_D)),
        sums_of(error_C, cells.place_C, len(tower_K)),
    )


def factorised_tower(scores_D: Floats, tower_K: Floats, lesson: Lesson) -> Slopes:
    """Cross-entropy of each cell's actions with P = exp(b_k) sigmoid(s), b of the first position 0.

    Click = examined x attracted: the position-based model's own likelihood, which regression-EM climbs in another way.
    P is held under 1.
    """
    cells = lesson.cells
    tower = _first_zero(tower_K)
    log_C = tower[cells.place_C] - np.logaddexp(0, -scores_D)[cells.pair_C]
    held_C = np.minimum(log_C, -_LEAST)
    probability_C = np.exp(held_C)
    missed_C = cells.shown_C - cells.taken_C
    value = -(cells.taken_C * log_C + missed_C * np.log1p(-probability_C)).sum()
    slope_C = missed_C * probability_C / (1 - probability_C) * (log_C < -_LEAST) - cells.taken_C
    unattracted_D = sigmoid(-scores_D)
    return (
        float(value),
        sums_of(slope_C, cells.pair_C, len(scores_D)) * unattracted_D,
        sums_of(slope_C, cells.place_C, len(tower_K)),
    )


def sigmoid(scores: Floats) -> Floats:
    """Probabilities of logits of any size."""
    return np.asarray(np.exp(-np.logaddexp(0, -scores)), dtype=np.float64)


def _first_zero(tower_K: Floats) -> Floats:
    tower = tower_K.copy()
    tower[:1] = 0.0
    return tower


def _logit(rate: float) -> float:
    held = min(max(rate, 1e-4), 0.9)
    return float(np.log(held / (1 - held)))
