"""Isotonic calibration of a trained engagement teacher on impressions that it has not learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preceptor.contracts import ACTIONS
from preceptor.errors import InputError
from preceptor.ranker.isotonic import Isotonic, fit_isotonic, save_calibration

Floats = NDArray[np.float64]


def calibrate_ranker(
    model: Path, held_out: Sequence[Mapping[str, Any]], pairs: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Metrics, after writing the maps of the ranker in `model` beside it; it scores the held-out pairs here."""
    from preceptor.ranker.model import load_ranker
    from preceptor.ranker.score_stage import logit_rows

    ranker, tokenizer = load_ranker(model)
    wanted = sorted({row["pair_id"] for row in held_out} & pairs.keys())
    found = logit_rows(ranker, tokenizer, [dict(pairs[pair_id]) for pair_id in wanted], block="")
    logits: dict[str, dict[str, float]] = {}
    for row in found:
        logits.setdefault(row["head"], {})[row["pair_id"]] = row["logits"][0]
    maps = action_maps(logits, held_out)
    save_calibration(maps, model)
    return {"calibrated": {name: len(item.logits) for name, item in maps.items()}}


def action_maps(
    logits: Mapping[str, Mapping[str, float]], held_out: Sequence[Mapping[str, Any]]
) -> dict[str, Isotonic]:
    """The map of each action, fitted to the held-out exposures with their known propensities.

    InputError where nothing was held out. An action never taken there has no map.
    """
    if not held_out:
        raise InputError("isotonic calibration needs impressions of split 'calibration', got none. Bring more traffic.")
    maps = {}
    for name in ACTIONS:
        rows = [row for row in held_out if row[name] is not None and row["pair_id"] in logits.get(name, {})]
        if any(row[name] > 0 for row in rows):
            maps[name] = fit_isotonic(
                [logits[name][row["pair_id"]] for row in rows],
                [row[name] for row in rows],
                [row["examined"] for row in rows],
                [row["shown"] for row in rows],
            )
    return maps
