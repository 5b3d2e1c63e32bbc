"""One Scorer replica of the Ray Serve application: a probed bundle in an engine on the resources that Ray gave it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ray

from preceptor_serve.engine.cores import claim_cores
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.meter import Meter
from preceptor_serve.scorer import Answer, BatchingScorer, Identity, Load, load_serving, without_texts


class ScorerReplica:
    """One replica: a probed bundle in an engine, which has the CPUs, or the GPU, that Ray gave the replica."""

    def __init__(self, bundle: str, options: EngineOptions) -> None:
        given = given_resources()
        threads = options.threads or max(1, int(given.get("CPU", 1)))
        num_gpus = given.get("GPU", 0)
        # A replica that computes on a GPU leaves the cores to those that do not.
        options = replace(options, threads=threads, cores=() if num_gpus else claim_cores(threads))
        self._scorer = load_serving(Path(bundle), options, num_gpus=num_gpus)
        self._meter: Meter | None = None

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer:
        if self._meter is not None:
            self._meter.asked()
        with without_texts():
            return await self._scorer.score(query, profile, documents)

    async def identity(self) -> Identity:
        return await self._scorer.identity()

    async def load(self) -> Load:
        """What waits in this replica's engine."""
        return await self._scorer.load()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve every few seconds: what autoscale.py decides by. Nothing where no engine counts tokens."""
        if not isinstance(self._scorer, BatchingScorer):
            return {}
        standing, now_s = self._scorer.standing(), time.monotonic()
        if self._meter is None:
            # From here on: the tokens of the probe were nobody's traffic.
            self._meter = Meter(standing.counts, now_s=now_s)
        return self._meter.read(standing.counts, queued_tokens=standing.load.num_tokens, now_s=now_s)

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica where this raises."""
        self._scorer.check_health()

    def __del__(self) -> None:
        """Called by Serve once what this replica had is answered: ends the engine and gives back its memory."""
        # Where loading failed there is none; an interpreter that ends may have taken its parts already.
        with contextlib.suppress(AttributeError, RuntimeError):
            scorer = self._scorer
            del self._scorer
            scorer.close()


def given_resources() -> dict[str, float]:
    """What Ray gave this replica, by name: CPU, GPU."""
    given: dict[str, float] = ray.get_runtime_context().get_assigned_resources()
    return given
