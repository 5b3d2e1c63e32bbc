"""Several scorers of one bundle side by side, as `preceptor serve --replicas` starts them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from preceptor.running import free_port
from preceptor_serve.engine.options import EngineOptions
from tests.e2e.asking import ask, steady_load

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_both_replicas_answer_and_say_the_same(local_ray: object, random_bundle: Path) -> None:
    from ray import serve

    from preceptor_serve.start import run_app

    # Without caches: an answer comes from a replica's own weights.
    engine = EngineOptions(threads=1, score_cache_mib=0, prefix_cache_mib=0)
    url = run_app(random_bundle, port=free_port(), engine=engine, replicas=2, block=False)
    try:
        (application,) = serve.status().applications.values()
        assert application.deployments["Scorer"].replica_states == {"RUNNING": 2}
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            with steady_load(client.base_url) as load:
                answers = [ask(client).json()["results"] for _ in range(30)]
            metrics = client.get("/metrics").text
        assert load.failures == []
        assert all(answer == answers[0] for answer in answers)
        counted = [line for line in metrics.splitlines() if line.startswith("preceptor_engine_documents_total{")]
        assert len(counted) == 2 and all(float(line.rpartition(" ")[2]) > 0 for line in counted), counted
    finally:
        serve.shutdown()
