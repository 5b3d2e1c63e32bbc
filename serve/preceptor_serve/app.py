"""The Ray Serve application: a light Edge that speaks HTTP, and Scorer replicas that hold the bundle.

Two deployments, so that a request refused for its form or for load never waits behind arithmetic and always gets the
API's own error body, and so that scorers scale and take GPUs alone. `build` is what serve.yaml names; `run_app` is
what `preceptor serve` calls.

Serve finds the builder's argument type by its annotation at run time: this module must not postpone annotations.
"""

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from preceptor.errors import InputError, StageFailed
from preceptor_serve.api import make_api
from preceptor_serve.engine.cores import claim_cores
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.keys import Guard, KeyRing, read_keys, require_guarded
from preceptor_serve.schema import Limits
from preceptor_serve.scorer import (
    Answer,
    AsyncScorer,
    Identity,
    Load,
    Overloaded,
    TimedOut,
    Unavailable,
    load_serving,
    without_texts,
)
from preceptor_serve.served_log import LogOptions

APP_NAME = "preceptor"
IDENTITY_MAX_AGE_S = 10.0
HEALTH_TIMEOUT_S = 5.0

T = TypeVar("T")


class AppArgs(BaseModel):
    """The application's arguments, from serve.yaml or `preceptor serve`.

    `num_cpus` is also how many threads a replica's engine has, where `engine` does not say; which cores they get is not
    for `engine` to say. With `keys_file` only holders of its keys are answered; every node that runs an Edge must see
    it at this path. With `log` each Edge writes a served log.

    The replica options are defaults: an entry under `deployments` in serve.yaml overrides them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str
    keys_file: str | None = None
    limits: Limits = Field(default_factory=Limits)
    engine: EngineOptions = Field(default_factory=EngineOptions)
    log: LogOptions | None = None
    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt = 2
    target_ongoing_requests: PositiveFloat = 2.0
    max_ongoing_requests: PositiveInt = 8
    max_queued_requests: PositiveInt = 32
    timeout_s: PositiveFloat = 60.0
    num_cpus: PositiveFloat = 1.0
    num_gpus: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas must not exceed max_replicas, got {self.min_replicas} > {self.max_replicas}"
            )
        if self.target_ongoing_requests > self.max_ongoing_requests:
            # A replica never holds more than the maximum, so a higher target would never be reached and never scale.
            raise ValueError(
                "target_ongoing_requests must not exceed max_ongoing_requests, "
                f"got {self.target_ongoing_requests:g} > {self.max_ongoing_requests}"
            )
        return self


class ScorerReplica:
    """One replica: a probed bundle in an engine, which has the CPUs, or the GPU, that Ray gave the replica."""

    def __init__(self, bundle: str, options: EngineOptions) -> None:
        given = given_resources()
        threads = options.threads or max(1, int(given.get("CPU", 1)))
        num_gpus = given.get("GPU", 0)
        # A replica that computes on a GPU leaves the cores to those that do not.
        options = replace(options, threads=threads, cores=() if num_gpus else claim_cores(threads))
        self._scorer = load_serving(Path(bundle), options, num_gpus=num_gpus)

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer:
        with without_texts():
            return await self._scorer.score(query, profile, documents)

    async def identity(self) -> Identity:
        return await self._scorer.identity()

    async def load(self) -> Load:
        """What waits in this replica's engine."""
        return await self._scorer.load()

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica where this raises."""
        self._scorer.check_health()


def given_resources() -> dict[str, float]:
    """What Ray gave this replica, by name: CPU, GPU."""
    given: dict[str, float] = ray.get_runtime_context().get_assigned_resources()
    return given


class RemoteScorer:
    """An AsyncScorer whose work is done by the replicas behind `handle`."""

    def __init__(self, handle: DeploymentHandle, *, timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s
        self._seen: Identity | None = None
        self._seen_s = 0.0

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer:
        answer: Answer = await _reached(self._handle.score.remote(query, profile, documents), self._timeout_s)
        self._see(answer.identity)
        return answer

    async def identity(self) -> Identity:
        """Who answered last, asked again if that was over 10 s ago: under load, health does not join the queue."""
        if self._seen is None or time.monotonic() - self._seen_s > IDENTITY_MAX_AGE_S:
            try:
                self._see(await _reached(self._handle.identity.remote(), HEALTH_TIMEOUT_S))
            except TimedOut as error:
                raise Unavailable("no replica says who it is") from error
        assert self._seen is not None
        return self._seen

    def _see(self, identity: Identity) -> None:
        self._seen, self._seen_s = identity, time.monotonic()


async def _reached(response: Awaitable[T], timeout_s: float) -> T:
    """What `response` resolves to; Overloaded, Unavailable or TimedOut in place of Serve's own errors."""
    try:
        async with asyncio.timeout(timeout_s):
            return await response
    except TimeoutError as error:
        raise TimedOut(f"no answer within {timeout_s:g} s") from error
    except BackPressureError as error:
        raise Overloaded("every replica's queue is full") from error
    except (DeploymentUnavailableError, RayActorError) as error:
        raise Unavailable("no replica answers") from error


class Edge:
    """The HTTP API in front of the scorers."""

    def __init__(
        self,
        scorer: DeploymentHandle,
        limits: Limits,
        timeout_s: float,
        keys_file: str | None,
        log: LogOptions | None = None,
    ) -> None:
        self._scorer: AsyncScorer = RemoteScorer(scorer, timeout_s=timeout_s)
        self._limits = limits
        self._keys_file = keys_file
        self._log = log

    def __serve_build_asgi_app__(self) -> FastAPI:
        context = serve.get_replica_context()
        # Serve spreads requests evenly over the edges, so each holds its share of a key's limits.
        share = 1 / (context.world_size or 1)
        keys = None if self._keys_file is None else KeyRing(Path(self._keys_file), share=share)
        replica = context.replica_id.unique_id
        return make_api(self._scorer, limits=self._limits, keys=keys, log=self._log, replica=replica)


# The Edge takes far more requests than scorers do: past its bound Serve refuses with its own body, and within it the
# Edge refuses with the API's. 256 bodies of 2 MiB bound its memory at half a GiB.
EDGE: serve.Deployment = serve.deployment(
    name="Edge",
    ray_actor_options={"num_cpus": 0.1},
    max_ongoing_requests=256,
    max_queued_requests=256,
    backpressure_config={"status_code": 429, "retry_after_s": 1},
)(serve.ingress()(Edge))

# A bundle that cannot be loaded will not load the twentieth time either (Serve's default).
SCORER: serve.Deployment = serve.deployment(name="Scorer", max_constructor_retry_count=2)(ScorerReplica)


def build(args: AppArgs) -> serve.Application:
    """The application of `args`, undeployed. Named by serve.yaml as ``preceptor_serve.app:build``."""
    scorers = SCORER.options(
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_queued_requests,
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": args.target_ongoing_requests,
        },
    )
    return EDGE.bind(scorers.bind(args.bundle, args.engine), args.limits, args.timeout_s, args.keys_file, args.log)


def run_app(
    bundle: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: Path | None = None,
    guard: Guard = "keys",
    engine: EngineOptions | None = None,
    log: LogOptions | None = None,
    block: bool = True,
) -> str:
    """The URL at which `bundle` answers. Ray must be running: the caller owns the cluster.

    One replica has all of this machine's cores, unless `engine` says how many: a request is answered sooner by two
    threads than by one of two replicas, and the weights are there once.

    Returns once /readyz answers 200, or, with `block`, after Ctrl-C, having shut Serve down. InputError where the
    bundle, the port or the file of `keys` cannot be used, or where `host` lets others in and nothing asks who they are;
    StageFailed where the application does not come up.
    """
    if not ray.is_initialized():
        raise StageFailed("Ray is not running in this process. Call ray.init first.")
    require_guarded(host, keys=keys, guard=guard)
    keys_file = None if keys is None else str(_some_keys(keys))
    options = engine or EngineOptions()
    options = replace(options, threads=options.threads or num_cores())
    # Loaded here first: a bundle at fault ends as one line, and not as the traceback of a replica that Serve retries.
    load_serving(bundle, options).close()
    _require_free(host, port)
    logging_config = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port}, logging_config=logging_config)
    try:
        # One CPU of Ray's count stays for the Edge; which cores there are is the engine's to use all the same.
        num_cpus = max(1.0, min(options.threads, ray.cluster_resources().get("CPU", 1.0) - 1))
        args = AppArgs(
            bundle=str(bundle.resolve()),
            keys_file=keys_file,
            engine=options,
            log=log,
            max_replicas=1,
            num_cpus=num_cpus,
        )
        application = build(args)
        serve.run(application, name=APP_NAME, route_prefix="/", logging_config=logging_config)
    except RuntimeError as error:
        serve.shutdown()
        raise StageFailed(f"{bundle}: the application did not start; the replica's log above says why.") from error
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    _wait_ready(url, deadline_s=60.0)
    if block:
        print(f"serving {bundle} at {url}\ntry: {_example(url, keys_file)}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        serve.shutdown()
    return url


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _some_keys(file: Path) -> Path:
    """`file`, resolved; InputError where it holds no key, since nobody could ask anything then."""
    if not read_keys(file):
        raise InputError(f"{file}: no key. Make one with: preceptor keys add NAME --file {file}")
    return file.resolve()


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"{host}:{port} cannot be bound ({error.strerror}). Choose another --port.") from error


def _wait_ready(url: str, *, deadline_s: float) -> None:
    """Nothing, once ``url/readyz`` is 200; StageFailed after `deadline_s`."""
    end_s = time.monotonic() + deadline_s
    # The loopback is asked directly: a proxy from the environment could not reach it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < end_s:
        with contextlib.suppress(urllib.error.URLError, OSError), opener.open(f"{url}/readyz", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise StageFailed(f"{url}/readyz: not 200 within {deadline_s:g} s. Look at the Serve logs.")


def _example(url: str, keys_file: str | None) -> str:
    key = "" if keys_file is None else "-H 'Authorization: Bearer KEY' "
    body: dict[str, Any] = {"query": "night nurse", "profile": "Registered nurse, Leeds.", "documents": ["Staff Nurse"]}
    return f"curl -s {url}/v1/score {key}-H 'Content-Type: application/json' -d '{json.dumps(body)}'"
