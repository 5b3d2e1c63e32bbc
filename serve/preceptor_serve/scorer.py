"""From a bundle to scores, without HTTP and without Ray.

`Scorer` is what a bundle offers: a blocking call. `AsyncScorer` is what the HTTP edge needs: an awaitable answer that
says which bundle gave it. `ThreadedScorer` turns the first into the second inside one process, one request after the
other; `BatchingScorer` does so for an engine, which computes requests together.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import traceback
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from preceptor.bundle import Blend, DocumentScore, load_bundle
from preceptor.contracts import ACTIONS, NUM_GRADES, content_id
from preceptor.errors import PreceptorError, StageFailed
from preceptor.precedence import take_precedence
from preceptor_serve.engine.counts import Counts
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.health import HANG_AFTER_S

_log = logging.getLogger(__name__)

T = TypeVar("T")

PROBE_QUERY = "warehouse operative nights"
PROBE_PROFILE = "Forklift licence, four years in distribution, looking for night shifts."
PROBE_DOCUMENTS = ("Night shift warehouse operative, forklift licence required.", "Senior tax adviser, office based.")


class Overloaded(PreceptorError):
    """Too many requests are waiting already; the caller should come back after `retry_after_s`."""

    exit_code = 1

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(PreceptorError):
    """No replica can answer now: starting, restarting or gone."""

    exit_code = 1


class TimedOut(PreceptorError):
    """The answer did not come in the time a request may take."""

    exit_code = 1


class TooLate(TimedOut):
    """The answer did not come by the deadline that the request itself named."""


class Broken(PreceptorError):
    """A defect inside a scorer, named by its type alone: what it says may quote a member."""

    exit_code = 1


class BadScore(PreceptorError):
    """A scorer's output that must not leave the house: not finite, out of range, or of the wrong number."""

    exit_code = 1


class Scorer(Protocol):
    """A loaded bundle, as this package needs it."""

    @property
    def bundle_id(self) -> str: ...

    @property
    def policy_version(self) -> str: ...

    def score(self, query: str, profile: str, documents: Sequence[str]) -> Sequence[DocumentScore]: ...


@runtime_checkable
class Probing(Protocol):
    """A scorer with known answers: `probe` returns how far it is from them and raises where that is too far."""

    def probe(self) -> float: ...


class Batching(Protocol):
    """A scorer that takes many requests at once and computes them together: see preceptor_serve.engine."""

    @property
    def bundle_id(self) -> str: ...

    @property
    def policy_version(self) -> str: ...

    def submit(self, query: str, profile: str, documents: Sequence[str]) -> Future[tuple[DocumentScore, ...]]: ...

    def score(self, query: str, profile: str, documents: Sequence[str]) -> tuple[DocumentScore, ...]: ...

    def load(self) -> Load: ...

    def counts(self) -> Counts: ...

    def stuck_s(self) -> float: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Load:
    """What waits in an engine, and how fast it has been going: enough to tell whether a deadline can be met."""

    num_requests: int
    num_tokens: int
    tokens_per_s: float


@runtime_checkable
class Blending(Protocol):
    """A scorer that says how its scores blend expected grade and actions."""

    @property
    def blend(self) -> Blend: ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which bundle answers, the policy it was trained under, and its own blend where it says so."""

    bundle_id: str
    policy_version: str
    blend: Blend | None = None


def identity_of(scorer: Scorer) -> Identity:
    """Who `scorer` is."""
    blend = scorer.blend if isinstance(scorer, Blending) else None
    return Identity(bundle_id=scorer.bundle_id, policy_version=scorer.policy_version, blend=blend)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How the engine of the replica `name` stood when it answered: what it has done, and what waits."""

    name: str
    counts: Counts
    load: Load


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One score for each document of a request, in its order, who gave them, and how its engine stands."""

    identity: Identity
    scores: tuple[DocumentScore, ...]
    standing: Standing | None = None


class AsyncScorer(Protocol):
    """What the HTTP edge calls. Raises Overloaded, Unavailable or TimedOut."""

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer: ...

    async def identity(self) -> Identity: ...


def checked(scores: Sequence[DocumentScore], *, num_documents: int) -> tuple[DocumentScore, ...]:
    """`scores` as they came; BadScore unless there are `num_documents` finite ones whose probabilities are such."""
    if len(scores) != num_documents:
        raise BadScore(f"one score for each document: got {len(scores)} scores of {num_documents} documents")
    for index, score in enumerate(scores):
        probabilities = (*score.grade_probs, *score.actions.values())
        if len(score.grade_probs) != NUM_GRADES:
            raise BadScore(f"document {index}: {len(score.grade_probs)} grade probabilities, expected {NUM_GRADES}")
        if not all(map(math.isfinite, (score.score, score.expected_grade, *probabilities))):
            raise BadScore(f"document {index}: a score that is not finite")
        if not all(0 <= probability <= 1 for probability in probabilities):
            raise BadScore(f"document {index}: a probability outside 0..1")
        if abs(sum(score.grade_probs) - 1) > 1e-3:
            raise BadScore(f"document {index}: grade probabilities that add up to {sum(score.grade_probs):.4f}, not 1")
    return tuple(scores)


@contextmanager
def without_texts() -> Iterator[None]:
    """Runs the body; a defect in it is raised as Broken, so that whoever logs it cannot log a member's words."""
    try:
        yield
    except PreceptorError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise Broken(f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}") from None


async def all_of(asked: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What each of `asked` gives, in order, all at work side by side.

    The first failure calls the others off and is raised as it is, not in the group that asyncio makes of it.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in asked]
    except BaseExceptionGroup as failures:  # Whatever failed: who asked for it counts it.
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


class ThreadedScorer:
    """An AsyncScorer around a blocking Scorer: one thread, so one request computes while others wait their turn.

    `hang_after_s` is how long a single request may compute before `check_health` calls this scorer hung.
    """

    def __init__(self, scorer: Scorer, *, hang_after_s: float = HANG_AFTER_S) -> None:
        self._scorer = scorer
        self._hang_after_s = hang_after_s
        self._started_s: float | None = None
        self._num_waiting = 0
        # One thread: a request uses all of the replica's cores, and a second beside it would only add switching.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer", initializer=take_precedence)

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer:
        """The scores of `documents`, unchecked. A request whose caller has gone before its turn is never computed."""
        loop = asyncio.get_running_loop()
        self._num_waiting += 1
        try:
            scores = await loop.run_in_executor(self._executor, self._compute, query, profile, tuple(documents))
        finally:
            self._num_waiting -= 1
        return Answer(identity=identity_of(self._scorer), scores=scores)

    async def identity(self) -> Identity:
        return identity_of(self._scorer)

    def check_health(self) -> None:
        """Nothing; Unavailable where the request now computing started more than `hang_after_s` ago."""
        started_s = self._started_s
        if started_s is not None and time.monotonic() - started_s > self._hang_after_s:
            raise Unavailable(f"a request has been computing for over {self._hang_after_s:g} s; restart the replica")

    async def load(self) -> Load:
        """What waits or is computed now. Its tokens are not known: nothing has read the texts."""
        return Load(num_requests=self._num_waiting, num_tokens=0, tokens_per_s=0.0)

    def close(self) -> None:
        """End the thread once it has computed what it computes now."""
        self._executor.shutdown(cancel_futures=True)

    def _compute(self, query: str, profile: str, documents: tuple[str, ...]) -> tuple[DocumentScore, ...]:
        self._started_s = time.monotonic()
        try:
            return tuple(self._scorer.score(query, profile, documents))
        finally:
            self._started_s = None


class BatchingScorer:
    """An AsyncScorer around an engine. What its caller no longer waits for is taken off the engine's queue.

    `hang_after_s` is how long the engine may compute without a sign before `check_health` calls it hung.
    """

    def __init__(self, engine: Batching, *, hang_after_s: float = HANG_AFTER_S) -> None:
        self._engine = engine
        self._hang_after_s = hang_after_s
        # Told apart from its siblings, and from the one it takes the place of.
        self._name = uuid.uuid4().hex[:8]

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer:
        """The scores of `documents`, unchecked."""
        scores = await asyncio.wrap_future(self._engine.submit(query, profile, documents))
        return Answer(identity=await self.identity(), scores=scores, standing=self.standing())

    def standing(self) -> Standing:
        """How the engine stands now."""
        return Standing(name=self._name, counts=self._engine.counts(), load=self._engine.load())

    async def identity(self) -> Identity:
        return identity_of(self._engine)

    async def load(self) -> Load:
        """What waits in the engine now."""
        return self._engine.load()

    def check_health(self) -> None:
        """Nothing; Unavailable where the engine has been silent for `hang_after_s`, or is gone."""
        if self._engine.stuck_s() > self._hang_after_s:
            raise Unavailable(f"the engine has been computing for over {self._hang_after_s:g} s; restart the replica")

    def close(self) -> None:
        """End the engine; what still waits is cancelled."""
        self._engine.close()


def load_batching(bundle: Path, options: EngineOptions, *, num_gpus: float = 0.0) -> Batching:
    """The bundle at `bundle` in an engine, probed: vLLM's on a GPU, else the packed one of this project.

    InputError where it cannot be loaded so; else as `probe`.
    """
    engine: Batching
    if num_gpus:
        from preceptor_serve.engine.vllm_engine import VllmEngine

        engine = VllmEngine(bundle, options)
    else:
        from preceptor_serve.engine.loading import load_engine

        engine = load_engine(bundle, options)
    try:
        probe(engine)
    except BaseException:
        engine.close()
        raise
    return engine


def load_serving(bundle: Path, options: EngineOptions, *, num_gpus: float = 0.0) -> BatchingScorer | ThreadedScorer:
    """The bundle at `bundle` as a replica serves it, probed: in an engine, or, with a notice, as transformers has it.

    The latter where the packed engine does not know its architecture. Else as `load_batching`.
    """
    from preceptor_serve.engine.weights import UnknownArchitecture

    try:
        return BatchingScorer(load_batching(bundle, options, num_gpus=num_gpus))
    except UnknownArchitecture as error:
        _log.warning("%s: %s. Served by transformers in bfloat16, one request at a time.", bundle, error)
        return ThreadedScorer(load_scorer(bundle))


def load_scorer(bundle: Path) -> Scorer:
    """The bundle at `bundle`, probed before it is handed out. InputError where it cannot be loaded; else as `probe`."""
    scorer = load_bundle(bundle)
    probe(scorer)
    return scorer


def probe(scorer: Scorer) -> None:
    """Nothing; StageFailed where `scorer` cannot score a fixed request, ParityError where it misses a known answer.

    Also warms the model, so that the first member does not wait for it.
    """
    try:
        checked(scorer.score(PROBE_QUERY, PROBE_PROFILE, PROBE_DOCUMENTS), num_documents=len(PROBE_DOCUMENTS))
    except BadScore as error:
        raise StageFailed(f"bundle {scorer.bundle_id} fails its probe: {error}. Export it again.") from error
    if isinstance(scorer, Probing):
        scorer.probe()


def hashed_score(query: str, profile: str, document: str) -> DocumentScore:
    """A score that depends on the three texts alone and means nothing."""
    digest = bytes.fromhex(content_id(query, profile, document))
    weights = [byte + 1 for byte in digest[:NUM_GRADES]]
    grade_probs = tuple(weight / sum(weights) for weight in weights)
    expected_grade = sum(grade * prob for grade, prob in enumerate(grade_probs))
    actions = {action: byte / 255 for action, byte in zip(ACTIONS, digest[NUM_GRADES:], strict=False)}
    return DocumentScore(
        grade_probs=grade_probs, expected_grade=expected_grade, actions=actions, score=expected_grade / (NUM_GRADES - 1)
    )


@dataclass(frozen=True, kw_only=True)
class FakeScorer:
    """A Scorer without a model, for tests and client development: `rule` says what each document gets."""

    bundle_id: str = "fake-bundle"
    policy_version: str = "0.0.0+00000000"
    blend: Blend = field(default_factory=lambda: Blend(relevance=1.0, click=0.0, apply=0.0))
    rule: Callable[[str, str, str], DocumentScore] = hashed_score

    def score(self, query: str, profile: str, documents: Sequence[str]) -> list[DocumentScore]:
        return [self.rule(query, profile, document) for document in documents]
