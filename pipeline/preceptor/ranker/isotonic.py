"""Isotonic calibration of action logits: a monotone map from raw logits to the log-odds of what was observed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from preceptor.errors import InputError
from preceptor.record import write_json

Floats = NDArray[np.float64]

CALIBRATION_FILE: Final = "action_calibration.json"
"""Beside a model's config.json: the map of each action that has one."""

NUM_BINS: Final = 20

_SMALLEST: Final = 1e-4
_TIE: Final = 1e-3


@dataclass(frozen=True, kw_only=True)
class Isotonic:
    """Knots of a rising, piecewise linear map of logits."""

    logits: tuple[float, ...]
    calibrated: tuple[float, ...]

    def __call__(self, logits: ArrayLike) -> Floats:
        """Calibrated logits, in the order of the raw ones: ties of the fit are parted by a thousandth of a logit."""
        raw = np.asarray(logits, dtype=np.float64)
        mapped = np.interp(raw, self.logits, self.calibrated)
        return np.asarray(mapped + _TIE * raw)


def fit_isotonic(
    logits: ArrayLike, taken: ArrayLike, examined: ArrayLike, shown: ArrayLike, *, num_bins: int = NUM_BINS
) -> Isotonic:
    """The map under which sigmoid(calibrated) is P(action | examined), fitted by isotonic regression.

    Row i was shown `shown[i]` times, examined `examined[i]` expected times and acted on `taken[i]` times; taken /
    examined is regressed on the logit by pool adjacent violators (Zadrozny and Elkan 2002). Rows weigh what was shown,
    not what was examined: a ranker puts the better of two documents of equal logit where it is examined more, and its
    rate would stand for both. Logits are first put into `num_bins` bins of equal weight, since the impressions of one
    pair are no independent witnesses. At position k the action's probability is the position's propensity times
    sigmoid(calibrated). A knot stands at the mean logit of its block: between blocks the map rises, and the order of
    documents is kept.
    """
    from sklearn.isotonic import IsotonicRegression

    logits_N, taken_N, examined_N, shown_N = (
        np.asarray(values, dtype=np.float64) for values in (logits, taken, examined, shown)
    )
    if not taken_N.sum() > 0:
        raise InputError("isotonic calibration needs an action in the calibration split, got none. Bring more traffic.")
    fit = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    bin_N = _equal_weight_bins(logits_N, shown_N, num_bins)
    weight_H = np.bincount(bin_N, weights=shown_N)
    mean_H = np.bincount(bin_N, weights=shown_N * logits_N) / weight_H
    rate_H = np.bincount(bin_N, weights=shown_N * taken_N / examined_N) / weight_H
    levels, block_H = np.unique(fit.fit_transform(mean_H, rate_H, sample_weight=weight_H), return_inverse=True)
    knots_B = np.bincount(block_H, weights=weight_H * mean_H) / np.bincount(block_H, weights=weight_H)
    held_B = np.clip(levels, _SMALLEST, 1 - _SMALLEST)
    return Isotonic(logits=tuple(map(float, knots_B)), calibrated=tuple(map(float, np.log(held_B) - np.log1p(-held_B))))


def _equal_weight_bins(logits_N: Floats, shown_N: Floats, num_bins: int) -> NDArray[np.int64]:
    """The bin of each row, numbered without gaps by rising logit; equal logits share one."""
    _, value_N = np.unique(logits_N, return_inverse=True)
    weight_V = np.bincount(value_N, weights=shown_N)
    middle_V = np.cumsum(weight_V) - weight_V / 2
    bin_V = np.minimum((num_bins * middle_V / weight_V.sum()).astype(np.int64), num_bins - 1)
    _, dense_V = np.unique(bin_V, return_inverse=True)
    return np.asarray(dense_V[value_N], dtype=np.int64)


def save_calibration(maps: Mapping[str, Isotonic], model: Path) -> None:
    """Write the map of each action beside the model; its weights and config stay as they are."""
    knots = {name: {"logits": item.logits, "calibrated": item.calibrated} for name, item in maps.items()}
    write_json(model / CALIBRATION_FILE, knots)


def load_calibration(model: Path) -> dict[str, Isotonic]:
    """The map of each action; none where the model was not calibrated."""
    file = model / CALIBRATION_FILE
    if not file.is_file():
        return {}
    found = json.loads(file.read_text())
    return {
        name: Isotonic(logits=tuple(knots["logits"]), calibrated=tuple(knots["calibrated"]))
        for name, knots in found.items()
    }
