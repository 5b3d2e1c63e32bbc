"""What stands beside the engine: bounded caches, the gate before int8, cores of one's own, the async face."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preceptor.bundle import DocumentScore
from preceptor.errors import ParityError
from preceptor_serve.engine.caches import ByteCache, content_key
from preceptor_serve.engine.cores import claim_cores
from preceptor_serve.engine.counts import Counts
from preceptor_serve.engine.engine import Engine
from preceptor_serve.engine.gate import TELLING_GAP, RankedRequest, probe_requests, ranking_gap, require_int8
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.metrics import Metrics
from preceptor_serve.scorer import BatchingScorer, Load, Standing, Unavailable, probe
from tests.unit.engines import reader, student


@dataclass(frozen=True)
class Ranking:
    """A scorer that answers with `shift`ed numbers of its own for each document."""

    shift: float = 0.0
    sign: int = 1

    def score_afresh(self, query: str, profile: str, documents: Sequence[str]) -> list[DocumentScore]:
        base = [content_key(query, profile, document)[0] / 255 for document in documents]
        return [scored_as(self.sign * value + self.shift * (index % 2)) for index, value in enumerate(base)]


@dataclass(frozen=True)
class Listed:
    """A scorer that answers with these scores."""

    scores: tuple[float, ...]

    def score_afresh(self, query: str, profile: str, documents: Sequence[str]) -> list[DocumentScore]:
        return [scored_as(score) for score in self.scores]


def scored_as(score: float) -> DocumentScore:
    return DocumentScore(grade_probs=(0.2,) * 5, expected_grade=2.0, actions={}, score=score)


@given(
    asked=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40), st.booleans()), max_size=60),
    bound=st.integers(0, 100),
)
def test_a_cache_keeps_its_bound_and_what_was_asked_for_last(asked: list[tuple[int, int, bool]], bound: int) -> None:
    cache: ByteCache[int] = ByteCache(bound)
    newest: dict[int, int] = {}
    for name, size, reads in asked:
        if reads:
            assert cache.get(bytes([name])) in (None, newest.get(name))
        elif size <= bound:
            newest[name] = size
            cache.put(bytes([name]), size, num_bytes=size)
            assert cache.get(bytes([name])) == size
        assert cache.num_bytes <= bound
    sizes = [cache.get(bytes([name])) for name in range(10)]
    assert cache.num_bytes == sum(size for size in sizes if size is not None)


def test_a_cache_drops_what_was_not_asked_for_longest() -> None:
    cache: ByteCache[str] = ByteCache(3)
    for name in (b"a", b"b", b"c"):
        cache.put(name, name.decode(), num_bytes=1)
    cache.get(b"a")
    cache.put(b"d", "d", num_bytes=1)
    assert [cache.get(name) for name in (b"a", b"b", b"c", b"d")] == ["a", None, "c", "d"]


def test_texts_that_part_otherwise_have_other_keys() -> None:
    assert len({content_key("ab", "c"), content_key("a", "bc"), content_key("abc"), content_key("abc", "")}) == 4


@given(
    left=st.lists(st.floats(0, 1), min_size=2, max_size=8),
    data=st.data(),
)
def test_swapped_pairs_are_counted_as_by_hand(left: list[float], data: st.DataObject) -> None:
    right = data.draw(st.lists(st.floats(0, 1), min_size=len(left), max_size=len(left)))
    request = RankedRequest(query="q", profile="p", documents=("d",) * len(left))
    found = ranking_gap(Listed(tuple(left)), Listed(tuple(right)), [request])
    pairs = [(left[i] - left[j], right[i] - right[j]) for i, j in combinations(range(len(left)), 2)]
    swapped = [gap for gap, other in pairs if (gap > 0 and other < 0) or (gap < 0 and other > 0)]
    assert found.num_pairs == len(pairs)
    assert found.num_swapped == len(swapped)
    assert found.num_telling == sum(abs(gap) > TELLING_GAP for gap, _ in pairs)
    assert found.num_telling_swapped == sum(abs(gap) > TELLING_GAP for gap in swapped)


def test_int8_that_ranks_alike_may_be_used() -> None:
    found = require_int8(Ranking(), Ranking(shift=0.001), bundle_id="b")
    assert found.num_pairs == sum(len(r.documents) * (len(r.documents) - 1) // 2 for r in probe_requests())
    assert found.telling_swapped == 0


@pytest.mark.parametrize("candidate", [Ranking(sign=-1), Ranking(shift=0.3), Ranking(shift=math.nan)])
def test_int8_that_ranks_otherwise_is_refused_with_the_way_out(candidate: Ranking) -> None:
    with pytest.raises(ParityError, match=r"^b: int8 orders .*precision bfloat16\.$"):
        require_int8(Ranking(), candidate, bundle_id="b")


def test_cores_are_claimed_once(tmp_path: Path) -> None:
    mine = sorted(os.sched_getaffinity(0))
    assert claim_cores(len(mine) + 1, folder=tmp_path) == ()
    claimed = [claim_cores(1, folder=tmp_path) for _ in mine]
    assert sorted(core for cores in claimed for core in cores) == mine
    assert claim_cores(1, folder=tmp_path) == ()


def test_a_replica_that_cannot_claim_cores_runs_without(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").touch()
    assert claim_cores(1, folder=tmp_path / "link") == claim_cores(1, folder=tmp_path / "file") == ()
    assert not list((tmp_path / "elsewhere").iterdir())


def standing(name: str, *, num_passes: int, num_tokens: int) -> Standing:
    zero = dict.fromkeys((field.name for field in fields(Counts)), 0)
    counts = Counts(**{**zero, "num_passes": num_passes, "num_tokens": num_tokens, "score_hits": 3})
    return Standing(name=name, counts=counts, load=Load(num_requests=1, num_tokens=70, tokens_per_s=1.0))


def test_metrics_tell_what_each_engine_said_last_until_it_falls_silent() -> None:
    now_s = 0.0
    metrics = Metrics(replica="edge", clock=lambda: now_s)
    metrics.engines.heard(standing("a", num_passes=2, num_tokens=900))
    # An answer that was overtaken by a later one.
    metrics.engines.heard(standing("a", num_passes=1, num_tokens=500))
    now_s = 200.0
    metrics.engines.heard(standing("b", num_passes=1, num_tokens=100))
    text = metrics.render().decode()
    assert 'preceptor_engine_tokens_total{scorer="a"} 900.0' in text
    assert 'preceptor_engine_tokens_total{scorer="b"} 100.0' in text
    assert 'preceptor_engine_cache_hits_total{cache="score",scorer="b"} 3.0' in text
    assert 'preceptor_engine_queued_tokens{scorer="b"} 70.0' in text
    now_s = 400.0
    text = metrics.render().decode()
    assert 'scorer="a"' not in text and 'scorer="b"' in text


def test_an_engine_answers_many_callers_at_once_and_says_when_it_is_gone() -> None:
    engine = Engine(reader(), student(), EngineOptions(precision="float32"))
    scorer = BatchingScorer(engine)
    probe(engine)

    async def ask() -> None:
        requests = [("nurse", f"ward {number}", [f"baker {number}", "welder"]) for number in range(6)]
        answers = await asyncio.gather(*(scorer.score(*request) for request in requests))
        for request, answer in zip(requests, answers, strict=True):
            assert answer.scores == pytest.approx(engine.score(*request))
            assert answer.identity.bundle_id == "tiny"
        assert (await scorer.load()).num_requests == 0

    asyncio.run(ask())
    scorer.check_health()
    engine.close()
    with pytest.raises(Unavailable):
        scorer.check_health()
