"""What benches of a finished run's students share: its held-out pairs, and how fast engines answer them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from preceptor.contracts import OVERALL
from preceptor.errors import InputError
from preceptor.golden.opener import open_holdout
from preceptor.ranker.batches import Request
from preceptor.recipe import MarketConfig, Recipe
from preceptor_serve.engine.engine import Engine
from preceptor_serve.engine.gate import RankedRequest


def sealed_by(recipe: Recipe) -> Path | None:
    """The folder that sealed the golden of `recipe`'s own runs; None where it is a source's, which has no seal."""
    return recipe.policy if isinstance(recipe.source, MarketConfig) else None


def held_out_rows(golden: Path, *, policy: Path | None, log: Path, why: str) -> list[dict[str, Any]]:
    """GOLDEN rows of the sealed holdout and the dimension 'overall', opened as `open_holdout` does.

    InputError where there are none.
    """
    table = open_holdout(golden, policy=policy, log=log, why=why)
    rows: list[dict[str, Any]] = table.filter(pc.equal(table["dimension"], OVERALL)).to_pylist()
    if not rows:
        raise InputError(f"{golden}: no held-out pair. Measure on a source that has some.")
    return rows


def documents_per_s(
    engines: Mapping[str, Engine], requests: Sequence[Request | RankedRequest], *, rounds: int
) -> dict[str, float]:
    """Documents a second of each engine, one request after the other: medians over `rounds`, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        _pass(engine, requests[:2])
    for number in range(rounds):
        for name in list(engines) if number % 2 == 0 else list(engines)[::-1]:
            started_s = time.perf_counter()
            _pass(engines[name], requests)
            seconds[name].append(time.perf_counter() - started_s)
    num_documents = sum(len(request.documents) for request in requests)
    return {name: num_documents / statistics.median(taken) for name, taken in seconds.items()}


def _pass(engine: Engine, requests: Sequence[Request | RankedRequest]) -> None:
    for request in requests:
        engine.score_afresh(request.query, request.profile, request.documents)
