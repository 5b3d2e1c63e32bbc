"""Who may talk to the workbench: this machine's own page, and nothing that another site's page sends or reads."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER: Final = "x-preceptor"
"""A request that changes something carries it; no form and no other site's page can set it without being asked."""

MAX_BODY: Final = 64 * 1024

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_SECURE: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware that answers foreign requests with 403 and gives every answer its protective headers.

    The Host header must name a loopback address or `host`: a name that an attacker points at this machine is neither.
    A request that changes something must come from this very origin and carry `HEADER`.
    """

    def __init__(self, app: ASGIApp, *, host: str) -> None:
        self._app = app
        self._names = _LOOPBACK | {host.strip("[]").lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SECURE)
            await send(message)

        refused = self._refusal(scope["method"], Headers(scope=scope))
        if refused is None:
            await self._app(scope, receive, secured)
            return
        status, message = refused
        answer = JSONResponse({"error": {"code": "refused", "message": message}}, status_code=status)
        await answer(scope, receive, secured)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if _name_of(host) not in self._names:
            return 403, "The Host header names another machine. Open the address that the command printed."
        if method in ("GET", "HEAD"):
            return None
        if headers.get(HEADER) is None or headers.get("origin") != f"http://{host}":
            return 403, f"A change needs the header {HEADER} and this page's own origin. Use the page itself."
        if headers.get("content-type", "").split(";")[0] != "application/json":
            return 415, "A change is sent as application/json."
        length = headers.get("content-length", "")
        if not length.isdigit() or int(length) > MAX_BODY:
            return 413, f"A change may have {MAX_BODY} bytes and must say how many it has."
        return None


def _name_of(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
