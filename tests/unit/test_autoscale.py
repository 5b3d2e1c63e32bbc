"""How many replicas there should be: by tokens, without flapping, through Serve's own configuration."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor_serve.autoscale import QueuedTokens, Seen, replicas_wanted, seen_in
from preceptor_serve.engine.counts import Counts
from preceptor_serve.meter import Meter
from preceptor_serve.scorer import BatchingScorer, FakeScorer, Load, ThreadedScorer

AIMS = QueuedTokens(target_wait_s=2.0, max_busy=0.8)
IDLE = Seen(
    target=2,
    running=2,
    num_requests=0.0,
    num_ahead=0.0,
    queued_tokens=(0.0, 0.0),
    tokens_per_s=(1000.0, 1000.0),
    request_tokens=(500.0, 500.0),
    busy=(0.0, 0.0),
)


def wanted(seen: Seen, aims: QueuedTokens = AIMS) -> float:
    return replicas_wanted(seen, aims, target_requests=2.0)


def test_seconds_of_waiting_work_ask_for_replicas_whatever_the_number_of_requests():
    few_long = replace(IDLE, num_requests=8.0, queued_tokens=(6000.0, 2001.0), busy=(1.0, 1.0))
    many_short = replace(few_long, num_requests=800.0)
    assert wanted(few_long) == wanted(many_short) == 5
    assert wanted(replace(few_long, tokens_per_s=(4000.0, 4000.0))) == 2, "four times as fast: two suffice"


def test_requests_in_front_of_the_replicas_count_as_the_mean_request_did():
    waiting = replace(IDLE, num_requests=24.0, num_ahead=20.0, queued_tokens=(1000.0, 1000.0), busy=(1.0, 1.0))
    assert wanted(waiting) == 6
    assert wanted(replace(waiting, request_tokens=(50.0, 50.0))) == 2


def test_one_request_is_one_replicas_however_long():
    assert wanted(replace(IDLE, target=1, running=1, num_requests=1.0, queued_tokens=(90_000.0,), busy=(1.0,))) == 1


def test_replicas_stay_while_they_are_needed_to_keep_the_queue_short():
    short = replace(IDLE, target=4, running=4, num_requests=3.0, queued_tokens=(100.0,) * 4)
    assert wanted(replace(short, busy=(0.6,) * 4)) == 3
    assert wanted(replace(short, busy=(0.61,) * 4)) == 4
    assert wanted(replace(short, busy=(0.0,) * 4)) == 1


def test_nothing_is_let_go_while_replicas_start():
    assert wanted(replace(IDLE, target=4, running=2, busy=(0.1, 0.1))) == 4
    unreported = replace(IDLE, busy=(), queued_tokens=())
    assert wanted(unreported) == 2, "who reports nothing may be as busy as can be"


def test_without_a_measured_speed_requests_decide():
    cold = Seen(target=1, running=1, num_requests=6.0, num_ahead=4.0)
    assert wanted(cold) == 3
    assert wanted(replace(cold, tokens_per_s=(0.0,))) == 3
    assert wanted(replace(cold, running=0, target=2)) == 2


reports = st.lists(st.floats(0, 1e7), max_size=6).map(tuple)


@given(
    seen=st.builds(
        Seen,
        target=st.integers(0, 50),
        running=st.integers(0, 50),
        num_requests=st.floats(0, 1e5),
        num_ahead=st.floats(0, 1e5),
        queued_tokens=reports,
        tokens_per_s=reports,
        request_tokens=reports,
        busy=st.lists(st.floats(0, 1), max_size=6).map(tuple),
    ),
    more=st.floats(0, 1e7),
)
def test_more_waiting_tokens_never_ask_for_fewer_replicas(seen: Seen, more: float):
    low, high = wanted(seen), wanted(replace(seen, queued_tokens=(*seen.queued_tokens, more)))
    assert 0 <= low <= high < math.inf
    if any(seen.tokens_per_s):
        assert low <= max(seen.target, math.ceil(seen.num_requests)), "never more than there are requests for"


@settings(max_examples=50)
@given(
    # In tenths: a queue that grows by a thousandth of a replica reaches any bound, but not within the test.
    load=st.integers(1, 79).map(lambda tenths: tenths / 10),
    start_s=st.integers(1, 40),
    before=st.integers(1, 10),
    max_busy=st.floats(0.5, 0.95),
    target_wait_s=st.floats(0.5, 3),
)
def test_a_steady_load_ends_in_a_number_that_stays(
    load: float, start_s: int, before: int, max_busy: float, target_wait_s: float
):
    """`load` replicas' worth of work a second; replicas that are added compute after `start_s`."""
    aims = QueuedTokens(target_wait_s=target_wait_s, max_busy=max_busy)
    target, backlog, ready_s = before, 0.0, [0] * before
    targets = []
    for now_s in range(600):
        running = sum(then_s <= now_s for then_s in ready_s)
        done = min(float(running), backlog + load)
        backlog += load - done
        seen = Seen(
            target=target,
            running=running,
            # Always enough requests: what is tested is the work.
            num_requests=1000.0,
            num_ahead=0.0,
            queued_tokens=(1000 * backlog / running,) * running,
            tokens_per_s=(1000.0,) * running,
            busy=(done / running,) * running,
        )
        target = min(max(math.ceil(wanted(seen, aims)), 1), 16)
        ready_s = [*ready_s, *[now_s + start_s] * (target - len(ready_s))][:target]
        targets.append(target)
    settled = targets[300:]
    assert len(set(settled)) == 1, targets
    assert load <= settled[0] <= math.ceil(load / max_busy)
    assert backlog <= target_wait_s * settled[0] + load


@pytest.mark.parametrize("wrong", [{"target_wait_s": 0}, {"target_wait_s": math.inf}, {"max_busy": 0}, {"max_busy": 2}])
def test_aims_that_cannot_be_met_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QueuedTokens(**wrong)


def test_serve_runs_the_policy_that_the_application_names():
    from ray.serve._private.autoscaling_state import _resolve_policy_callable
    from ray.serve.config import AutoscalingConfig

    from preceptor_serve.app import AppArgs, autoscaling_of

    args = AppArgs(bundle="b", max_replicas=9, target_wait_s=1.5, max_busy=0.5, target_ongoing_requests=3)
    config = AutoscalingConfig(**autoscaling_of(args))
    # As the controller gets it: by value, out of what travelled.
    policy = _resolve_policy_callable(config.policy)
    context = SimpleNamespace(
        target_num_replicas=1,
        current_num_replicas=1,
        total_num_requests=12.0,
        total_queued_requests=0.0,
        aggregated_metrics={"queued_tokens": {"r1": 4500.0}, "tokens_per_s": {"r1": 1000.0}, "busy": {"r1": 1.0}},
        config=config,
    )
    assert policy(context) == (3, {})
    context.aggregated_metrics = None
    assert seen_in(cast(Any, context)).queued_tokens == ()
    assert policy(context) == (4, {}), "nothing reported: by requests, three for each"


def counts(num_tokens: int, busy_s: float) -> Counts:
    rest = dict.fromkeys(
        ("score_hits", "score_misses", "prefix_hits", "prefix_misses", "token_hits", "token_misses"), 0
    )
    return Counts(
        num_passes=1, num_tokens=num_tokens, num_padding_tokens=0, num_documents=1, busy_s=busy_s, **cast(Any, rest)
    )


def test_a_replica_tells_what_it_measured_and_nothing_else():
    meter = Meter(counts(500, 3.0), now_s=10.0)
    assert meter.read(counts(500, 3.0), queued_tokens=7, now_s=10.1) == {"queued_tokens": 7, "busy": 0}
    for _ in range(4):
        meter.asked()
    read = meter.read(counts(2500, 4.0), queued_tokens=0, now_s=12.0)
    assert read == {"queued_tokens": 0, "busy": 0.5, "tokens_per_s": 2000, "request_tokens": 500}
    again = meter.read(counts(2600, 4.1), queued_tokens=0, now_s=12.1)
    assert again == read, "too soon for another measurement"
    idle = meter.read(counts(2500, 4.0), queued_tokens=0, now_s=20.0)
    assert idle == {**read, "busy": 0}


def test_a_replica_that_becomes_slower_is_noticed():
    meter = Meter(counts(0, 0.0), now_s=0.0)
    tokens, busy_s, now_s = 0, 0.0, 0.0
    for speed in [*[1000] * 5, *[100] * 15]:
        tokens, busy_s, now_s = tokens + speed, busy_s + 1.0, now_s + 1.0
        meter.asked()
        read = meter.read(counts(tokens, busy_s), queued_tokens=0, now_s=now_s)
    assert read["tokens_per_s"] == pytest.approx(100, rel=0.35)
    assert read["busy"] == 1.0


def test_a_replica_reports_its_engine_to_serve_and_ends_it_once(monkeypatch: pytest.MonkeyPatch):
    from preceptor_serve.engine.options import EngineOptions
    from preceptor_serve.replica import ScorerReplica

    closed = []
    engine = SimpleNamespace(
        counts=lambda: counts(500, 3.0),
        load=lambda: Load(num_requests=2, num_tokens=70, tokens_per_s=1.0),
        close=lambda: closed.append(True),
    )
    monkeypatch.setattr("preceptor_serve.replica.load_serving", lambda *_, **__: BatchingScorer(cast(Any, engine)))
    monkeypatch.setattr("preceptor_serve.replica.given_resources", dict)
    replica = ScorerReplica("bundle", EngineOptions())
    assert replica.record_autoscaling_stats() == {"queued_tokens": 70, "busy": 0}
    # Serve calls it when all is answered, and Python once more.
    replica.__del__()
    replica.__del__()
    assert closed == [True]


def test_a_replica_without_an_engine_reports_nothing(monkeypatch: pytest.MonkeyPatch):
    from preceptor_serve.engine.options import EngineOptions
    from preceptor_serve.replica import ScorerReplica

    monkeypatch.setattr("preceptor_serve.replica.load_serving", lambda *_, **__: ThreadedScorer(FakeScorer()))
    monkeypatch.setattr("preceptor_serve.replica.given_resources", dict)
    assert ScorerReplica("bundle", EngineOptions()).record_autoscaling_stats() == {}
