"""Which bundle answers whom, what a failing candidate does to a request, how states follow each other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.contracts import read_table
from preceptor.errors import StageFailed
from preceptor_serve.comparing import COMPARED, Compared, Comparisons
from preceptor_serve.following import Follower
from preceptor_serve.routing import (
    Routing,
    is_canary,
    promoted,
    retired,
    rolled_back,
    routing_from,
    shadowed,
    shared,
    staged,
)
from preceptor_serve.scorer import (
    Answer,
    AsyncScorer,
    BadScore,
    FakeScorer,
    Identity,
    Overloaded,
    ThreadedScorer,
    TimedOut,
    Unavailable,
)
from preceptor_serve.splitting import SplitScorer, Table
from tests.unit.serving import BODY, GOOD, SECRET, FailingScorer, FixedScorer, client

LIVE = Routing(live="app")
CANARY = replace(LIVE, candidate="app-new", share=1.0)
SHADOW = replace(LIVE, candidate="app-new", shadow=1.0)
TEXTS = st.text(min_size=1, max_size=20)


def bundle(name: str) -> ThreadedScorer:
    return ThreadedScorer(FakeScorer(bundle_id=name))


def split(
    routing: Routing, candidate: AsyncScorer | None, *, live: AsyncScorer | None = None, **options
) -> SplitScorer:
    keep = options.pop("keep", None)
    table = Table(routing=routing, live=live or bundle("old"), candidate=candidate, keep=keep)
    return SplitScorer(table, draw=lambda: 0.5, **options)


def answered_by(scorer: SplitScorer, profile: str = "p") -> str:
    return asyncio.run(scorer.score("q", profile, ["d"])).identity.bundle_id


@dataclass
class StuckScorer:
    """An AsyncScorer that answers once it is let go, and then as `then` does."""

    then: AsyncScorer
    num_calls: int = 0

    def __post_init__(self) -> None:
        self.go = asyncio.Event()

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer:
        self.num_calls += 1
        await self.go.wait()
        return await self.then.score(query, profile, documents)

    async def identity(self) -> Identity:
        return await self.then.identity()


# Who is answered by the candidate


@settings(max_examples=30)
@given(st.lists(TEXTS, unique=True, min_size=1, max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_a_greater_share_keeps_whom_a_smaller_one_had(profiles, one, other):
    small, great = sorted((one, other))
    for profile in profiles:
        if is_canary(replace(CANARY, share=small), "q", profile):
            assert is_canary(replace(CANARY, share=great), "q", profile)


@given(TEXTS, st.text(), st.text(), st.floats(0, 1))
def test_a_member_is_known_by_the_profile_whatever_is_asked(profile, query, other, share):
    if profile.strip():
        routing = replace(CANARY, share=share)
        assert is_canary(routing, query, profile) == is_canary(routing, other, profile)


def test_a_share_is_that_share_of_members_and_each_candidate_draws_anew():
    def members(candidate: str) -> set[int]:
        routing = replace(CANARY, candidate=candidate, share=0.2)
        return {number for number in range(2000) if is_canary(routing, "q", f"member {number}")}

    first, second = members("a"), members("b")
    assert 320 < len(first) < 480 and 320 < len(second) < 480
    assert len(first & second) < 120
    assert not any(is_canary(replace(CANARY, share=0.0), "q", f"{n}") for n in range(50))
    assert all(is_canary(CANARY, f"query {n}", " ") for n in range(50))
    queries = {is_canary(replace(CANARY, share=0.5), f"query {n}", "") for n in range(50)}
    assert queries == {True, False}, "without a profile the query decides"


# What is answered


def test_the_candidate_answers_its_share_and_says_so():
    assert answered_by(split(CANARY, bundle("new"))) == "new"
    assert answered_by(split(replace(CANARY, share=0.0), bundle("new"))) == "old"
    assert answered_by(split(CANARY, None)) == "old"


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (FailingScorer(Overloaded("full")), "overloaded"),
        (FailingScorer(Unavailable("gone")), "unavailable"),
        (FailingScorer(TimedOut("late")), "timeout"),
        (FailingScorer(RuntimeError(SECRET)), "defect"),
        (FixedScorer((replace(GOOD, score=float("nan")),)), "bad_score"),
        (FixedScorer((GOOD, GOOD)), "bad_score"),
    ],
)
def test_a_candidate_that_fails_costs_no_request(candidate, reason, caplog):
    with caplog.at_level(logging.DEBUG):
        scorer = split(CANARY, candidate)
        assert answered_by(scorer) == "old"
    assert dict(scorer.series.fallbacks) == {reason: 1} and scorer.series.canaries == 0
    assert SECRET not in caplog.text


def test_a_candidate_that_hangs_costs_no_request():
    async def run() -> None:
        scorer = split(CANARY, StuckScorer(bundle("new")), canary_s=0.01)
        assert (await scorer.score("q", "p", ["d"])).identity.bundle_id == "old"
        assert dict(scorer.series.fallbacks) == {"timeout": 1}

    asyncio.run(run())


def test_an_error_of_the_live_bundle_is_not_hidden():
    with pytest.raises(BadScore):
        answered_by(split(LIVE, None, live=FailingScorer(BadScore("nan"))))
    with pytest.raises(Unavailable):
        answered_by(split(CANARY, FailingScorer(Overloaded("full")), live=FailingScorer(Unavailable("gone"))))


def test_the_table_may_change_between_two_requests():
    scorer = split(CANARY, bundle("new"))
    assert answered_by(scorer) == "new"
    scorer.follow(Table(routing=LIVE, live=bundle("old")))
    assert answered_by(scorer) == "old"


# Shadow


def test_a_shadow_is_scored_after_the_answer_and_compared():
    kept: list[Compared] = []

    def keep(seen: Compared) -> bool:
        kept.append(seen)
        return True

    async def run() -> None:
        candidate = StuckScorer(bundle("new"))
        scorer = split(SHADOW, candidate, keep=keep)
        answer = await scorer.score("q", "p", ["d", "e"])
        assert answer.identity.bundle_id == "old" and kept == []
        candidate.go.set()
        await scorer.settled()
        (seen,) = kept
        assert seen.live == answer
        assert seen.candidate is not None and seen.candidate.identity.bundle_id == "new"
        assert dict(scorer.series.shadows) == {"compared": 1}

    asyncio.run(run())


def test_more_shadows_than_fit_are_dropped_and_counted():
    async def run() -> None:
        candidate = StuckScorer(bundle("new"))
        scorer = split(SHADOW, candidate, max_shadows=2)
        for _ in range(5):
            await scorer.score("q", "p", ["d"])
        await asyncio.sleep(0)
        assert candidate.num_calls == 2 and scorer.series.shadows["dropped"] == 3
        candidate.go.set()
        await scorer.settled()
        assert dict(scorer.series.shadows) == {"compared": 2, "dropped": 3}
        await scorer.score("q", "p", ["d"])
        assert scorer.series.shadows["dropped"] == 3, "there is room again"

    asyncio.run(run())


def test_a_shadow_that_fails_or_is_not_drawn_changes_nothing():
    kept: list[Compared] = []

    def full(seen: Compared) -> bool:
        kept.append(seen)
        return False

    async def run() -> None:
        scorer = split(SHADOW, FailingScorer(RuntimeError(SECRET)), keep=full)
        assert (await scorer.score("q", "p", ["d"])).identity.bundle_id == "old"
        await scorer.settled()
        assert dict(scorer.series.shadows) == {"lost": 1}
        assert kept[0].failure == "defect"
        undrawn = split(replace(SHADOW, shadow=0.5), FailingScorer(RuntimeError("never asked")))
        await undrawn.score("q", "p", ["d"])
        assert not undrawn.series.shadows

    asyncio.run(run())


def test_comparisons_are_written_without_texts(tmp_path: Path):
    kept = Comparisons(tmp_path / "shadow", replica="a/b")
    live = asyncio.run(bundle("old").score(SECRET, SECRET, [SECRET, "d"]))
    other = asyncio.run(bundle("new").score(SECRET, "another", [SECRET, "d"]))
    seen = Compared.of(SECRET, SECRET, (SECRET, "d"), live, 1.5)
    assert kept.offer(seen.beside(other, took_ms=2.5))
    assert kept.offer(seen.failed("timeout", took_ms=9.0))
    kept.close()
    assert not kept.offer(seen), "closed"
    rows = read_table(tmp_path / "shadow", COMPARED).to_pylist(maps_as_pydicts="strict")
    assert [row["failure"] for row in rows] == [None, "timeout"]
    assert rows[0]["live"]["score"] == [score.score for score in live.scores]
    assert rows[0]["candidate"]["actions"]["click"] == [score.actions["click"] for score in other.scores]
    grades = rows[0]["live"]["grade"]
    assert all(score.grade_probs[g] == max(score.grade_probs) for g, score in zip(grades, live.scores, strict=True))
    assert rows[1]["candidate"] is None and rows[1]["candidate_bundle"] is None
    assert not any(SECRET.encode() in file.read_bytes() for file in (tmp_path / "shadow").iterdir())


# What is told


def test_models_names_both_where_both_answer_and_metrics_count():
    session = client(split(CANARY, bundle("new")))
    assert [model["id"] for model in session.get("/v1/models").json()["data"]] == ["old", "new"]
    assert session.post("/v1/score", json=BODY).json()["bundle_id"] == "new"
    text = session.get("/metrics").text
    assert 'preceptor_canary_answers_total{replica="local"} 1.0' in text
    assert 'preceptor_canary_share{replica="local"} 1.0' in text
    one = client(split(SHADOW, bundle("new")))
    assert [model["id"] for model in one.get("/v1/models").json()["data"]] == ["old"]
    gone = client(split(CANARY, FailingScorer(Unavailable("gone"))))
    assert [model["id"] for model in gone.get("/v1/models").json()["data"]] == ["old"]


# States


def test_a_rollout_goes_forward_and_back():
    beside = staged(LIVE, "app-new")
    assert (beside.live, beside.candidate, beside.share) == ("app", "app-new", 0.0)
    assert staged(beside, "app-new") == beside
    third = shadowed(shared(beside, 0.3), 0.2, "folder")
    assert staged(third, "app-new") == third, "to stage it again takes nothing away"
    assert rolled_back(third) == replace(third, share=0.0, shadow=0.0)
    live = promoted(third)
    assert (live.live, live.candidate, live.previous, live.share, live.shadow) == ("app-new", None, "app", 0.0, 0.0)
    back = rolled_back(live)
    assert (back.live, back.candidate, back.previous) == ("app", "app-new", None)
    assert rolled_back(back) == back, "twice is once"
    assert rolled_back(LIVE) == LIVE
    assert retired(back, own="app").slots == ("app",)
    assert retired(live, own="app").slots == ("app-new", "app"), "the application's own scorers cannot end"
    assert routing_from(third.to_json()) == third


def test_steps_that_cannot_be_are_refused():
    beside = staged(LIVE, "app-new")
    for step in (
        lambda: staged(LIVE, "app"),
        lambda: shared(LIVE, 0.1),
        lambda: promoted(LIVE),
        lambda: shared(beside, 1.1),
        lambda: shadowed(beside, float("nan"), None),
        lambda: staged(shared(beside, 0.1), "app-third"),
        lambda: retired(shared(beside, 0.1), own="app"),
    ):
        with pytest.raises(StageFailed) as caught:
            step()
        assert "\n" not in str(caught.value)
    assert staged(beside, "app-third").candidate == "app-third"


@dataclass
class Cluster:
    """What an edge finds: a state, and slots with a bundle in each."""

    routing: Routing
    slots: dict[str, AsyncScorer]

    def follower(self, scorer: SplitScorer, own: AsyncScorer) -> Follower:
        return Follower(
            scorer, app="app", own=own, replica="r", find=self.slots.__getitem__, read=lambda app: self.routing
        )


def test_an_edge_follows_the_state_and_not_into_nothing(tmp_path: Path):
    own = bundle("old")
    scorer = split(LIVE, None, live=own)
    cluster = Cluster(routing=LIVE, slots={"app-new": bundle("new")})
    follower = cluster.follower(scorer, own)
    cluster.routing = replace(CANARY, revision=1)
    assert answered_by(scorer) == "old"
    assert follower.catch_up() == 1 and answered_by(scorer) == "new"
    cluster.routing = replace(promoted(CANARY), revision=2)
    assert follower.catch_up() == 2 and answered_by(scorer) == "new"
    cluster.routing = Routing(live="app-gone", revision=3)
    assert follower.catch_up() == 2 and answered_by(scorer) == "new", "what is not there is not followed"
    cluster.routing = Routing(live="app", candidate="app-gone", share=1.0, revision=4)
    assert follower.catch_up() == 4 and answered_by(scorer) == "old", "a candidate that is gone stops no way back"
    cluster.routing = replace(SHADOW, folder=str(tmp_path / "shadow"), revision=5)
    assert follower.catch_up() == 5

    async def ask() -> None:
        await scorer.score("q", "p", ["d"])
        await scorer.settled()

    asyncio.run(ask())
    follower.end()
    assert read_table(tmp_path / "shadow", COMPARED).num_rows == 1


def test_a_folder_that_cannot_be_made_stops_no_shadow(tmp_path: Path):
    (tmp_path / "file").write_text("")
    own = bundle("old")
    scorer = split(LIVE, None, live=own)
    folder = str(tmp_path / "file" / "shadow")
    cluster = Cluster(routing=replace(SHADOW, folder=folder, revision=1), slots={"app-new": bundle("new")})
    assert cluster.follower(scorer, own).catch_up() == 1
    assert answered_by(scorer) == "old"
