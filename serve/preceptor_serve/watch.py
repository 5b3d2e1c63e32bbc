"""What every request passes before its route: a name, a count, and, where there are keys, the check of its key."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Final

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preceptor_serve.keys import KeyRing
from preceptor_serve.metrics import Metrics
from preceptor_serve.refusals import error_response, internal, log_defect
from preceptor_serve.schema import REQUEST_ID_PATTERN, Refusal

OPEN_PATHS: Final = ("/healthz", "/readyz", "/openapi.json")
"""Answered without a key: probes have none, and the description is the same for all."""


class Watch:
    """ASGI middleware: names each request, counts and times it, and turns a defect into a 500 with the stable body."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = self._clock()
        scope["state"] = {**scope.get("state", {}), "request_id": _named(scope), "started_s": started_s}
        status = 499  # what stays where the caller left before an answer began

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = scope["state"]["request_id"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        except ClientDisconnect:
            pass
        except Exception as error:
            log_defect(error, scope["state"]["request_id"])
            if status != 499:
                raise
            response = error_response(Request(scope), internal(), self._metrics)
            await response(scope, receive, note)
        finally:
            self._metrics.answered(path=scope["path"], status=status, seconds=self._clock() - started_s)


class Gate:
    """ASGI middleware: lets through what brings a key of `keys` that may still ask this minute, and OPEN_PATHS."""

    def __init__(self, app: ASGIApp, *, keys: KeyRing, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            holder = self._keys.find(_bearer(scope))
            if holder is None:
                message = "A valid key is needed. Send it as 'Authorization: Bearer KEY'."
                raise Refusal(401, "unauthorized", message)
            holder.spend_request()
        except Refusal as refusal:
            await error_response(Request(scope), refusal, self._metrics)(scope, receive, send)
            return
        scope["state"]["holder"] = holder
        await self._app(scope, receive, send)


def _header(scope: Scope, name: bytes) -> str:
    return next((value for found, value in scope["headers"] if found == name), b"").decode("latin-1")


def _bearer(scope: Scope) -> str:
    kind, _, key = _header(scope, b"authorization").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def _named(scope: Scope) -> str:
    """The caller's X-Request-ID where it is well formed, or a new id."""
    given = _header(scope, b"x-request-id")
    # fullmatch: `$` would let a line break through into the answer's headers.
    return given if re.fullmatch(REQUEST_ID_PATTERN, given) else uuid.uuid4().hex
