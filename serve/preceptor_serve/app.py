"""The Ray Serve application: a light Edge that speaks HTTP, and Scorer replicas that hold the bundle.

Two deployments, so that a request refused for its form or for load never waits behind arithmetic and always gets the
API's own error body, and so that scorers scale and take GPUs alone. `build` is what serve.yaml names.

Serve finds the builder's argument type by its annotation at run time: this module must not postpone annotations.
"""

import asyncio
from pathlib import Path
from typing import Any, Final, Self

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from ray import serve
from ray.serve.handle import DeploymentHandle

from preceptor_serve.api import make_api
from preceptor_serve.board import read_routing
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.following import Follower
from preceptor_serve.health import CHECKS
from preceptor_serve.keys import KeyRing
from preceptor_serve.remote import RemoteScorer
from preceptor_serve.replica import ScorerReplica
from preceptor_serve.routing import Routing
from preceptor_serve.schema import Limits
from preceptor_serve.served_log import LogOptions
from preceptor_serve.splitting import SplitScorer, Table

DRAIN_MARGIN_S: Final = 10.0
"""What a replica that is let go has beyond the longest request, to end its engine or write its log."""


class AppArgs(BaseModel):
    """The application's arguments, from serve.yaml or `preceptor serve`.

    `num_cpus` is also how many threads a replica's engine has, where `engine` does not say; which cores they get is not
    for `engine` to say. With `keys_file` only holders of its keys are answered; every node that runs an Edge must see
    it at this path. With `log` each Edge writes a served log.

    Replicas are added and let go by autoscale.py: `target_wait_s` of work for each, and others busy for `max_busy` of
    the time at most when one goes. `target_ongoing_requests` for each is the aim where no replica counts tokens.

    The replica options are defaults: an entry under `deployments` in serve.yaml overrides them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str
    keys_file: str | None = None
    limits: Limits = Field(default_factory=Limits)
    engine: EngineOptions = Field(default_factory=EngineOptions)
    log: LogOptions | None = None
    num_edges: PositiveInt = 1
    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt = 2
    target_wait_s: PositiveFloat = 2.0
    max_busy: float = Field(default=0.8, gt=0, le=1)
    target_ongoing_requests: PositiveFloat = 2.0
    look_back_s: PositiveFloat = 15.0
    report_s: PositiveFloat = 5.0
    upscale_delay_s: NonNegativeFloat = 10.0
    downscale_delay_s: NonNegativeFloat = 300.0
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
        if self.report_s >= self.look_back_s:
            # A look back that holds no report would decide by nothing.
            raise ValueError(f"report_s must be below look_back_s, got {self.report_s:g} and {self.look_back_s:g}")
        return self


class Edge:
    """The HTTP API in front of the scorers; which of them answers, the application's rollout says."""

    def __init__(
        self,
        scorer: DeploymentHandle,
        limits: Limits,
        timeout_s: float,
        keys_file: str | None,
        log: LogOptions | None = None,
        args: AppArgs | None = None,
    ) -> None:
        context = serve.get_replica_context()
        self._replica = context.replica_id.unique_id
        own = RemoteScorer(scorer, timeout_s=timeout_s)
        self._scorer = SplitScorer(Table(routing=Routing(live=context.app_name), live=own), replica=self._replica)
        self._follower = Follower(
            self._scorer,
            app=context.app_name,
            own=own,
            replica=self._replica,
            find=lambda slot: RemoteScorer(serve.get_deployment_handle("Scorer", slot), timeout_s=timeout_s),
            read=read_routing,
        )
        self._follower.start()
        self._limits = limits
        self._keys_file = keys_file
        self._log = log
        self._args = args

    async def catch_up(self) -> int:
        """The revision of the rollout that this edge follows from now on. Asked by `preceptor rollout`."""
        return await asyncio.to_thread(self._follower.catch_up)

    async def arguments(self) -> AppArgs | None:
        """What the application was built with. Asked by `preceptor rollout`, to start a candidate alike."""
        return self._args

    def __del__(self) -> None:
        # Serve calls this when the last request has been answered.
        self._follower.end()

    def __serve_build_asgi_app__(self) -> FastAPI:
        context = serve.get_replica_context()
        # Serve spreads requests evenly over the edges, so each holds its share of a key's limits.
        share = 1 / (context.world_size or 1)
        keys = None if self._keys_file is None else KeyRing(Path(self._keys_file), share=share)
        return make_api(self._scorer, limits=self._limits, keys=keys, log=self._log, replica=self._replica)


# The Edge takes far more requests than scorers do: past its bound Serve refuses with its own body, and within it the
# Edge refuses with the API's. 256 bodies of 2 MiB bound its memory at half a GiB.
EDGE: serve.Deployment = serve.deployment(
    name="Edge",
    ray_actor_options={"num_cpus": 0.1},
    max_ongoing_requests=256,
    max_queued_requests=256,
    max_surge_percent=100,
    backpressure_config={"status_code": 429, "retry_after_s": 1},
    **CHECKS,
)(serve.ingress()(Edge))

# A bundle that cannot be loaded will not load the twentieth time either (Serve's default). An update starts the new
# replica first, and ends the old one when that has passed its probe: Serve's default is the other way round.
SCORER: serve.Deployment = serve.deployment(name="Scorer", max_constructor_retry_count=2, max_surge_percent=100)(
    ScorerReplica
)


def autoscaling_of(args: AppArgs) -> dict[str, Any]:
    """Serve's autoscaling_config for the scorers of `args`."""
    return {
        "min_replicas": args.min_replicas,
        "max_replicas": args.max_replicas,
        "target_ongoing_requests": args.target_ongoing_requests,
        "look_back_period_s": args.look_back_s,
        "metrics_interval_s": args.report_s,
        "upscale_delay_s": args.upscale_delay_s,
        "downscale_delay_s": args.downscale_delay_s,
        "policy": {
            "policy_function": "preceptor_serve.autoscale:QueuedTokens",
            "policy_kwargs": {"target_wait_s": args.target_wait_s, "max_busy": args.max_busy},
        },
    }


def build(args: AppArgs) -> serve.Application:
    """The application of `args`, undeployed. Named by serve.yaml as ``preceptor_serve.app:build``."""
    edges = EDGE.options(num_replicas=args.num_edges, graceful_shutdown_timeout_s=args.timeout_s + DRAIN_MARGIN_S)
    return edges.bind(build_scorers(args), args.limits, args.timeout_s, args.keys_file, args.log, args)


def build_scorers(args: AppArgs) -> serve.Application:
    """The scorers of `args` alone, undeployed: what a candidate is. ``preceptor_serve.app:build_scorers``."""
    return scorers_of(args).bind(args.bundle, args.engine)


def scorers_of(args: AppArgs) -> serve.Deployment:
    """The deployment of the scorers of `args`."""
    return SCORER.options(
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_queued_requests,
        graceful_shutdown_timeout_s=args.timeout_s + DRAIN_MARGIN_S,
        **CHECKS,
        autoscaling_config=autoscaling_of(args),
    )
