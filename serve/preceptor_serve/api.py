"""The HTTP edge: requests in, checked scores or a stable error body out. No Ray, no model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import TypeAdapter

from preceptor_serve.answering import Desk, read_body, to_answer, weights_of
from preceptor_serve.blending import OutOfBounds
from preceptor_serve.keys import KeyRing
from preceptor_serve.metrics import Metrics
from preceptor_serve.openapi import answers, describe, request_of
from preceptor_serve.pace import Pace
from preceptor_serve.reading import ask_of, asks_of, blend_refused, deadline_of, parse
from preceptor_serve.refusals import handle_errors
from preceptor_serve.rerank import RERANK_BODY, RerankRequest, RerankResponse, ranked
from preceptor_serve.schema import (
    SCORE_BODY,
    BatchRequest,
    BatchResponse,
    Limits,
    Live,
    Model,
    Models,
    NamedModel,
    Ready,
    Refusal,
    ScoreRequest,
    ScoreResponse,
)
from preceptor_serve.scorer import AsyncScorer
from preceptor_serve.served_log import LogOptions, Part, ServedLog
from preceptor_serve.splitting import SplitScorer, identities_of
from preceptor_serve.watch import Gate, Watch

T = TypeVar("T", ScoreRequest | BatchRequest, RerankRequest)

SCORING_ERRORS: Final = (400, 401, 408, 413, 415, 422, 429, 500, 503, 504)


def make_api(
    scorer: AsyncScorer,
    *,
    limits: Limits | None = None,
    keys: KeyRing | None = None,
    log: LogOptions | None = None,
    replica: str = "local",
    clock: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """The HTTP API in front of `scorer`; where there are `keys`, for their holders only. `clock` counts seconds.

    With `log` it keeps a served log, which is written to its end when the server shuts the application down.
    """
    metrics = Metrics(replica=replica, clock=clock)
    if isinstance(scorer, SplitScorer):
        metrics.registry.register(scorer.series)
    served = None if log is None else ServedLog(log, metrics=metrics, replica=replica)
    desk = Desk(scorer=scorer, limits=limits or Limits(), metrics=metrics, pace=Pace(clock), clock=clock, log=served)
    app = FastAPI(
        title="Preceptor",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=None if served is None else served.lifespan,
    )
    if keys is not None:
        app.add_middleware(Gate, keys=keys, metrics=metrics)
    app.add_middleware(Watch, metrics=metrics, clock=clock)
    handle_errors(app, metrics)
    _add_score(app, desk)
    for version in ("1", "2"):
        _add_rerank(app, desk, version=version)
    _add_standing(app, desk)
    app.openapi = lambda: describe(app, keys=keys)  # type: ignore[method-assign]
    return app


def _add_score(app: FastAPI, desk: Desk) -> None:
    @app.post("/v1/score", responses=answers(*SCORING_ERRORS), openapi_extra=request_of(ScoreRequest, BatchRequest))
    async def score(request: Request) -> ScoreResponse | BatchResponse:
        """Scores the documents of one query, or of several at once."""
        wanted = await _read(request, desk, SCORE_BODY)
        asks = asks_of(wanted, desk.limits)
        deadline_s = deadline_of(wanted.deadline_ms, request.headers.get("x-deadline-ms"))
        given = await desk.answer(request, asks, deadline_s=deadline_s)
        request_id = request.state.request_id
        if isinstance(wanted, ScoreRequest):
            answer = to_answer(asks[0], wanted.ids, given[0], inside="")
            desk.keep(request_id, [Part(ask=asks[0], names=wanted.ids, answer=given[0])])
            return ScoreResponse(request_id=request_id, **dict(answer))
        parts = [
            to_answer(ask, item.ids, answer, inside=f"requests[{index}].")
            for index, (ask, item, answer) in enumerate(zip(asks, wanted.items, given, strict=True))
        ]
        kept = zip(asks, wanted.items, given, strict=True)
        desk.keep(request_id, (Part(ask=ask, names=item.ids, answer=answer) for ask, item, answer in kept))
        return BatchResponse(request_id=request_id, answers=parts)


def _add_rerank(app: FastAPI, desk: Desk, *, version: str) -> None:
    @app.post(
        f"/v{version}/rerank",
        name=f"rerank_v{version}",
        responses=answers(*SCORING_ERRORS),
        openapi_extra=request_of(RerankRequest),
        response_model_exclude_none=True,
    )
    async def rerank(request: Request) -> RerankResponse:
        """Orders documents for a query, in the shape of Cohere's and Jina's APIs."""
        wanted = await _read(request, desk, RERANK_BODY)
        ask = ask_of(wanted, desk.limits)
        deadline_s = deadline_of(wanted.deadline_ms, request.headers.get("x-deadline-ms"))
        (answer,) = await desk.answer(request, [ask], deadline_s=deadline_s)
        request_id = request.state.request_id
        try:
            response = ranked(wanted, answer, blend=ask.blend, request_id=request_id, version=version)
        except OutOfBounds as error:
            raise blend_refused(error, inside="") from None
        desk.keep(request_id, [Part(ask=ask, names=wanted.ids, answer=answer, top_n=wanted.top_n)])
        return response


def _add_standing(app: FastAPI, desk: Desk) -> None:
    """The routes that say how the scorer stands and score nothing."""

    @app.get("/v1/models", responses=answers(401, 429, 500, 503, 504))
    async def models() -> Models:
        """The bundle that is served, and a candidate that answers too, in the shapes of OpenAI's and Cohere's lists."""
        found = await identities_of(desk.scorer)
        data = [
            Model(id=one.bundle_id, policy_version=one.policy_version, blend=weights_of(one.blend)) for one in found
        ]
        names = [NamedModel(name=one.bundle_id, endpoints=["rerank", "score"]) for one in found]
        return Models(data=data, models=names)

    @app.get("/healthz", responses=answers(500))
    async def healthz() -> Live:
        """Whether this process answers. Asks no scorer: a restart of the edge mends none."""
        return Live()

    @app.get("/readyz", responses=answers(429, 500, 503, 504))
    async def readyz() -> Ready:
        """Whether requests can be scored now, and by which bundle."""
        found = await desk.scorer.identity()
        return Ready(bundle_id=found.bundle_id, policy_version=found.policy_version)

    @app.get(
        "/metrics",
        response_class=Response,
        responses=answers(401, 429, 500) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def render() -> Response:
        """Prometheus series of this edge process."""
        return Response(desk.metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def _read(request: Request, desk: Desk, wanted: TypeAdapter[T]) -> T:
    """The body of `request` as what is `wanted`; its request id becomes the request's."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "unsupported_media_type", "Send the body as Content-Type: application/json.")
    found: Any = parse(await read_body(request, limits=desk.limits), wanted)
    request.state.request_id = found.request_id or request.state.request_id
    read: T = found
    return read
