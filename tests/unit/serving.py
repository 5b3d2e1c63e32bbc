"""What the tests of the HTTP edge share: scorers without a model, and requests in this process or over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from preceptor.bundle import DocumentScore
from preceptor_serve.api import make_api
from preceptor_serve.keys import KeyRing
from preceptor_serve.schema import Limits
from preceptor_serve.scorer import Answer, AsyncScorer, FakeScorer, Identity, ThreadedScorer, hashed_score

JSON = {"content-type": "application/json"}
SECRET = "zq-private-words"
SMALL = Limits(max_documents=3, max_query_chars=10, max_profile_chars=20, max_document_chars=30, max_body_bytes=2000)
BODY: dict[str, Any] = {"query": "nurse", "profile": "ward, 6 years", "documents": ["Staff Nurse", "Baker"]}
GOOD = hashed_score("a", "b", "c")


@dataclass(frozen=True)
class Session:
    """Requests to `app` in this process, as a client sends them."""

    app: FastAPI

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", trust_env=False) as session:
                return await session.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)


def client(scorer: AsyncScorer | None = None, *, limits: Limits | None = None, keys: KeyRing | None = None) -> Session:
    return Session(make_api(scorer or ThreadedScorer(FakeScorer()), limits=limits, keys=keys))


class Clock:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


@functools.cache
def shared_client() -> Session:
    return client(limits=SMALL)


def assert_refused(response: httpx.Response, status: int, code: str, field: str | None = None) -> None:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"code", "message", "field", "request_id"}
    assert (error["code"], error["field"]) == (code, field)
    assert error["message"] and error["request_id"]


@dataclass(frozen=True)
class FailingScorer:
    """An AsyncScorer that always raises `error`."""

    error: Exception

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer:
        raise self.error

    async def identity(self) -> Identity:
        raise self.error


@dataclass(frozen=True)
class FixedScorer:
    """An AsyncScorer that answers every request with the same `scores`."""

    scores: tuple[DocumentScore, ...]

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer:
        return Answer(identity=await self.identity(), scores=self.scores)

    async def identity(self) -> Identity:
        return Identity(bundle_id="fixed", policy_version="1.0.0+fixed")


async def exchange(app: Any, messages: list[dict[str, Any]], headers: dict[str, str]) -> tuple[list[dict], int]:
    """What `app` sent for a POST /v1/score, and how many of `messages` it took."""
    sent: list[dict[str, Any]] = []
    taken = iter(messages)
    num_taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal num_taken
        num_taken += 1
        return next(taken)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in (JSON | headers).items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/score", "query_string": b"", "headers": raw}
    await app(scope, receive, send)
    return sent, num_taken


def chunks(count: int) -> list[dict[str, Any]]:
    return [{"type": "http.request", "body": b" " * 500, "more_body": True} for _ in range(count)]


def samples(session: Session) -> dict[tuple[str, str | None, str | None], float]:
    """Every sample of /metrics without buckets, by name, route and status."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(session.get("/metrics").text)
    return {
        (sample.name, sample.labels.get("route"), sample.labels.get("status")): sample.value
        for family in families
        for sample in family.samples
        if "le" not in sample.labels
    }


@contextlib.contextmanager
def serving(app: FastAPI, **options: Any) -> Iterator[str]:
    """The URL of `app` over real HTTP on the loopback, while the body runs."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, **options))
    started = threading.Event()

    async def run() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        started.set()
        await task

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert started.wait(timeout=30)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
