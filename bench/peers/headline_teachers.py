"""Headline teachers compared on train tests by cross-validation, and on the dev tests once the choice is made."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from preceptor.evaluation.metrics import Interval, bootstrap, pair_wins, rows_by_group
from preceptor.recipe import ClicksConfig, LinearConfig
from preceptor.sources.headlines import Headline, merge_headlines
from preceptor.sources.tables import Kind, read_source
from preceptor.teachers.linear import Lesson, fit_head, pair_features
from preceptor.teachers.position_bias import Cells

Floats = NDArray[np.float64]

NUM_FOLDS: Final = 5
TEACHERS: Final = (
    ("words, pointwise", LinearConfig(clicks=ClicksConfig())),
    ("words, within", LinearConfig(clicks=ClicksConfig(loss="within"))),
    ("words and embedding, pointwise", LinearConfig(encoder="minilm", clicks=ClicksConfig())),
    ("words and embedding, within", LinearConfig(encoder="minilm", clicks=ClicksConfig(loss="within"))),
)


def headline_table(folder: Path, *, dev: bool, quick: bool) -> None:
    """Print the within-test AUC of each teacher: cross-validated on train tests and, with `dev`, on the dev tests."""
    file = folder / "headline_tests.parquet"
    columns = dict[str, Kind](test_id="text", headline="text", impressions="integer", clicks="integer", split="text")
    kept, _ = merge_headlines(read_source(file, columns), file)
    train = [item for item in kept if item.split != "holdout"]
    held_out = [item for item in kept if item.split == "holdout"]
    if quick:
        train, held_out = train[:400], held_out[:200]
    tests = np.array([item.test_id for item in train])
    names = np.unique(tests)
    fold_T = np.random.default_rng(17).integers(NUM_FOLDS, size=len(names))
    fold_N = fold_T[np.searchsorted(names, tests)]
    print(f"{len(names):,} train tests, {len(train):,} headlines; AUC within tests")
    for name, config in TEACHERS[: 2 if quick else None]:
        started_s = time.monotonic()
        features = _features([*train, *held_out], config)
        scores = np.zeros(len(train))
        for fold in range(NUM_FOLDS):
            seen = np.flatnonzero(fold_N != fold)
            scores[fold_N == fold] = _learnt(train, features, config, seen)[: len(train)][fold_N == fold]
        _say(f"{name}, train folds", train, scores, started_s)
        if dev:
            _say(f"{name}, dev", held_out, _learnt(train, features, config, np.arange(len(train)))[len(train) :])
    _say("own rate (ceiling, has seen the clicks), train", train, _rates(train))
    if dev:
        _say("own rate (ceiling, has seen the clicks), dev", held_out, _rates(held_out))


def _features(headlines: Sequence[Headline], config: LinearConfig) -> Any:
    return pair_features([{"query": "", "profile": "", "document": item.text} for item in headlines], config)


def _rates(headlines: Sequence[Headline]) -> Floats:
    return np.array([item.num_clicks / item.num_shown for item in headlines])


def _learnt(train: Sequence[Headline], features: Any, config: LinearConfig, seen: NDArray[np.int64]) -> Floats:
    """Logits of every row of `features`, learnt from the rows `seen` of `train`."""
    rows = [train[index] for index in seen]
    _, group = np.unique([item.test_id for item in rows], return_inverse=True)
    shown = np.array([float(item.num_shown) for item in rows])
    cells = Cells(
        pair_ids=tuple(map(str, seen)),
        pair_C=np.arange(len(rows)),
        place_C=np.zeros(len(rows), dtype=np.int64),
        shown_C=shown,
        taken_C=np.array([float(item.num_clicks) for item in rows]),
    )
    lesson = Lesson(cells=cells, examined_C=shown, group_D=group, loss=config.clicks.loss)
    head = fit_head(features[seen], lesson, config)
    return np.asarray(features @ head.weights_F + head.constant)


def _say(name: str, headlines: Sequence[Headline], scores: Floats, started_s: float | None = None) -> None:
    found = within_tests(headlines, scores)
    took = "" if started_s is None else f"  {time.monotonic() - started_s:.0f} s"
    print(f"{name:<48} {found.value:.4f} [{found.low:.4f}, {found.high:.4f}]{took}", flush=True)


def within_tests(headlines: Sequence[Headline], scores: Floats) -> Interval:
    """The impression-weighted AUC within tests, with its interval over tests of two headlines or more."""
    shown = np.array([float(item.num_shown) for item in headlines])
    wins = np.array(list(_wins(headlines, scores, _rates(headlines), shown)))

    def within(drawn: Sequence[int]) -> float:
        won, num_pairs = wins[list(drawn)].sum(axis=0)
        return float(won / num_pairs)

    return bootstrap(within, range(len(wins)), num=1000, seed=11)


def _wins(headlines: Sequence[Headline], scores: Floats, rates: Floats, shown: Floats) -> Iterator[tuple[float, float]]:
    for rows in rows_by_group([item.test_id for item in headlines]):
        if len(rows) > 1:
            yield pair_wins(rates[rows], scores[rows], shown[rows])
