"""An endpoint as the judge: servers that misbehave, limits that are kept, prices, names and reasons."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.contracts import OVERALL, make_pair
from preceptor.errors import RecipeError
from preceptor.judge.completions import Prices, Verdict, read_reasoned, split_reasoned, usage_of
from preceptor.judge.endpoint import (
    LONGEST_TOLD_S,
    Dialect,
    Endpoint,
    ask,
    endpoint_judge_id,
    open_client,
    retry_after_s,
    wait_s,
)
from preceptor.judge.judges import openai_judge
from preceptor.judge.openai_judge import EndpointGrader, OpenAIJudge
from preceptor.judge.pacing import Bucket, Clock, pace_of
from preceptor.judge.replies import ASK, NO_GRADE, TIMEOUT, UNREACHABLE, Answers, Usage
from preceptor.policy import REASONED_ANSWER, load_policy, messages, prompt_hash, reasoned_messages
from preceptor.recipe import POLICY_DIR, JudgeConfig

POLICY = load_policy(POLICY_DIR)
DATE = "Mon, 02 Mar 2026 10:00:00 GMT"

# ---------------------------------------------------------------- a server, and a clock that only waiting moves


@dataclass(kw_only=True)
class FakeTime:
    """A clock of its own: sleeping moves it, and nothing else."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def clock(self) -> Clock:
        return Clock(now_s=lambda: self.now, wall_s=lambda: self.now, sleep=self.sleep)

    async def sleep(self, wait: float) -> None:
        self.slept.append(wait)
        until = self.now + wait
        await asyncio.sleep(0)
        self.now = max(self.now, until)


def chat(
    content: str | None,
    tops: dict[str, float] | None = None,
    *,
    tokens: list[dict[str, Any]] | None = None,
    usage: dict[str, Any] | None = None,
) -> bytes:
    listed = [{"token": token, "logprob": value, "bytes": None} for token, value in (tops or {}).items()]
    spelled = tokens or ([{**listed[0], "top_logprobs": listed}] if listed else [])
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content},
        "finish_reason": "length",
        "logprobs": {"content": spelled} if spelled else None,
    }
    answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return json.dumps(answer if usage is None else {**answer, "usage": usage}).encode()


Behaviour = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def send(body: bytes, status: int = 200, *, claim: int | None = None, **headers: str) -> Behaviour:
    def behave(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.send_response_only(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(claim or len(body)))
        # Said, not only done: a client that tried to use the connection again would count one fault more.
        handler.send_header("connection", "close")
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return behave


def reset(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    """Ends the connection with a reset: closing a socket that may not linger."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


@contextmanager
def endpoint(*script: Behaviour, **changes: Any) -> Iterator[tuple[Endpoint, list[Any]]]:
    """A server on loopback that answers its n-th request as the n-th behaviour says, the last one for ever after."""
    seen: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                seen.append(body)
                behave = script[min(len(seen), len(script)) - 1]
            behave(self, body)

        def finish(self) -> None:
            if self.wfile.closed or self.connection.fileno() < 0:
                return
            super().finish()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    where = Endpoint(
        base_url=f"http://127.0.0.1:{server.server_address[1]}/v1",
        model="m",
        api_key="none",
        max_concurrency=4,
        timeout_s=20.0,
        max_attempts=3,
        first_wait_s=0.001,
    )
    try:
        yield replace(where, **changes), seen
    finally:
        server.shutdown()
        server.server_close()


def asked(where: Endpoint, dialect: Dialect | None = None, clock: Clock | None = None) -> Verdict:
    pace = pace_of(requests_per_minute=None, tokens_per_minute=None, clock=clock or FakeTime().clock())

    async def run() -> Verdict:
        async with open_client(where) as client:
            return await ask(client, where, dialect or Dialect(), pace, [{"role": "user", "content": "grade"}])

    return asyncio.run(run())


def pool(num: int) -> list[dict[str, Any]]:
    return [make_pair(f"query {n // 4}", "a welder", f"posting {n}", slice="s", split="train") for n in range(num)]


def graded_by(grader: EndpointGrader, *tables: list[dict[str, Any]]) -> list[Answers]:
    """The answers to several blocks that are asked at once."""

    async def run() -> list[Answers]:
        async with grader.client:
            return list(await asyncio.gather(*(grader.grade(pa.Table.from_pylist(rows)) for rows in tables)))

    return asyncio.run(run())


def grader_of(where: Endpoint, *, time: FakeTime | None = None, dimensions: tuple[str, ...]) -> EndpointGrader:
    judge = OpenAIJudge(endpoint=where, policy=POLICY, dimensions=dimensions)
    return EndpointGrader(judge=judge, clock=(time or FakeTime()).clock())


GOOD = send(chat("3", {"3": -0.3, " 3": -3.0, "2": -2.0, "I": -4.0}))

# ---------------------------------------------------------------- an endpoint that misbehaves


def test_logprobs_become_masses_with_both_spellings_of_a_digit_added_up() -> None:
    with endpoint(GOOD) as (where, seen):
        found = asked(where)
    assert found.masses == pytest.approx((0, 0, math.exp(-2.0), math.exp(-0.3) + math.exp(-3.0), 0))
    assert (seen[0]["max_tokens"], seen[0]["logprobs"], seen[0]["temperature"]) == (1, True, 0)


def test_a_chosen_token_that_the_list_leaves_out_still_counts() -> None:
    token = {"token": "4", "logprob": -0.2, "top_logprobs": [{"token": "3", "logprob": -2.0}]}
    with endpoint(send(chat("4", tokens=[token]))) as (where, _):
        assert asked(where).masses == pytest.approx((0, 0, 0, math.exp(-2.0), math.exp(-0.2)))


@pytest.mark.parametrize(
    "fault",
    [
        send(b"{}", 429, retry_after="0"),
        send(b"{}", 429),
        send(b"{}", 500),
        send(b"{}", 503, retry_after="Fri, 01 Jan 1999 00:00:00 GMT"),
        send(b"{}", 503, retry_after="next week"),
        send(chat("3")[:40]),
        send(chat("3")[:40], claim=4000),
        send(b"<html>busy</html>"),
        send(b'{"choices": []}'),
        send(b'{"choices": [{"message": {"content": ["3"]}}]}'),
        send(b'{"choices": [{"message": {"content": "3"}, "logprobs": {"content": [{"token": null}]}}]}'),
        send(b"[" * 100_000),
        send(b"null"),
        send(b"\xff\xfe"),
        reset,
    ],
    ids=[
        *("429", "429-silent", "500", "503-dated", "503-odd", "cut-json", "cut-body", "html", "no-choice"),
        *("list-content", "null-token", "deep", "null", "bytes", "reset"),
    ],
)
def test_a_passing_fault_is_tried_again(fault: Behaviour) -> None:
    with endpoint(fault, GOOD) as (where, seen):
        found = asked(where)
    assert (found.reason, found.attempt, len(seen)) == (None, 2, 2)


def test_a_lasting_fault_is_rejected_with_its_reason_after_max_attempts() -> None:
    with endpoint(send(b'{"error": {"message": "overloaded"}}', 500)) as (where, seen):
        found = asked(where)
    assert (found.masses, found.reason, found.attempt, len(seen)) == (None, "http 500", 3, 3)
    assert found.raw is not None and "overloaded" in found.raw


def test_a_refusal_is_final() -> None:
    with endpoint(send(b'{"error": {"message": "bad key"}}', 401)) as (where, seen):
        found = asked(where)
    assert (found.reason, len(seen)) == ("http 401", 1)


def test_a_server_that_never_answers_times_out() -> None:
    release = threading.Event()
    with endpoint(lambda *_: (release.wait(), None)[1], timeout_s=0.1, max_attempts=2) as (where, seen):
        found = asked(where)
        release.set()
    assert (found.reason, found.attempt, len(seen)) == (TIMEOUT, 2, 2)


def test_a_body_that_trickles_times_out_as_well() -> None:
    release = threading.Event()

    def trickle(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "100000")
        handler.end_headers()
        try:
            while not release.wait(0.02):
                handler.wfile.write(b" ")
                handler.wfile.flush()
        except OSError:
            handler.close_connection = True

    with endpoint(trickle, timeout_s=0.1, max_attempts=1) as (where, _):
        found = asked(where)
        release.set()
    assert found.reason == TIMEOUT


def test_nobody_listening_is_a_reject_not_a_crash() -> None:
    with endpoint(GOOD) as (where, _):
        pass
    assert asked(where).reason == UNREACHABLE


def test_a_server_that_only_knows_the_new_name_of_the_limit_is_asked_with_it() -> None:
    def picky(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        complaint = b'{"error": {"message": "max_tokens is unsupported, use max_completion_tokens"}}'
        (send(complaint, 400) if "max_tokens" in body else GOOD)(handler, body)

    dialect = Dialect()
    with endpoint(picky) as (where, seen):
        assert asked(where, dialect).reason is None
        assert asked(where, dialect).attempt == 1
    assert [sorted({"max_tokens", "max_completion_tokens"} & body.keys()) for body in seen] == [
        ["max_tokens"],
        ["max_completion_tokens"],
        ["max_completion_tokens"],
    ]


def test_a_server_without_logprobs_gives_a_sure_grade() -> None:
    def picky(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        complaint = b'{"error": {"message": "logprobs are not supported"}}'
        (send(complaint, 400) if "logprobs" in body else send(chat("2")))(handler, body)

    with endpoint(picky) as (where, seen):
        assert asked(where).masses == (0, 0, 1, 0, 0)
    assert len(seen) == 2


def test_a_server_that_lists_fewer_logprobs_is_asked_for_five() -> None:
    def picky(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        complaint = b'{"error": {"message": "top_logprobs must be at most 5"}}'
        (send(complaint, 400) if body["top_logprobs"] > 5 else GOOD)(handler, body)

    with endpoint(picky) as (where, seen):
        assert asked(where).reason is None
    assert [body["top_logprobs"] for body in seen] == [20, 5]


def test_refusals_that_no_other_words_cure_end() -> None:
    complaint = b'{"error": {"message": "top_logprobs, logprobs, max_completion_tokens: no"}}'
    with endpoint(send(complaint, 400)) as (where, seen):
        assert asked(where).reason == "http 400"
    assert len(seen) == 4


# ---------------------------------------------------------------- waiting


def test_a_retry_waits_as_told_and_otherwise_below_a_doubling_bound() -> None:
    assert wait_s(1, 7.0, first_s=0.5, draw=lambda: 1.0) == 7.0
    assert wait_s(1, 86400.0, first_s=0.5, draw=lambda: 1.0) == LONGEST_TOLD_S
    assert [wait_s(n, None, first_s=0.5, draw=lambda: 1.0) for n in (1, 2, 3, 20)] == [0.5, 1.0, 2.0, 30.0]
    assert wait_s(3, None, first_s=0.5, draw=lambda: 0.25) == 0.5


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Mon, 02 Mar 2026 10:00:09 GMT", "date": DATE}, 9.0),
        ({"retry-after": "Mon, 02 Mar 2026 09:59:00 GMT", "date": DATE}, 0.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, 20.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_both_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, 40.0) == seconds


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "date"]), st.text(max_size=40)))
def test_no_header_is_beyond_reading(headers: dict[str, str]) -> None:
    found = retry_after_s(headers, 0.0)
    assert found is None or found >= 0


@pytest.mark.parametrize(
    "busy",
    [
        send(b"{}", 429, retry_after="7"),
        send(b"{}", 429, retry_after="Mon, 02 Mar 2026 10:00:07 GMT", date=DATE),
        send(b"{}", 503, retry_after="7"),
    ],
    ids=["429-seconds", "429-date", "503-seconds"],
)
def test_a_busy_server_holds_everybody_until_it_said(busy: Behaviour) -> None:
    time = FakeTime()
    at: list[float] = []

    def timed(behave: Behaviour) -> Behaviour:
        def run(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
            at.append(time.now)
            behave(handler, body)

        return run

    with endpoint(timed(busy), timed(GOOD), max_concurrency=1) as (where, _):
        (answers,) = graded_by(grader_of(where, time=time, dimensions=("role", "pay")), pool(2))
    assert at == [0.0, 7.0, 7.0, 7.0, 7.0]
    assert sorted(reply.attempt for reply in answers.replies) == [1, 1, 1, 2]


def test_a_server_that_stumbles_holds_only_the_request_it_dropped() -> None:
    time = FakeTime()
    pace = pace_of(requests_per_minute=None, tokens_per_minute=None, clock=time.clock())
    with endpoint(send(b"{}", 500), GOOD) as (where, _):

        async def run() -> Verdict:
            async with open_client(where) as client:
                return await ask(client, where, Dialect(), pace, [{"role": "user", "content": "grade"}])

        assert asyncio.run(run()).attempt == 2
    assert len(time.slept) == 1 and pace.resume_s == -math.inf


# ---------------------------------------------------------------- limits


@settings(max_examples=60)
@given(
    per_minute=st.integers(1, 400),
    gaps=st.lists(st.one_of(st.just(0.0), st.floats(0.0, 90.0)), min_size=1, max_size=120),
)
def test_no_minute_sees_more_requests_than_its_limit(per_minute: int, gaps: list[float]) -> None:
    time = FakeTime()
    pace = pace_of(requests_per_minute=per_minute, tokens_per_minute=None, clock=time.clock())
    sent: list[float] = []

    async def run() -> None:
        for gap in gaps:
            time.now += gap
            await pace.enter(1.0)
            sent.append(time.now)

    asyncio.run(run())
    assert max(sum(start <= each < start + 60.0 for each in sent) for start in sent) <= per_minute


@settings(max_examples=60)
@given(sizes=st.lists(st.floats(1.0, 3000.0), min_size=1, max_size=150), per_minute=st.integers(1000, 50_000))
def test_no_minute_sees_more_tokens_than_its_limit_and_what_one_request_is_over_the_burst(
    sizes: list[float], per_minute: int
) -> None:
    time = FakeTime()
    pace = pace_of(requests_per_minute=None, tokens_per_minute=per_minute, clock=time.clock())
    sent: list[tuple[float, float]] = []

    async def run() -> None:
        for size in sizes:
            await pace.enter(size)
            sent.append((time.now, size))

    asyncio.run(run())
    over = max(max(sizes) - per_minute / 10, 0.0)
    most = max(sum(size for at, size in sent if start <= at < start + 60.0) for start, _ in sent)
    assert most <= (per_minute + over) * (1 + 1e-6)


def test_a_limit_is_used_up_to_its_last_four_percent() -> None:
    time = FakeTime()
    pace = pace_of(requests_per_minute=600, tokens_per_minute=None, clock=time.clock())

    async def run() -> None:
        for _ in range(3000):
            await pace.enter(1.0)

    asyncio.run(run())
    assert time.now <= 3000 / 600 * 60 * 1.04


def test_waiters_enter_in_the_order_they_came_even_past_a_small_one() -> None:
    time = FakeTime()
    pace = pace_of(requests_per_minute=None, tokens_per_minute=1000, clock=time.clock())
    entered: list[int] = []

    async def one(number: int, size: float) -> None:
        await pace.enter(size)
        entered.append(number)

    async def run() -> None:
        await asyncio.gather(*(one(number, size) for number, size in enumerate((90.0, 90.0, 1.0, 1.0))))

    asyncio.run(run())
    assert entered == [0, 1, 2, 3]


def test_an_estimate_that_was_wrong_is_made_good_and_learnt_from() -> None:
    time = FakeTime()
    pace = pace_of(requests_per_minute=None, tokens_per_minute=6000, clock=time.clock())
    assert pace.tokens is not None
    taken = pace.estimate(400)
    assert taken == 100
    asyncio.run(pace.enter(taken))
    pace.settle(num_bytes=400, num_prompt_tokens=199, num_generated_tokens=1, taken=taken)
    assert pace.tokens.level == pytest.approx(600 - 200)
    assert pace.estimate(400) == 199
    pace.settle(num_bytes=400, num_prompt_tokens=0, num_generated_tokens=0, taken=199)
    assert pace.estimate(400) == 199, "a server that reports nothing teaches nothing"


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    bucket = Bucket(per_minute=60, burst=1.0)
    bucket.take(-50)
    assert bucket.level == 1.0
    assert bucket.wait_s(1.0, 1000.0) == 0.0


@dataclass(kw_only=True)
class Counting:
    """A server with a limit per minute of the fake clock: it answers 429 to whatever goes beyond."""

    time: FakeTime
    per_minute: int
    at: list[float] = field(default_factory=list)
    num_refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self.lock:
            recent = [at for at in self.at if at > self.time.now - 60.0]
            refused = len(recent) >= self.per_minute
            self.num_refused += refused
            self.at += [] if refused else [self.time.now]
        (send(b"{}", 429, retry_after="1") if refused else GOOD)(handler, body)


@pytest.mark.parametrize(("limit", "refuses"), [(10, False), (None, True)], ids=["paced", "unpaced"])
def test_a_server_with_a_limit_never_has_to_refuse_what_is_paced(limit: int | None, refuses: bool) -> None:
    time = FakeTime()
    server = Counting(time=time, per_minute=10)
    # One at a time: only then no request is on its way while the clock is moved.
    with endpoint(server, max_requests_per_minute=limit, max_concurrency=1) as (where, _):
        blocks = [pool(12)[start : start + 6] for start in (0, 6)]
        answers = graded_by(grader_of(where, time=time, dimensions=("role", "pay")), *blocks)
    assert (server.num_refused > 0) is refuses
    assert refuses or [reply.attempt for each in answers for reply in each.replies] == [1] * 24


def test_a_row_waits_its_turn_for_as_long_as_the_server_answers_others() -> None:
    time = FakeTime()
    lock, served_at = threading.Lock(), [-1.0]

    def one_a_second(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        # The lock holds until the answer is out: whoever is refused is refused after it.
        with lock:
            busy = time.now < served_at[0] + 1.0
            served_at[0] = served_at[0] if busy else time.now
            (send(b"{}", 429, retry_after="1") if busy else GOOD)(handler, body)
            handler.wfile.flush()

    with endpoint(one_a_second, max_concurrency=6, max_attempts=3) as (where, seen):
        (answers,) = graded_by(grader_of(where, time=time, dimensions=("role", "pay")), pool(6))
    assert [reply.reason for reply in answers.replies] == [None] * 12
    assert len(seen) > 12


def test_a_server_that_answers_nobody_is_given_up() -> None:
    with endpoint(send(b"{}", 429, retry_after="1"), max_concurrency=2, max_attempts=2) as (where, seen):
        (answers,) = graded_by(grader_of(where, dimensions=("role",)), pool(3))
    assert [(reply.reason, reply.attempt) for reply in answers.replies] == [("http 429", 2)] * 3
    assert len(seen) == 6


def test_a_request_that_is_larger_than_the_limit_does_not_wait_for_ever() -> None:
    def by_size(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        too_large = "posting 0" in body["messages"][-1]["content"]
        (send(b"{}", 429, retry_after="1") if too_large else GOOD)(handler, body)

    with endpoint(by_size, max_concurrency=2, max_attempts=2) as (where, seen):
        (answers,) = graded_by(grader_of(where, dimensions=("role",)), pool(40))
    refused = [reply for reply in answers.replies if reply.reason is not None]
    assert [(reply.pair_id, reply.reason) for reply in refused] == [(pool(1)[0]["pair_id"], "http 429")]
    assert 39 + 2 <= len(seen) <= 39 + 2 + 20


def test_a_slow_limit_is_not_taken_for_silence() -> None:
    def give_up_s(**limits: int) -> float:
        return openai_judge(config(**limits), POLICY).workers.give_up_s

    assert give_up_s() == give_up_s(max_requests_per_minute=10_000) == 1800.0
    minutes_per_block = 256 * len(POLICY.rubric.names) / 10
    assert give_up_s(max_requests_per_minute=10) >= 2 * 60 * minutes_per_block
    assert give_up_s(max_tokens_per_minute=10_000) > give_up_s(max_tokens_per_minute=20_000) > 1800.0


def test_actors_share_the_limits_between_them() -> None:
    with endpoint(GOOD, max_requests_per_minute=100, max_tokens_per_minute=9000, num_actors=4) as (where, _):
        pace = grader_of(where, dimensions=("role",)).pace
    assert pace.requests is not None and pace.tokens is not None
    assert (pace.requests.burst, pace.tokens.burst) == pytest.approx((25 / 60, 225))


# ---------------------------------------------------------------- usage and money

USED = {"prompt_tokens": 1000, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 800}}
PRICES = Prices(prompt=2e-6, cached=1e-6, generated=8e-6)


def test_usage_is_counted_and_priced() -> None:
    found = usage_of({"usage": USED}, PRICES)
    assert (found.num_prompt_tokens, found.num_cached_tokens, found.num_generated_tokens) == (1000, 800, 1)
    assert found.cost_usd == pytest.approx(0.001208)


@pytest.mark.parametrize(
    "told",
    [None, {}, [], "many", {"prompt_tokens": None}, {"prompt_tokens": "3"}, {"prompt_tokens_details": 4}],
    ids=repr,
)
def test_a_server_that_counts_nothing_costs_nothing(told: Any) -> None:
    assert usage_of({"usage": told}, PRICES) == Usage()


def test_a_block_costs_what_all_its_billed_tries_cost() -> None:
    unreadable = send(json.dumps({"choices": [], "usage": USED}).encode())
    good = send(chat("3", {"3": -0.1}, usage=USED))
    with endpoint(unreadable, send(b"{}", 500), good, prices=PRICES) as (where, seen):
        (answers,) = graded_by(grader_of(where, dimensions=("role", "pay")), pool(1))
    assert len(seen) == 4
    assert answers.usage.num_prompt_tokens == 3000
    assert answers.usage.cost_usd == pytest.approx(3 * 0.001208)


def config(**changes: Any) -> JudgeConfig:
    chosen = {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", **changes}
    return JudgeConfig(floor=0.5, max_reject_share=0.1, num_calibration_pairs=8, **chosen)


def test_prices_are_per_million_and_cached_tokens_cost_the_same_unless_told() -> None:
    priced = config(usd_per_million_prompt_tokens=2.0, usd_per_million_generated_tokens=8.0)
    assert openai_judge(priced, POLICY).endpoint.prices == Prices(prompt=2e-6, cached=2e-6, generated=8e-6)
    cheaper = replace(priced, usd_per_million_cached_tokens=0.5)
    assert openai_judge(cheaper, POLICY).endpoint.prices.cached == 5e-7


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": "localhost:8000/v1"},
        {"base_url": "http://host:port/v1"},
        {"base_url": "ftp://host/v1"},
        {"base_url": "https://user:secret@host/v1"},
        {"base_url": "//user:secret@host:x/v1"},
        {"max_requests_per_minute": 0},
        {"max_tokens_per_minute": -1},
        {"max_concurrency": 0},
        {"max_attempts": 0},
        {"timeout_s": 0.0},
        {"rationale_tokens": -1},
        {"usd_per_million_prompt_tokens": -1.0},
        {"usd_per_million_cached_tokens": math.nan},
        {"usd_per_million_generated_tokens": math.inf},
        {"batch_price_share": 1.5},
        {"max_cost_usd": 5.0},
        {"max_cost_usd": 0.0, "usd_per_million_prompt_tokens": 1.0},
    ],
    ids=repr,
)
def test_a_judge_that_cannot_work_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        config(**changes)
    assert next(iter(changes)) in str(caught.value) and "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------- which judge


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://127.0.0.1:8000/v1", "127.0.0.1:8000/v1"),
        ("https://api.example.com/v1/", "api.example.com/v1"),
        ("https://API.example.com:443/v1", "api.example.com/v1"),
        ("http://api.example.com:80", "api.example.com"),
        ("http://[::1]:8000/v1", "[::1]:8000/v1"),
        ("https://user:secret@api.example.com/deployments/g?key=secret#secret", "api.example.com/deployments/g"),
    ],
)
def test_a_judge_is_named_after_its_place_without_secrets(url: str, place: str) -> None:
    endpoint = replace(openai_judge(config(), POLICY).endpoint, base_url=url)
    assert endpoint_judge_id(endpoint) == f"openai:m@{place}"
    assert endpoint_judge_id(replace(endpoint, rationale_tokens=64)) == f"openai:m@{place}+reasons"


def test_a_judge_travels_by_pickle_and_opens_without_a_network() -> None:
    judge = openai_judge(config(max_concurrency=1000), POLICY)
    assert pickle.loads(pickle.dumps(judge)) == judge
    assert "none" not in repr(judge.endpoint)
    assert judge.open().judge is judge
    workers = judge.workers
    assert (workers.num_actors, workers.cpus) == (1, 0.1)
    assert workers.blocks_in_flight * 16 * len(judge.dimensions) >= 2000


# ---------------------------------------------------------------- grading


def test_every_pair_and_dimension_is_answered_once_and_prose_is_no_grade() -> None:
    def by_dimension(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        question = body["messages"][-1]["content"]
        (send(chat("The pay is fine.", {"The": -0.1})) if "\npay: " in question else GOOD)(handler, body)

    with endpoint(by_dimension) as (where, seen):
        (answers,) = graded_by(grader_of(where, dimensions=("role", "pay")), pool(3))
    assert len(seen) == 6
    asked_for = [(pair["pair_id"], name) for pair in pool(3) for name in ("role", "pay")]
    assert sorted((reply.pair_id, reply.dimension) for reply in answers.replies) == sorted(asked_for)
    for reply in answers.replies:
        assert reply.reason == (NO_GRADE if reply.dimension == "pay" else None)
        assert reply.reason is None or reply.raw == "The pay is fine."


def test_only_the_dimensions_that_wait_are_asked() -> None:
    rows = [{**pair, ASK: names} for pair, names in zip(pool(2), (["pay"], ["role", "pay"]), strict=True)]
    with endpoint(GOOD) as (where, seen):
        (answers,) = graded_by(grader_of(where, dimensions=("role", "pay")), rows)
    assert [reply.dimension for reply in answers.replies] == ["pay", "role", "pay"]
    assert len(seen) == 3


def test_all_blocks_of_an_actor_share_its_open_requests() -> None:
    lock, open_now, most = threading.Lock(), [0], [0]

    def counted(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with lock:
            open_now[0] += 1
            most[0] = max(most[0], open_now[0])
        threading.Event().wait(0.005)
        with lock:
            open_now[0] -= 1
        GOOD(handler, body)

    with endpoint(counted, max_concurrency=3) as (where, seen):
        graded_by(grader_of(where, dimensions=("role", "pay")), *(pool(8)[n : n + 2] for n in (0, 2, 4, 6)))
    assert len(seen) == 16
    assert 1 <= most[0] <= 3


# ---------------------------------------------------------------- reasons first


def spelled(*texts: str, tops: dict[int, dict[str, float]]) -> list[dict[str, Any]]:
    """Tokens of a reply; `tops` gives the logprobs at the positions that matter."""
    return [
        {
            "token": text,
            "logprob": -0.01,
            "bytes": list(text.encode()),
            "top_logprobs": [{"token": top, "logprob": value} for top, value in tops.get(n, {text: -0.01}).items()],
        }
        for n, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    "texts",
    [
        ("Same", " work", ".", "\n", "Grade", ":", " 3"),
        ("Same", " work", ".", "\n", "Grade", ": ", "3"),
        ("Same", " work", ".\n", "Grade:", " ", "3", "\n"),
        ("Grade", ": 1 said one.", " Same work.\n", "**", "Grade", ":", " 3", "**"),
        ("Grade: 0\n", "Same work.", "\n", "grade", ":", "3"),
    ],
    ids=["space-with-digit", "space-before", "space-alone", "bold-and-an-earlier-one", "none"],
)
def test_the_grade_after_the_reasons_is_read_where_its_digit_is(texts: tuple[str, ...]) -> None:
    (at,) = (n for n, text in enumerate(texts) if text.strip() == "3")
    listed = spelled(*texts, tops={at: {"3": -0.5, " 3": -2.0, " 2": -1.5, "x": -3.0}})
    verdict = read_reasoned(json.loads(chat("".join(texts), tokens=listed)))
    assert verdict.masses == pytest.approx((0, 0, math.exp(-1.5), math.exp(-0.5) + math.exp(-2.0), 0))
    assert verdict.rationale is not None and "ame work." in verdict.rationale
    assert not verdict.rationale.endswith(("Grade", "\n", "**"))


def test_a_character_cut_into_two_tokens_does_not_move_the_digit() -> None:
    halves = [{"token": "\ufffd", "logprob": -1.0, "bytes": [part], "top_logprobs": []} for part in "é".encode()]
    listed = [*halves, *spelled("\n", "Grade:", " 2", tops={2: {" 2": -0.5}})]
    verdict = read_reasoned(json.loads(chat("é\nGrade: 2", tokens=listed)))
    assert verdict.masses == pytest.approx((0, 0, math.exp(-0.5), 0, 0))
    assert verdict.rationale == "é"


@given(st.text(), st.text(alphabet="aé\n :Grade034*", max_size=40))
def test_reasons_that_end_in_a_grade_are_split_there_and_anything_else_is_none(before: str, after: str) -> None:
    reasons, grade = split_reasoned(f"{before}\nGrade: 4\n")
    assert grade == 4 and reasons == before.encode(errors="replace").decode().strip()
    split_reasoned(before + after)


@pytest.mark.parametrize("text", ["", "No idea.", "Grade: 5", "Grade: 3\nGrade: 33", "Grade:", "So a Grade: 3", "3"])
def test_reasons_without_a_grade_line_are_rejected_with_what_was_seen(text: str) -> None:
    verdict = read_reasoned(json.loads(chat(text)))
    assert (verdict.masses, verdict.reason, verdict.raw) == (None, NO_GRADE, text)


def test_reasons_are_asked_for_and_kept() -> None:
    texts = ("Same work", ".", "\n", "Grade", ":", " 3")
    reply = send(chat("".join(texts), tokens=spelled(*texts, tops={5: {" 3": -0.2, " 4": -2.0}})))
    with endpoint(reply, send(chat("Same work.\nGrade: 1")), rationale_tokens=50) as (where, seen):
        grader = grader_of(replace(where, max_concurrency=1), dimensions=("role", OVERALL))
        (answers,) = graded_by(grader, pool(1))
    first, second = answers.replies
    assert (first.rationale, second.rationale) == ("Same work.", "Same work.")
    assert first.label_mass == pytest.approx(math.exp(-0.2) + math.exp(-2.0))
    assert second.probs == (0, 1, 0, 0, 0)
    assert seen[0]["max_tokens"] > 50
    assert seen[0]["messages"][-1]["content"].endswith(REASONED_ANSWER)


def test_asking_for_reasons_changes_the_end_of_the_prompt_and_its_hash() -> None:
    pair = {"query": "q", "profile": "p", "document": "d"}
    plain, reasoned = messages(POLICY, "role", **pair), reasoned_messages(POLICY, "role", **pair)
    assert plain[0] == reasoned[0]
    assert plain[1]["content"].rpartition("\n")[0] == reasoned[1]["content"].rpartition("\n")[0]
    for name in ("role", OVERALL):
        assert prompt_hash(POLICY, name) != prompt_hash(POLICY, name, asking=REASONED_ANSWER)
