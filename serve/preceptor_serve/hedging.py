"""Further tries of one request inside the edge, where its replica died or takes much longer than usual.

Scoring changes nothing, so a request may be computed twice. A replica that has died takes its requests with it: each is
sent again at once. A replica that hangs says nothing at all, and Serve takes seconds to notice: what is not answered
after a wait derived from the usual time is sent once more, to whichever replica Serve chooses, and after as long again
a third time, because that may be the one that already holds it; the first answer counts, and the others are called off.

Under overload everything takes longer, and further tries would only add to it: they are paid from an allowance that
answered requests fill.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

MAX_TRIES: Final = 3
"""Of a late request. With two, one to three of 320 waited 20 s for the end of a replica that hung, in three runs of
three of bench/serve_failures.py with gRPC between edge and scorer; with three, none in two runs."""
MIN_SEEN: Final = 20
"""Answers after which the usual time is known; before, nobody is thought late."""
WINDOW: Final = 200
MIN_WAIT_S: Final = 0.25
TIMES_USUAL: Final = 3.0
"""A request is late after this many times what 99 of 100 recent ones took."""
ALLOWANCE: Final = 8.0
EARNED: Final = 0.05
"""Of a further try, by each answer: one request in 20 may be computed twice, and ALLOWANCE of them at once: as many as
a replica holds under the default `max_ongoing_requests`, all of which are late when it hangs."""


@runtime_checkable
class Cancellable(Protocol):
    """A request under way that can be called off, as Serve's responses can."""

    def cancel(self) -> None: ...


class Usual:
    """How long requests take, from the last WINDOW answers."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=WINDOW)

    def saw(self, seconds: float) -> None:
        self._seen.append(seconds)

    def late_after_s(self) -> float | None:
        """Seconds after which a request is late; None while too few are known."""
        if len(self._seen) < MIN_SEEN:
            return None
        usual_s = sorted(self._seen)[int(0.99 * (len(self._seen) - 1))]
        return max(MIN_WAIT_S, TIMES_USUAL * usual_s)


class Hedge:
    """Sends requests, some of them again. `died`: the errors of a replica that is gone; `clock` counts seconds."""

    def __init__(self, *, died: type[Exception] | tuple[type[Exception], ...], clock: Callable[[], float]) -> None:
        self._died = died
        self._clock = clock
        self._usual = Usual()
        self._allowance = ALLOWANCE

    async def answered(self, send: Callable[[], Awaitable[T]]) -> T:
        """What the request that `send` sends resolves to; the error of the last try where none succeeds.

        Cancelled, it calls off what it has sent.
        """
        tries = [self._start(send)]
        late_s = self._usual.late_after_s()
        try:
            while True:
                if waiting := [task for task in tries if not task.done()]:
                    # Again and again: who finds the allowance spent may find it filled a moment later.
                    timeout_s = late_s if len(tries) < MAX_TRIES else None
                    await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                sound = next((task for task in tries if task.done() and not _failed(task)), None)
                if sound is not None:
                    return sound.result()
                if all(task.done() for task in tries):
                    if len(tries) >= 2 or not self._has_died(tries[0]):
                        return tries[-1].result()
                    # Not paid from the allowance: the dead replica's work has ended, so nothing is computed twice.
                    tries.append(self._start(send))
                elif len(tries) < MAX_TRIES and self._may():
                    tries.append(self._start(send))
        finally:
            for task in tries:
                task.cancel()
                # What the one that lost ends with concerns nobody.
                task.add_done_callback(_failed)

    def _start(self, send: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        return asyncio.ensure_future(self._one(send))

    async def _one(self, send: Callable[[], Awaitable[T]]) -> T:
        started_s = self._clock()
        response = send()
        try:
            answer = await response
        except asyncio.CancelledError:
            if isinstance(response, Cancellable):
                response.cancel()
            raise
        self._usual.saw(self._clock() - started_s)
        self._allowance = min(ALLOWANCE, self._allowance + EARNED)
        return answer

    def _may(self) -> bool:
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _has_died(self, task: asyncio.Task[T]) -> bool:
        return not task.cancelled() and isinstance(task.exception(), self._died)


def _failed(task: asyncio.Task[T]) -> bool:
    return task.cancelled() or task.exception() is not None
