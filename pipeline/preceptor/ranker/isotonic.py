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


def fit_isotonic(logits: ArrayLike, taken: ArrayLike, examined: ArrayLike) -> Isotonic:
    """The map under which sigmoid(calibrated) is P(action | examined), fitted by weighted isotonic regression.

    Row i was examined `examined[i]` expected times and acted on `taken[i]` times; taken / examined regressed on the
    logit by pool adjacent violators (Zadrozny and Elkan 2002), weighed by examined. At position k the action's
    probability is its propensity times sigmoid(calibrated): position enters by examination alone. A block's knot is the
    weighted mean of its logits, so that between blocks the map rises and the order of documents is kept.
    """
    from sklearn.isotonic import IsotonicRegression

    logits_N, taken_N, examined_N = (np.asarray(values, dtype=np.float64) for values in (logits, taken, examined))
    if not taken_N.sum() > 0:
        raise InputError("isotonic calibration needs an action in the calibration split, got none. Bring more traffic.")
    fit = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    rates_N = fit.fit_transform(logits_N, taken_N / examined_N, sample_weight=examined_N)
    levels, block_N = np.unique(rates_N, return_inverse=True)
    weight_B = np.bincount(block_N, weights=examined_N)
    knots_B = np.bincount(block_N, weights=examined_N * logits_N) / weight_B
    held_B = np.clip(levels, _SMALLEST, 1 - _SMALLEST)
    return Isotonic(
        logits=tuple(map(float, knots_B)), calibrated=tuple(map(float, np.log(held_B) - np.log1p(-held_B)))
    )


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
