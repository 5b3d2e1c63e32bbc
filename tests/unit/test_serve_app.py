"""The Ray Serve application around the edge, without a Ray."""

from __future__ import annotations

import asyncio
import importlib
import traceback
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from pydantic import ValidationError

from preceptor.bundle import DocumentScore
from preceptor.errors import PreceptorError
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.keys import require_guarded
from preceptor_serve.schema import Limits
from preceptor_serve.scorer import Answer, AsyncScorer, Broken, Identity, Overloaded, TimedOut, Unavailable
from preceptor_serve.served_log import LogOptions
from tests.unit.serving import GOOD, SECRET

REPOSITORY = Path(__file__).resolve().parents[2]
SERVE_YAML, GPU_YAML = (REPOSITORY / "serve" / name for name in ("serve.yaml", "serve-gpu.yaml"))

# The application around it


def test_serve_yaml_is_valid_and_fits_the_application():
    from ray.serve.schema import ServeDeploySchema

    from preceptor_serve.app import AppArgs, autoscaling_of, build

    config = ServeDeploySchema.model_validate(yaml.safe_load(SERVE_YAML.read_text()))
    (application,) = config.applications
    require_guarded(config.http_options.host, keys=application.args["keys_file"], guard="keys")
    assert config.logging_config is not None and not config.logging_config.enable_access_log
    module, _, name = application.import_path.partition(":")
    assert getattr(importlib.import_module(module), name) is build
    args = AppArgs.model_validate(application.args)
    assert args.limits == Limits()
    assert args.engine == EngineOptions()
    build(args)
    scorer = next(deployment for deployment in application.deployments if deployment.name == "Scorer")
    assert {deployment.name for deployment in application.deployments} == {"Edge", "Scorer"}
    assert isinstance(scorer.autoscaling_config, dict)
    assert scorer.autoscaling_config == autoscaling_of(args)
    assert scorer.max_queued_requests >= 0
    assert all(found.graceful_shutdown_timeout_s > args.timeout_s for found in application.deployments)


def test_the_gpu_settings_fit_the_application_and_the_cluster():
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    from preceptor_serve.app import AppArgs, build

    config = ServeDeploySchema.model_validate(yaml.safe_load(GPU_YAML.read_text()))
    (application,) = config.applications
    require_guarded(config.http_options.host, keys=application.args["keys_file"], guard="keys")
    args = AppArgs.model_validate(application.args)
    assert args.engine.precision != "int8", "the GPU's engine has none"
    build(args)
    edge: Any
    scorer: Any
    edge, scorer = application.deployments
    assert (edge.name, scorer.name) == ("Edge", "Scorer")
    assert all(found.graceful_shutdown_timeout_s > args.timeout_s for found in (edge, scorer))
    scaling: Any = AutoscalingConfig(**scorer.autoscaling_config)
    assert scaling.policy.policy_function == "preceptor_serve.autoscale:QueuedTokens"
    assert scaling.target_ongoing_requests <= scorer.max_ongoing_requests
    cluster = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())["available_node_types"]["gpu-serve"]
    for found in (edge, scorer):
        assert found.ray_actor_options.label_selector == cluster["labels"]
    wanted = scorer.ray_actor_options
    assert scaling.max_replicas * wanted.num_gpus == cluster["max_workers"] * cluster["resources"]["GPU"]
    a_node = wanted.num_cpus + edge.max_replicas_per_node * edge.ray_actor_options.num_cpus
    assert a_node <= cluster["resources"]["CPU"], "a replica and an Edge fit one node"
    assert edge.num_replicas <= scaling.min_replicas


def test_an_update_starts_new_replicas_before_it_ends_old_ones():
    from preceptor_serve.app import EDGE, AppArgs, scorers_of

    (application,) = yaml.safe_load(SERVE_YAML.read_text())["applications"]
    declared = {entry["name"]: entry["max_surge_percent"] for entry in application["deployments"]}
    assert declared == {"Edge": 100, "Scorer": 100}
    scorers = scorers_of(AppArgs(bundle="b", num_cpus=3, min_replicas=2))
    assert EDGE._deployment_config.max_surge_percent == scorers._deployment_config.max_surge_percent == 100
    assert scorers.name == "Scorer" and (scorers.ray_actor_options or {})["num_cpus"] == 3


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"bundle": "b", "max_replica": 3},
        {"bundle": "b", "limits": {"max_document": 3}},
        {"bundle": "b", "limits": {"max_documents": 0}},
        {"bundle": "b", "engine": {"precision": "int4"}},
        {"bundle": "b", "engine": {"thread": 2}},
        {"bundle": "b", "limits": {"blend": {"click": [0.5, 0.2]}}},
        {"bundle": "b", "limits": {"blend": {"save": [0, 1]}}},
        {"bundle": "b", "keys": "f"},
        {"bundle": "b", "min_replicas": 3, "max_replicas": 2},
        {"bundle": "b", "target_ongoing_requests": 9, "max_ongoing_requests": 8},
        {"bundle": "b", "max_busy": 1.5},
        {"bundle": "b", "limits": {"max_wait_s": 0}},
        {"bundle": "b", "limits": {"depth": {"over_wait_s": 2}}},
        {"bundle": "b", "limits": {"depth": {"over_wait_s": 2, "least_documents": 50, "least": 1}}},
        {"bundle": "b", "look_back_s": 5, "report_s": 5},
    ],
)
def test_arguments_that_cannot_work_are_refused(args):
    from preceptor_serve.app import AppArgs

    with pytest.raises(ValueError):
        AppArgs.model_validate(args)


def test_a_defect_in_a_replica_says_nothing_of_what_was_scored(monkeypatch: pytest.MonkeyPatch):
    from preceptor_serve.replica import ScorerReplica

    def submit(query: str, profile: str, documents: Sequence[str]) -> Future[tuple[DocumentScore, ...]]:
        failed: Future[tuple[DocumentScore, ...]] = Future()
        failed.set_exception(ValueError(f"cannot tokenize {query}"))
        return failed

    engine = SimpleNamespace(bundle_id="b", policy_version="v", submit=submit)
    monkeypatch.setattr("preceptor_serve.scorer.load_batching", lambda path, options, num_gpus: engine)
    monkeypatch.setattr("preceptor_serve.replica.given_resources", dict)
    with pytest.raises(Broken) as caught:
        asyncio.run(ScorerReplica("bundle", EngineOptions()).score(SECRET, SECRET, [SECRET]))
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@dataclass
class FakeHandle:
    """A deployment handle whose every method answers `outcome`, or raises it."""

    outcome: object
    num_calls: int = 0

    def options(self, **how: object) -> FakeHandle:
        return self

    @property
    def score(self) -> FakeHandle:
        return self

    @property
    def identity(self) -> FakeHandle:
        return self

    def remote(self, *texts: object) -> Coroutine[Any, Any, object]:
        self.num_calls += 1
        return self._resolve()

    async def _resolve(self) -> object:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome is None:
            await asyncio.Event().wait()
        return self.outcome


def remote_scorer(handle: FakeHandle) -> AsyncScorer:
    from ray.serve.handle import DeploymentHandle

    from preceptor_serve.remote import RemoteScorer

    return RemoteScorer(cast(DeploymentHandle, handle), timeout_s=0.01)


def test_serves_own_errors_become_the_apis():
    from grpc import StatusCode
    from grpc.aio import AioRpcError, Metadata
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError

    outcomes: list[tuple[object, type[PreceptorError]]] = [
        (BackPressureError(9, 9), Overloaded),
        (RayActorError(), Unavailable),
        (AioRpcError(StatusCode.INTERNAL, Metadata(), Metadata()), Unavailable),
        (None, TimedOut),
    ]
    for outcome, kind in outcomes:
        with pytest.raises(kind):
            asyncio.run(remote_scorer(FakeHandle(outcome)).score("q", "p", ["d"]))


def test_health_under_load_is_the_last_answers_and_asks_no_one():
    async def run() -> None:
        handle = FakeHandle(Answer(identity=Identity(bundle_id="b1", policy_version="v1"), scores=(GOOD,)))
        scorer = remote_scorer(handle)
        await scorer.score("q", "p", ["d"])
        assert (await scorer.identity()).bundle_id == "b1"
        assert handle.num_calls == 1

    asyncio.run(run())


def test_the_served_log_is_off_unless_the_arguments_name_it() -> None:
    from preceptor_serve.app import AppArgs

    assert AppArgs(bundle="b").log is None
    named = AppArgs.model_validate({"bundle": "b", "log": {"folder": "log", "rate": 0.1}})
    assert named.log == LogOptions(folder=Path("log"), rate=0.1) and named.log.texts is None
    for wrong in ({"folder": "log"}, {"folder": "log", "rate": 2}, {"folder": "log", "rate": 1, "text": "t"}):
        with pytest.raises(ValidationError):
            AppArgs.model_validate({"bundle": "b", "log": wrong})
