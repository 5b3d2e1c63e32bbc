"""An endpoint as the judge: servers that misbehave, how long a retry waits, its name, and what it grades."""

from __future__ import annotations

import asyncio
import math
import pickle
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.judge.completions import Verdict
from preceptor.judge.endpoint import LONGEST_TOLD_S, Dialect, ask, endpoint_judge_id, open_client, retry_after_s, wait_s
from preceptor.judge.judges import openai_judge
from preceptor.judge.pacing import pace_of
from preceptor.judge.replies import ASK, NO_GRADE, TIMEOUT, UNREACHABLE
from tests.unit.endpoints import (
    GOOD,
    POLICY,
    Behaviour,
    FakeTime,
    asked,
    chat,
    config,
    endpoint,
    graded_by,
    grader_of,
    pool,
    reset,
    send,
)

DATE = "Mon, 02 Mar 2026 10:00:00 GMT"


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
