"""The scorers as the Edge sees them: an AsyncScorer behind a Serve handle, with Serve's errors in the API's terms."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from grpc.aio import AioRpcError
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from preceptor_serve.hedging import Hedge
from preceptor_serve.scorer import Answer, Identity, Overloaded, TimedOut, Unavailable

IDENTITY_MAX_AGE_S = 10.0
HEALTH_TIMEOUT_S = 5.0
GONE = (RayActorError, AioRpcError)
"""Errors of a replica that is gone: as Serve names it, and of a connection that ended some other way."""

T = TypeVar("T")


class RemoteScorer:
    """An AsyncScorer whose work is done by the replicas behind `handle`."""

    def __init__(self, handle: DeploymentHandle, *, timeout_s: float) -> None:
        # By gRPC and not as a Ray actor's method, whose answers go through the object store's books: with a student of
        # one layer 1.2 times the documents a second.
        self._handle = handle.options(_by_reference=False)
        self._timeout_s = timeout_s
        self._hedge = Hedge(died=GONE, clock=time.monotonic)
        self._seen: Identity | None = None
        self._seen_s = 0.0

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer:
        send = functools.partial(self._handle.score.remote, query, profile, documents)
        answer: Answer = await _reached(self._hedge.answered(send), self._timeout_s)
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
    except (DeploymentUnavailableError, *GONE) as error:
        raise Unavailable("no replica answers") from error
