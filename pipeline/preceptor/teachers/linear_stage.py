"""Stages of the linear engagement teacher: training it, and storing its scores as any other teacher's."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from preceptor.contracts import ACTIONS, TEACHER_SCORES, rows_to_table, write_table
from preceptor.errors import InputError
from preceptor.ranker.isotonic import load_calibration, save_calibration
from preceptor.ranker.score_stage import pairs_to_score
from preceptor.recipe import LinearConfig, PairSet
from preceptor.recipe.clicks import TOWERS
from preceptor.record import Record, StageRun, begin, to_jsonable, write_json
from preceptor.teachers.calibrated import action_maps
from preceptor.teachers.engagement import click_examples, corrected
from preceptor.teachers.linear import Lesson, LinearHead, Loss, Scale, fit_head, number_scales, pair_features
from preceptor.teachers.position_bias import Cells, Floats

MODEL_FILE: Final = "linear.json"


@dataclass(frozen=True, kw_only=True)
class LinearModel:
    """The action heads, and what their features are made with."""

    heads: Mapping[str, LinearHead]
    config: LinearConfig
    scales: Mapping[str, Scale]


@dataclass(frozen=True, kw_only=True)
class LinearScores:
    """Whose logits, on which pairs."""

    system: str
    sets: tuple[PairSet, ...]


def train_linear(
    run: StageRun,
    config: LinearConfig,
    *,
    shown: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
    pairs: Mapping[str, Mapping[str, str]],
) -> Record:
    """The finished record of a linear teacher fitted to `shown`; with its calibration, where the config wants one."""
    started_s = time.monotonic()
    known = [row for row in shown if row["pair_id"] in pairs]
    ids = sorted({row["pair_id"] for row in known})
    if not ids:
        raise InputError(f"{run.out}: no impression shows a pair of the corpus. Both must come from the same source.")
    known_pairs = [pairs[pair_id] for pair_id in ids]
    scales = number_scales(known_pairs)
    features = pair_features(known_pairs, config, scales)
    heads = {
        action: fit_head(features, lesson, config)
        for action, lesson in lessons(known, ids, pairs, config).items()
        if lesson.cells.taken_C.sum() > 0
    }
    model = run.out / "model"
    metrics: dict[str, Any] = {}
    trained = LinearModel(heads=heads, config=config, scales=scales)
    write_json(model / MODEL_FILE, _plain(trained))
    if config.clicks.calibration == "isotonic":
        unseen = sorted({row["pair_id"] for row in held_out} & pairs.keys())
        logits = linear_logits(trained, [pairs[pair_id] for pair_id in unseen])
        known_logits = {name: dict(zip(unseen, map(float, column), strict=True)) for name, column in logits.items()}
        maps = action_maps(known_logits, held_out)
        save_calibration(maps, model)
        metrics["calibrated"] = {name: len(item.logits) for name, item in maps.items()}
    return run.finish(
        num_rows_in=len(ids),
        num_rows_kept=len(ids),
        metrics={
            **metrics,
            "heads": list(heads),
            "numbers": list(scales),
            "num_parameters": sum(len(head.weights_F) + 1 for head in heads.values()),
            "penalties": {name: head.penalty for name, head in heads.items()},
            "towers": {name: [round(float(item), 4) for item in head.tower_K] for name, head in heads.items()}
            if config.clicks.position_bias in TOWERS
            else {},
        },
        cost={"train_s": round(time.monotonic() - started_s, 1)},
    )


def lessons(
    shown: Sequence[Mapping[str, Any]],
    pair_ids: Sequence[str],
    pairs: Mapping[str, Mapping[str, str]],
    config: LinearConfig,
) -> dict[str, Lesson]:
    """What each action head is told of `pair_ids`, in their order."""
    number = {pair_id: index for index, pair_id in enumerate(pair_ids)}
    requests = sorted({(pairs[name]["query_id"], pairs[name]["profile_id"]) for name in pair_ids})
    request_number = {request: index for index, request in enumerate(requests)}
    group_D = np.array([request_number[pairs[name]["query_id"], pairs[name]["profile_id"]] for name in pair_ids])
    bias = config.clicks.position_bias
    if bias == "additive_tower" or bias == "factorised_tower":
        return _tower_lessons(shown, number, group_D, bias)
    examples = list(click_examples(corrected(shown, config.clicks, pairs), config.clicks))
    return {
        action: _lesson(
            [
                (number[row["pair_id"]], 0, row["weight"], row["weight"] * row["target"][0])
                for row in examples
                if row["head"] == action
            ],
            group_D,
            config.clicks.loss,
            tuple(pair_ids),
        )
        for action in ACTIONS
        if any(row["head"] == action for row in examples)
    }


def _tower_lessons(
    shown: Sequence[Mapping[str, Any]], number: Mapping[str, int], group_D: Any, loss: Loss
) -> dict[str, Lesson]:
    """As `lessons`, by position; where positions are not known all stand at the first."""
    found = {}
    for action in ACTIONS:
        rows = [row for row in shown if row[action] is not None]
        if rows:
            cells = [(number[row["pair_id"]], row.get("position", 1) - 1, row["shown"], row[action]) for row in rows]
            found[action] = _lesson(cells, group_D, loss, tuple(number))
    return found


def _lesson(
    rows: Sequence[tuple[int, int, float, float]], group_D: Any, loss: Loss, pair_ids: tuple[str, ...]
) -> Lesson:
    totals: dict[tuple[int, int], list[float]] = {}
    for pair, place, num_shown, num_taken in rows:
        total = totals.setdefault((pair, place), [0.0, 0.0])
        total[0] += num_shown
        total[1] += num_taken
    cells = Cells(
        pair_ids=pair_ids,
        pair_C=np.array([pair for pair, _ in totals], dtype=np.int64),
        place_C=np.array([place for _, place in totals], dtype=np.int64),
        shown_C=np.array([total[0] for total in totals.values()]),
        taken_C=np.array([total[1] for total in totals.values()]),
    )
    return Lesson(cells=cells, examined_C=cells.shown_C, group_D=group_D, loss=loss)


def linear_logits(
    model: LinearModel, pairs: Sequence[Mapping[str, str]]
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """The raw logits of each action for each of `pairs`: no tower, no calibration."""
    if not pairs:
        return {name: np.empty(0) for name in model.heads}
    features = pair_features(pairs, model.config, model.scales)
    return {name: features @ head.weights_F + head.constant for name, head in model.heads.items()}


def calibrated_logits(model: Path, pairs: Sequence[Mapping[str, str]]) -> dict[str, Floats]:
    """What the linear teacher saved in the folder `model` says: the logits of each action for each of `pairs`,
    calibrated where it was calibrated."""
    maps = load_calibration(model)
    logits = linear_logits(load_linear(model), pairs)
    return {name: maps[name](column) if name in maps else column for name, column in logits.items()}


def score_linear(config: LinearScores, *, corpus: Record, model: Record, out: Path) -> Record:
    """The record of the linear teacher's logits in ``scores/`` (TEACHER_SCORES), calibrated where it was calibrated."""
    run = begin("score", config, out=out, inputs={"corpus": corpus, "model": model})
    if run.record is not None:
        return run.record
    pairs = pairs_to_score(corpus, config.sets)
    found = calibrated_logits(model.path / "model", pairs)
    rows = (
        {"pair_id": pair["pair_id"], "teacher": config.system, "head": name, "logits": [float(column[index])]}
        for index, pair in enumerate(pairs)
        for name, column in found.items()
    )
    write_table(rows_to_table(rows, TEACHER_SCORES), out / "scores" / "part-0.parquet", TEACHER_SCORES)
    return run.finish(num_rows_in=len(pairs), num_rows_kept=len(pairs), metrics={"system": config.system})


def load_linear(model: Path) -> LinearModel:
    """The linear teacher saved in the folder `model`."""
    file = model / MODEL_FILE
    if not file.is_file():
        raise InputError(f"{file}: no linear teacher here. Point at the model/ of one.")
    found = json.loads(file.read_text())
    heads = {
        name: LinearHead(
            weights_F=np.array(head["weights"]),
            constant=head["constant"],
            penalty=head["penalty"],
            tower_K=np.array(head["tower"]),
        )
        for name, head in found["heads"].items()
    }
    return LinearModel(
        heads=heads,
        config=LinearConfig(encoder=found["config"]["encoder"], num_hashed=found["config"]["num_hashed"]),
        scales={name: Scale(**scale) for name, scale in found.get("scales", {}).items()},
    )


def _plain(model: LinearModel) -> dict[str, Any]:
    heads = {
        name: {
            "weights": head.weights_F.tolist(),
            "constant": head.constant,
            "penalty": head.penalty,
            "tower": head.tower_K.tolist(),
        }
        for name, head in model.heads.items()
    }
    scales = {name: asdict(scale) for name, scale in model.scales.items()}
    return {"config": to_jsonable(model.config), "scales": scales, "heads": heads}
