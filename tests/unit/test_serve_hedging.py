"""Further tries inside the edge: for a replica that died, and for one that is late."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine

import pytest

from preceptor_serve.hedging import ALLOWANCE, EARNED, MIN_SEEN, MIN_WAIT_S, TIMES_USUAL, Hedge, Usual
from tests.unit.serving import Clock


class Died(Exception):
    """A replica is gone."""


class Under:
    """A request under way, which can be called off."""

    def __init__(self, work: Coroutine[object, object, str]) -> None:
        self._work = work
        self.num_cancelled = 0

    def __await__(self):
        return self._work.__await__()

    def cancel(self) -> None:
        self.num_cancelled += 1


class Replicas:
    """Gives each request the next of `works`; what was sent stays in `sent`."""

    def __init__(self, *works: Callable[[], Coroutine[object, object, str]]) -> None:
        self._works = list(works)
        self.sent: list[Under] = []

    def send(self) -> Awaitable[str]:
        self.sent.append(Under(self._works.pop(0)()))
        return self.sent[-1]


async def answers() -> str:
    return "answer"


async def dies() -> str:
    raise Died


async def fails() -> str:
    raise ValueError("a defect")


async def hangs() -> str:
    await asyncio.Event().wait()
    raise AssertionError


def hedge() -> Hedge:
    return Hedge(died=Died, clock=Clock())


async def experienced(num: int = MIN_SEEN) -> Hedge:
    """A hedge that knows requests to take no time at all."""
    found = hedge()
    for _ in range(num):
        assert await found.answered(answers) == "answer"
    return found


def test_a_request_whose_replica_died_is_sent_once_more():
    replicas = Replicas(dies, answers)
    assert asyncio.run(hedge().answered(replicas.send)) == "answer"
    again = Replicas(dies, dies, answers)
    with pytest.raises(Died):
        asyncio.run(hedge().answered(again.send))
    assert len(again.sent) == 2


def test_any_other_failure_is_the_answer():
    replicas = Replicas(fails, answers)
    with pytest.raises(ValueError, match="a defect"):
        asyncio.run(hedge().answered(replicas.send))
    assert len(replicas.sent) == 1


def test_a_late_request_is_answered_by_another_replica_and_called_off():
    async def run() -> Replicas:
        replicas = Replicas(hangs, answers)
        assert await (await experienced()).answered(replicas.send) == "answer"
        await asyncio.sleep(0)
        return replicas

    assert [request.num_cancelled for request in asyncio.run(run()).sent] == [1, 0]


def test_a_late_request_that_meets_the_same_replica_again_is_sent_a_third_time_and_no_more():
    async def run(*works: Callable[[], Coroutine[object, object, str]]) -> Replicas:
        replicas = Replicas(*works)
        pending = asyncio.create_task((await experienced()).answered(replicas.send))
        done, _ = await asyncio.wait([pending], timeout=5 * MIN_WAIT_S)
        assert [task.result() for task in done] == ["answer"] * (answers in works)
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
        return replicas

    assert [request.num_cancelled for request in asyncio.run(run(hangs, hangs, answers)).sent] == [1, 1, 0]
    assert len(asyncio.run(run(hangs, hangs, hangs, hangs)).sent) == 3


def test_the_first_answer_counts_even_where_the_second_try_fails():
    async def run() -> None:
        release = asyncio.Event()

        async def slow() -> str:
            await release.wait()
            return "slow answer"

        async def fails_and_releases() -> str:
            release.set()
            raise ValueError

        assert await (await experienced()).answered(Replicas(slow, fails_and_releases).send) == "slow answer"

    asyncio.run(run())


def test_a_hung_replica_that_is_killed_at_last_costs_no_request():
    async def run() -> None:
        killed = asyncio.Event()

        async def killed_later() -> str:
            await killed.wait()
            raise Died

        pending = asyncio.create_task(hedge().answered(Replicas(killed_later, answers).send))
        await asyncio.sleep(0)
        killed.set()
        assert await pending == "answer"

    asyncio.run(run())


def test_nobody_is_late_before_enough_is_known():
    async def run() -> None:
        replicas = Replicas(hangs, answers)
        few = await experienced(MIN_SEEN - 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2 * MIN_WAIT_S):
                await few.answered(replicas.send)
        await asyncio.sleep(0)
        assert [request.num_cancelled for request in replicas.sent] == [1]

    asyncio.run(run())


def test_second_tries_of_late_requests_are_paid_by_answers():
    async def run() -> int:
        patient = await experienced()
        replicas = Replicas(*[hangs] * 100)
        pending = [asyncio.create_task(patient.answered(replicas.send)) for _ in range(20)]
        await asyncio.wait(pending, timeout=2 * MIN_WAIT_S)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return len(replicas.sent)

    assert asyncio.run(run()) == 20 + ALLOWANCE


def test_a_spent_allowance_is_filled_by_answers():
    async def run() -> int:
        patient = await experienced()
        num_late = int(ALLOWANCE) + 1
        replicas = Replicas(*[hangs] * (num_late + int(ALLOWANCE)), answers)
        pending = [asyncio.create_task(patient.answered(replicas.send)) for _ in range(num_late)]
        await asyncio.wait(pending, timeout=1.5 * MIN_WAIT_S)
        for _ in range(math.ceil(1 / EARNED)):
            await patient.answered(answers)
        done, waiting = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return len(done)

    assert asyncio.run(run()) == 1


def test_the_usual_time_is_that_of_recent_answers():
    usual = Usual()
    for _ in range(MIN_SEEN - 1):
        usual.saw(10.0)
    assert usual.late_after_s() is None
    usual.saw(10.0)
    assert usual.late_after_s() == TIMES_USUAL * 10.0
    for _ in range(1000):
        usual.saw(0.001)
    assert usual.late_after_s() == MIN_WAIT_S
