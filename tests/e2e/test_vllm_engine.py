"""The engine of a GPU replica on vLLM's CPU build: transformers' logits whatever the order and caches, and its end."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from preceptor.bundle import DocumentScore, open_reader, request_logits, to_score
from preceptor.errors import InputError, StageFailed
from preceptor.ranker.model import load_ranker
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.engine.vllm_engine import VllmEngine
from tests.unit.exporting import export_student, train_student

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

Asked = tuple[str, str, tuple[str, ...]]

WORDS = ("nurse", "night", "remote", "welder", "lead", "python", "Zürich", "part-time", "24/7", "senior")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights whose logits differ by several from document to document."""
    root = tmp_path_factory.mktemp("vllm")
    return export_student(train_student(root / "distill" / "v1", spread=0.5), root)


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Iterator[VllmEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        found = VllmEngine(bundle, EngineOptions(precision="float32"))
    yield found
    found.close()


def drawn(seed: int, *, num_documents: int) -> Asked:
    draw = np.random.default_rng(seed)

    def text(most: int) -> str:
        return " ".join(draw.choice(WORDS, size=draw.integers(1, most)))

    return text(4), text(12), tuple(text(30) for _ in range(num_documents))


def expected(bundle: Path, requests: Sequence[Asked]) -> list[list[DocumentScore]]:
    """What transformers says, in float32."""
    ranker, tokenizer = load_ranker(bundle, dtype=torch.float32)
    blend = open_reader(bundle).blend
    found = request_logits(ranker, tokenizer, requests)
    return [[to_score(row, ranker.heads, blend) for row in rows] for rows in found]


def gap(got: Sequence[DocumentScore], wanted: Sequence[DocumentScore]) -> float:
    """The largest difference of a logit; those of grades are relative to their mean, as softmax leaves them."""
    assert len(got) == len(wanted)
    return max(float(np.abs(_logits(left) - _logits(right)).max()) for left, right in zip(got, wanted, strict=True))


def _logits(score: DocumentScore) -> np.ndarray:
    grades = np.log(score.grade_probs)
    actions = [math.log(prob / (1 - prob)) for _, prob in sorted(score.actions.items())]
    return np.array([*(grades - grades.mean()), *actions])


def test_it_passes_the_bundles_own_probe(engine: VllmEngine) -> None:
    assert engine.probe() <= engine.tolerance


def test_logits_are_transformers_whatever_comes_together_and_is_known(engine: VllmEngine, bundle: Path) -> None:
    requests = [drawn(seed, num_documents=1 + seed % 7) for seed in range(12)]
    # The same member asks again with others' documents: prefixes are known, documents are, pairs are not.
    requests += [(query, profile, requests[-1][2]) for query, profile, _ in requests[:4]]
    wanted = expected(bundle, requests)
    spread = np.ptp([_logits(score) for scores in wanted for score in scores], axis=0)
    assert spread.max() > 1, "logits too alike to tell right from wrong"

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda asked: engine.score(*asked), requests))
        again = list(pool.map(lambda asked: engine.score(*asked), requests[::-1]))[::-1]
        afresh = list(pool.map(lambda asked: engine.score_afresh(*asked), requests))
    for scores, repeated, computed, right in zip(found, again, afresh, wanted, strict=True):
        assert gap(scores, right) <= 1e-4
        assert gap(computed, right) <= 1e-4
        assert repeated == scores, "what is known is answered as it was"


def test_known_documents_are_not_computed_again(engine: VllmEngine) -> None:
    asked = drawn(99, num_documents=5)
    engine.score(*asked)
    before = engine.counts()
    engine.score(*asked)
    after = engine.counts()
    assert (after.num_documents, after.score_hits - before.score_hits) == (before.num_documents, 5)
    engine.score_afresh(*asked)
    assert engine.counts().num_documents == before.num_documents + 5
    assert engine.load().num_requests == 0 and engine.stuck_s() == 0.0


def test_a_request_that_is_given_up_leaves_the_others_alone(engine: VllmEngine, bundle: Path) -> None:
    given_up, kept = drawn(507, num_documents=400), drawn(508, num_documents=3)
    before = engine.counts().num_documents
    first = engine.submit(*given_up)
    wait_until(lambda: engine._engine.get_num_unfinished_requests() > 0, "nothing was begun")
    second = engine.submit(*kept)
    assert first.cancel()
    assert gap(second.result(timeout=60), expected(bundle, [kept])[0]) <= 1e-4
    assert engine.load().num_requests == 0
    wait_until(lambda: engine._engine.get_num_unfinished_requests() == 0, "what was given up is still computed")
    assert engine.counts().num_documents == before + len(kept[2])


def test_int8_is_refused_before_anything_starts(bundle: Path) -> None:
    with pytest.raises(InputError, match="int8 is the CPU engine's"):
        VllmEngine(bundle, EngineOptions(precision="int8"))


def test_a_killed_engine_is_stuck_at_once_and_still_ends(engine: VllmEngine) -> None:
    """The last of this file: the engine that they share is the one that is killed."""
    from vllm.v1.engine.exceptions import EngineDeadError

    (core,) = cores()
    os.kill(core, signal.SIGKILL)
    wait_until(lambda: math.isinf(engine.stuck_s()), "a dead engine passes for a living one")
    with pytest.raises(EngineDeadError):
        engine.submit(*drawn(1000, num_documents=2)).result(timeout=60)
    engine.close()
    assert not cores()
    with pytest.raises(StageFailed, match="the engine is closed"):
        engine.submit(*drawn(1001, num_documents=2))
    engine.close()


def wait_until(happened: Callable[[], bool], failing: str) -> None:
    """Asks again and again: vLLM gives no event for what it has begun, or that it has died."""
    deadline_s = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline_s, failing
        time.sleep(0.01)


def cores() -> list[int]:
    """The processes in which engines of this one compute."""
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if "EngineCore" in child.name()]
