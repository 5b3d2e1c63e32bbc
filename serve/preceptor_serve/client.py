"""The Python client: `Client`, and `AsyncClient` with the same methods to await.

    with Client("http://127.0.0.1:8000", api_key=key) as client:
        best = client.score("night nurse", profile, documents).ranked[0]

A call is tried a second time, and no third, since scoring changes nothing: where the scorer says when (429 or 503 with
Retry-After), after that time; where it failed, or the connection broke, shortly after. A connection that is refused is
no try, for nothing was sent: it is sought again until there is one. A call waits for at most `max_wait_s` in all, and
never past its deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import httpx

from preceptor_serve.client_types import (
    ApiError,
    Document,
    NoAnswer,
    Query,
    Ranked,
    Ranking,
    RerankOptions,
    Scored,
    Scores,
    ServedBundle,
    Unscored,
    Weights,
    read_bundle,
    read_ranking,
    read_scores,
)

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "Document",
    "NoAnswer",
    "Query",
    "Ranked",
    "Ranking",
    "RerankOptions",
    "Scored",
    "Scores",
    "ServedBundle",
    "Unscored",
    "Weights",
]

DEFAULT_URL: Final = "http://127.0.0.1:8000"
PLAIN: Final = RerankOptions()
_AGAIN_AFTER_S: Final = 0.2
"""After a broken connection or a failure: what replaces a killed process answers no sooner."""
_KNOCK_AT_MOST_S: Final = 1.0
"""Between two looks whether a port that refused is answered again; the first comes after _AGAIN_AFTER_S, then half as
long again each time."""
_GRACE_S: Final = 0.5
"""Beyond the deadline, for the scorer's own word that it has passed."""
MAX_WAIT_S: Final = 10.0
"""Chosen, not measured: Serve sees a dead proxy after three checks, 1 s apart under
`preceptor serve`, and starts another."""


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One request, and the seconds its answer may take, tries and waits together."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    deadline_s: float | None = None

    def request(self, left_s: float | None, *, timeout_s: float) -> dict[str, Any]:
        """What httpx is given for a try with `left_s` of the deadline left."""
        given: dict[str, Any] = {"method": self.method, "url": self.path, "json": self.body}
        if left_s is None:
            return given
        # A process that hangs refuses nothing: it must not be waited for much beyond the deadline.
        given["timeout"] = min(timeout_s, max(0.0, left_s) + _GRACE_S)
        return (
            given if self.body is None else given | {"json": {**self.body, "deadline_ms": max(1, int(left_s * 1000))}}
        )


Reply = httpx.Response | httpx.TransportError
Steps = Generator[dict[str, Any] | float, Reply | None, dict[str, Any]]
"""Requests to send, whose replies are sent in, and seconds to sleep; it returns the answer's body."""


def _steps(call: _Call, *, max_wait_s: float, timeout_s: float, clock: Callable[[], float]) -> Steps:
    """The tries of `call`, two at most that reach anyone, without doing them; ApiError or NoAnswer where both fail."""
    started_s = clock()

    def left() -> float | None:
        return None if call.deadline_s is None else call.deadline_s - (clock() - started_s)

    waited_s, knock_s, num_tries = 0.0, _AGAIN_AFTER_S, 0
    while True:
        reply = yield call.request(left(), timeout_s=timeout_s)
        assert reply is not None
        refused = isinstance(reply, httpx.ConnectError)
        num_tries += not refused
        wait_s = knock_s if refused else _wait(reply)
        left_s = left()
        if (
            wait_s is None
            or num_tries == 2
            or waited_s + wait_s > max_wait_s
            or (left_s is not None and wait_s >= left_s)
        ):
            return _body(reply)
        yield wait_s
        waited_s += wait_s
        knock_s = min(_KNOCK_AT_MOST_S, 1.5 * knock_s) if refused else knock_s


def _wait(reply: Reply) -> float | None:
    """Seconds until a second try; None where it would be no use."""
    if isinstance(reply, httpx.TimeoutException):
        return None
    if isinstance(reply, httpx.TransportError):
        return _AGAIN_AFTER_S
    wait_s = _retry_after(reply) if reply.status_code in (429, 503) else None
    # 500 is a defect, or the proxy's word for an edge that died; 502 and 503 without Retry-After a balancer's.
    return _AGAIN_AFTER_S if wait_s is None and reply.status_code in (500, 502, 503) else wait_s


def _retry_after(response: httpx.Response) -> float | None:
    given = response.headers.get("retry-after", "")
    return float(given) if given.isascii() and given.isdigit() else None


def _body(reply: Reply) -> dict[str, Any]:
    if isinstance(reply, httpx.TransportError):
        # Not what it says: a URL may hold a password.
        raise NoAnswer(
            f"no answer ({type(reply).__name__}). Is the scorer running, and is this its address?"
        ) from reply
    try:
        body = reply.json()
    except ValueError:
        body = None
    if reply.is_success and isinstance(body, dict):
        return body
    error = body.get("error") if isinstance(body, dict) else None
    found: dict[str, Any] = error if isinstance(error, dict) else {}
    raise ApiError(
        str(found.get("message", "not an answer of this API. Is the address that of a scorer?")),
        status=reply.status_code,
        code=str(found.get("code", f"http_{reply.status_code}")),
        field=found.get("field"),
        request_id=found.get("request_id"),
        retry_after_s=_retry_after(reply),
    )


def _post(path: str, body: Mapping[str, Any], *, deadline_ms: int | None, **fields: Any) -> _Call:
    given = {name: value for name, value in fields.items() if value is not None}
    deadline_s = None if deadline_ms is None else deadline_ms / 1000
    return _Call(method="POST", path=path, body={**body, **given}, deadline_s=deadline_s)


def _score_call(query: Query, *, deadline_ms: int | None, request_id: str | None) -> _Call:
    return _post("/v1/score", query.body(), deadline_ms=deadline_ms, request_id=request_id)


def _batch_call(queries: Sequence[Query], *, deadline_ms: int | None, request_id: str | None) -> _Call:
    body = {"requests": [query.body() for query in queries]}
    return _post("/v1/score", body, deadline_ms=deadline_ms, request_id=request_id)


def _rerank_call(query: str, documents: Sequence[str | Mapping[str, Any]], options: RerankOptions) -> _Call:
    blend = None if options.blend is None else asdict(options.blend)
    fields = {name: getattr(options, name) for name in options.__dataclass_fields__} | {"blend": blend}
    return _post("/v2/rerank", {"query": query, "documents": list(documents)}, **fields)


_READY: Final = _Call(method="GET", path="/readyz")


def _read_batch(body: Mapping[str, Any]) -> tuple[Scores, ...]:
    return tuple(read_scores(answer, request_id=body["request_id"]) for answer in body["answers"])


def _options(base_url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    # Without the environment: its proxy and netrc are for other servers than one's own scorer.
    return {"base_url": base_url, "headers": headers, "timeout": timeout_s, "trust_env": False}


class Client:
    """A scorer at `base_url`. Every call raises ApiError where it is refused and NoAnswer where none comes."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        max_wait_s: float = MAX_WAIT_S,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = httpx.Client(**_options(base_url, api_key, timeout_s), transport=transport)
        self._max_wait_s = max_wait_s
        self._timeout_s = timeout_s
        self._sleep = sleep

    def score(
        self,
        query: str,
        profile: str,
        documents: Sequence[str | Document],
        *,
        blend: Weights | None = None,
        deadline_ms: int | None = None,
        request_id: str | None = None,
        min_documents: int | None = None,
    ) -> Scores:
        """The scores of `documents`, in their order."""
        asked = Query(query=query, profile=profile, documents=documents, blend=blend, min_documents=min_documents)
        body = self._do(_score_call(asked, deadline_ms=deadline_ms, request_id=request_id))
        return read_scores(body, request_id=body["request_id"])

    def score_many(
        self, queries: Sequence[Query], *, deadline_ms: int | None = None, request_id: str | None = None
    ) -> tuple[Scores, ...]:
        """The scores of each of `queries`, in one call: all or none."""
        return _read_batch(self._do(_batch_call(queries, deadline_ms=deadline_ms, request_id=request_id)))

    def rerank(
        self, query: str, documents: Sequence[str | Mapping[str, Any]], options: RerankOptions = PLAIN
    ) -> Ranking:
        """`documents`, best first."""
        return read_ranking(self._do(_rerank_call(query, documents, options)))

    def ready(self) -> ServedBundle:
        """Which bundle answers; ApiError 503 while none does."""
        return read_bundle(self._do(_READY))

    def close(self) -> None:
        """Closes the connections; the client cannot be used any more."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _do(self, call: _Call) -> dict[str, Any]:
        steps = _steps(call, max_wait_s=self._max_wait_s, timeout_s=self._timeout_s, clock=time.monotonic)
        reply: Reply | None = None
        try:
            while True:
                step = steps.send(reply)
                if isinstance(step, float):
                    self._sleep(step)
                    reply = None
                else:
                    reply = self._send(step)
        except StopIteration as done:
            return dict(done.value)

    def _send(self, request: Mapping[str, Any]) -> Reply:
        try:
            return self._http.request(**request)
        except httpx.TransportError as error:
            return error


class AsyncClient:
    """`Client`, to be awaited."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        max_wait_s: float = MAX_WAIT_S,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._http = httpx.AsyncClient(**_options(base_url, api_key, timeout_s), transport=transport)
        self._max_wait_s = max_wait_s
        self._timeout_s = timeout_s
        self._sleep = sleep

    async def score(
        self,
        query: str,
        profile: str,
        documents: Sequence[str | Document],
        *,
        blend: Weights | None = None,
        deadline_ms: int | None = None,
        request_id: str | None = None,
        min_documents: int | None = None,
    ) -> Scores:
        """The scores of `documents`, in their order."""
        asked = Query(query=query, profile=profile, documents=documents, blend=blend, min_documents=min_documents)
        body = await self._do(_score_call(asked, deadline_ms=deadline_ms, request_id=request_id))
        return read_scores(body, request_id=body["request_id"])

    async def score_many(
        self, queries: Sequence[Query], *, deadline_ms: int | None = None, request_id: str | None = None
    ) -> tuple[Scores, ...]:
        """The scores of each of `queries`, in one call: all or none."""
        return _read_batch(await self._do(_batch_call(queries, deadline_ms=deadline_ms, request_id=request_id)))

    async def rerank(
        self, query: str, documents: Sequence[str | Mapping[str, Any]], options: RerankOptions = PLAIN
    ) -> Ranking:
        """`documents`, best first."""
        return read_ranking(await self._do(_rerank_call(query, documents, options)))

    async def ready(self) -> ServedBundle:
        """Which bundle answers; ApiError 503 while none does."""
        return read_bundle(await self._do(_READY))

    async def close(self) -> None:
        """Closes the connections; the client cannot be used any more."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _do(self, call: _Call) -> dict[str, Any]:
        steps = _steps(call, max_wait_s=self._max_wait_s, timeout_s=self._timeout_s, clock=time.monotonic)
        reply: Reply | None = None
        try:
            while True:
                step = steps.send(reply)
                if isinstance(step, float):
                    await self._sleep(step)
                    reply = None
                else:
                    reply = await self._send(step)
        except StopIteration as done:
            return dict(done.value)

    async def _send(self, request: Mapping[str, Any]) -> Reply:
        try:
            return await self._http.request(**request)
        except httpx.TransportError as error:
            return error
