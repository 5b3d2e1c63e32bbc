"""The HTTP edge: requests in, checked scores or a stable error body out. No Ray, no model.

Every refusal has the same body, ``{"error": {"code", "message", "field", "request_id"}}``. `code` is what a client
may branch on; `message` says the rule, the size seen and the way out, and never repeats what a member or a posting
says; `field` is the path of the offending value, such as ``documents[3].text``, where there is one.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
import uuid
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preceptor.errors import PreceptorError
from preceptor_serve.schema import (
    REQUEST_ID_PATTERN,
    DocumentResult,
    ErrorBody,
    ErrorResponse,
    Health,
    Limits,
    Refusal,
    ScoreRequest,
    ScoreResponse,
    admit,
    parse,
)
from preceptor_serve.scorer import Answer, AsyncScorer, BadScore, Overloaded, TimedOut, Unavailable, checked

logger = logging.getLogger("preceptor_serve")

ROUTES: Final = ("/v1/score", "/healthz", "/metrics", "/openapi.json")
LATENCY_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Prometheus series of one edge process. `replica` tells its series from those of its siblings."""

    def __init__(self, *, replica: str) -> None:
        self.registry = CollectorRegistry()
        self._replica = replica
        self._requests = Counter(
            "preceptor_requests_total", "Answered requests.", ("route", "status", "replica"), registry=self.registry
        )
        self._documents = Counter(
            "preceptor_documents_scored_total", "Documents scored.", ("replica",), registry=self.registry
        )
        self._seconds = Histogram(
            "preceptor_request_seconds",
            "From the request's head to the answer's last byte.",
            ("route", "replica"),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._documents.labels(replica)

    def answered(self, *, path: str, status: int, seconds: float) -> None:
        # Unknown paths share one label: a scanner must not be able to grow the series.
        route = path if path in ROUTES else "other"
        self._requests.labels(route, str(status), self._replica).inc()
        self._seconds.labels(route, self._replica).observe(seconds)

    def scored(self, num_documents: int) -> None:
        self._documents.labels(self._replica).inc(num_documents)

    def render(self) -> bytes:
        """The text exposition."""
        return generate_latest(self.registry)


class Watch:
    """ASGI middleware: names each request, counts and times it, and turns a defect into a 500 with the stable body."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["state"] = {**scope.get("state", {}), "request_id": _named(scope)}
        started_s = time.perf_counter()
        status = 499  # what stays where the caller left before an answer began

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        except ClientDisconnect:
            pass
        except Exception as error:
            _log_defect(error, scope["state"]["request_id"])
            if status != 499:
                raise
            response = _error(Request(scope), 500, "internal", "The scorer failed. Retry; if it lasts, tell its owner.")
            await response(scope, receive, note)
        finally:
            self._metrics.answered(path=scope["path"], status=status, seconds=time.perf_counter() - started_s)


def _named(scope: Scope) -> str:
    """The caller's X-Request-ID where it is well formed, or a new id."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
    return given if re.match(REQUEST_ID_PATTERN, given) else uuid.uuid4().hex


def _log_defect(error: Exception, request_id: str) -> None:
    # Frames and type only: an exception's text may quote what a member wrote.
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("request %s failed with %s\n%s", request_id, type(error).__name__, frames)


def _error(
    request: Request,
    status: int,
    code: str,
    message: str,
    *,
    field: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    body = ErrorBody(code=code, message=message, field=field, request_id=request.state.request_id)
    return JSONResponse(ErrorResponse(error=body).model_dump(), status_code=status, headers=headers)


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """The request's body; Refusal 413 as soon as it is declared, or turns out, larger than `max_bytes`."""
    refusal = Refusal(413, "body_too_large", f"A body may have {max_bytes} bytes. Send fewer or shorter documents.")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > max_bytes:
        raise refusal
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > max_bytes:
            raise refusal
        body += chunk
    return bytes(body)


def respond(request: ScoreRequest, answer: Answer, *, request_id: str) -> ScoreResponse:
    """`answer` in the API's shape; BadScore where it must not be sent."""
    scores = checked(answer.scores, num_documents=len(request.documents))
    results = [
        DocumentResult(
            index=index,
            id=name,
            score=score.score,
            expected_grade=score.expected_grade,
            grade_probs=list(score.grade_probs),
            actions=dict(score.actions),
        )
        for index, (name, score) in enumerate(zip(request.ids, scores, strict=True))
    ]
    identity = answer.identity
    return ScoreResponse(
        request_id=request_id, bundle_id=identity.bundle_id, policy_version=identity.policy_version, results=results
    )


def _handle(app: FastAPI) -> None:
    """Gives `app` the stable error body for everything it raises on purpose."""

    def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return _error(request, error.status, error.code, str(error), field=error.field)

    def misdirected(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code, message = {
            404: ("not_found", f"No such path. Known: {', '.join(ROUTES)}."),
            405: ("method_not_allowed", "This path does not take that method. See /openapi.json."),
        }.get(error.status_code, ("refused", "The request was refused."))
        return _error(request, error.status_code, code, message, headers=dict(error.headers or {}))

    def fail(request: Request, error: Exception) -> Response:
        assert isinstance(error, PreceptorError)
        if isinstance(error, Overloaded):
            headers = {"Retry-After": str(error.retry_after_s)}
            return _error(request, 429, "overloaded", "Too many requests wait already. Retry later.", headers=headers)
        if isinstance(error, Unavailable):
            return _error(request, 503, "unavailable", "No scorer is ready. Retry later.", headers={"Retry-After": "1"})
        if isinstance(error, TimedOut):
            return _error(request, 504, "timeout", "No answer in time. Send fewer documents, or retry later.")
        logger.error("request %s: bad score: %s", request.state.request_id, error)
        return _error(request, 500, "bad_score", "The bundle gave a score that cannot be trusted. Tell its owner.")

    app.add_exception_handler(Refusal, refuse)
    app.add_exception_handler(HTTPException, misdirected)
    for kind in (Overloaded, Unavailable, TimedOut, BadScore):
        app.add_exception_handler(kind, fail)


def _describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document. The request's schema is added by hand, because the route reads its own body."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    template = "#/components/schemas/{model}"
    _, schemas = models_json_schema([(ScoreRequest, "validation")], ref_template=template)
    document["components"]["schemas"] |= schemas["$defs"]
    return document


def make_api(scorer: AsyncScorer, *, limits: Limits | None = None, replica: str = "local") -> FastAPI:
    """The HTTP API in front of `scorer`: POST /v1/score, GET /healthz, GET /metrics, GET /openapi.json."""
    bounds = limits or Limits()
    metrics = Metrics(replica=replica)
    app = FastAPI(title="Preceptor", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(Watch, metrics=metrics)
    _handle(app)
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse} for status in (400, 413, 415, 422, 429, 500, 503, 504)
    }
    body = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ScoreRequest"}}},
    }

    @app.post("/v1/score", responses=errors, openapi_extra={"requestBody": body})
    async def score(request: Request) -> ScoreResponse:
        """Scores the documents of one request."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "unsupported_media_type", "Send the body as Content-Type: application/json.")
        wanted = parse(await read_body(request, max_bytes=bounds.max_body_bytes))
        request.state.request_id = wanted.request_id or request.state.request_id
        admit(wanted, bounds)
        response = respond(
            wanted,
            await scorer.score(wanted.query, wanted.profile, wanted.texts),
            request_id=request.state.request_id,
        )
        metrics.scored(len(response.results))
        return response

    @app.get("/healthz", responses={503: {"model": ErrorResponse}})
    async def healthz() -> Health:
        """Whether requests can be scored now."""
        identity = await scorer.identity()
        return Health(bundle_id=identity.bundle_id, policy_version=identity.policy_version)

    @app.get("/metrics", response_class=Response)
    async def render() -> Response:
        """Prometheus series of this edge process."""
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    app.openapi = lambda: _describe(app)  # type: ignore[method-assign]
    return app
