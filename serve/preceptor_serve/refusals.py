"""Errors as HTTP: one body for all of them, ``{"error": {"code", "message", "field", "request_id"}}``.

`code` is what a client may branch on; `message` says the rule, the size seen and the way out, and never repeats what a
member or a posting says; `field` is the path of the offending value, such as ``documents[3].text``, where there is one.
"""

from __future__ import annotations

import logging
import traceback

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from preceptor.errors import PreceptorError
from preceptor_serve.metrics import ROUTES, Metrics
from preceptor_serve.schema import ErrorBody, ErrorResponse, Refusal
from preceptor_serve.scorer import BadScore, Overloaded, TimedOut, TooLate, Unavailable

logger = logging.getLogger("preceptor_serve")


def log_defect(error: Exception, request_id: str) -> None:
    """Nothing; where `error` came from and its type are logged, not what it says: that may quote a member."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("request %s failed with %s\n%s", request_id, type(error).__name__, frames)


def error_response(request: Request, refusal: Refusal, metrics: Metrics) -> JSONResponse:
    """`refusal` as an answer to `request`, counted."""
    metrics.refused(refusal.code)
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = ErrorBody(code=refusal.code, message=str(refusal), field=refusal.field, request_id=request.state.request_id)
    return JSONResponse(ErrorResponse(error=body).model_dump(), status_code=refusal.status, headers=headers)


def internal() -> Refusal:
    """What a caller is told of a defect."""
    return Refusal(500, "internal", "The scorer failed. Retry; if it lasts, tell its owner.")


def fault_of(error: PreceptorError) -> Refusal:
    """What a caller is told where the scorer raised `error`."""
    if isinstance(error, Overloaded):
        message = "Too many requests wait already. Retry later."
        return Refusal(429, "overloaded", message, retry_after_s=error.retry_after_s)
    if isinstance(error, Unavailable):
        return Refusal(503, "unavailable", "No scorer is ready. Retry later.", retry_after_s=1)
    if isinstance(error, TooLate):
        message = "The answer did not come by the deadline. Send fewer documents, allow more time, or retry later."
        return Refusal(504, "deadline_exceeded", message, field="deadline_ms")
    if isinstance(error, TimedOut):
        return Refusal(504, "timeout", "No answer in time. Send fewer documents, or retry later.")
    return Refusal(500, "bad_score", "The bundle gave a score that cannot be trusted. Tell its owner.")


def handle_errors(app: FastAPI, metrics: Metrics) -> None:
    """Gives `app` the stable error body for everything it raises on purpose."""

    def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return error_response(request, error, metrics)

    def misdirected(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code, message = {
            404: ("not_found", f"No such path. Known: {', '.join(ROUTES)}."),
            405: ("method_not_allowed", "This path does not take that method. See /openapi.json."),
        }.get(error.status_code, ("refused", "The request was refused."))
        response = error_response(request, Refusal(error.status_code, code, message), metrics)
        response.headers.update(error.headers or {})
        return response

    def fail(request: Request, error: Exception) -> Response:
        assert isinstance(error, PreceptorError)
        if isinstance(error, BadScore):
            logger.error("request %s: bad score: %s", request.state.request_id, error)
        return error_response(request, fault_of(error), metrics)

    app.add_exception_handler(Refusal, refuse)
    app.add_exception_handler(HTTPException, misdirected)
    for kind in (Overloaded, Unavailable, TimedOut, BadScore):
        app.add_exception_handler(kind, fail)
