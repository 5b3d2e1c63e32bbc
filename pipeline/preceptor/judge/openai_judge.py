"""Any OpenAI-compatible endpoint as the judge: bounded, retried, and never guessing a grade it was not given."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from preceptor.contracts import NUM_GRADES
from preceptor.judge.replies import (
    TIMEOUT,
    UNREACHABLE,
    UNREADABLE,
    Answers,
    Reply,
    asked_of,
    graded,
    one_hot,
    pair_columns,
    rejected,
)
from preceptor.policy import Policy, messages

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_TOP_LOGPROBS: Final = 20
_ROW: Final = ("pair_id", "dimension", "masses", "reason", "raw", "attempt")
_SCHEMA: Final = pa.schema(
    [
        ("pair_id", pa.string()),
        ("dimension", pa.string()),
        ("masses", pa.list_(pa.float64())),
        ("reason", pa.string()),
        ("raw", pa.string()),
        ("attempt", pa.int32()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to ask and how patiently. `max_concurrency` requests are open at once per actor, of `num_actors`."""

    base_url: str
    model: str
    api_key: str = field(repr=False)
    max_concurrency: int
    timeout_s: float
    max_attempts: int
    num_actors: int = 1
    first_wait_s: float = _FIRST_WAIT_S


@dataclass(frozen=True, kw_only=True)
class OpenAIJudge:
    """An endpoint asked through an actor pool of Ray Data for one digit per pair and dimension."""

    judge_id: str
    endpoint: Endpoint
    policy: Policy
    dimensions: tuple[str, ...]
    heads: tuple[str, ...] = ()

    def grade(self, pairs: pa.Table) -> Iterator[Answers]:
        """Answers for `pairs`; a server without logprobs yields one-hot probs with a label mass of 1."""
        from ray.data import ActorPoolStrategy

        # Two rounds of requests per batch: enough to hide the slowest, few enough to lose little with a worker.
        batch_size = max(1, 2 * self.endpoint.max_concurrency // max(len(self.dimensions), 1))
        asked = dataset_of(pair_columns(pairs), rows_per_block=batch_size).map_batches(
            EndpointWorker,
            fn_constructor_kwargs={
                "endpoint": self.endpoint,
                "policy": self.policy,
                "dimensions": self.dimensions,
            },
            batch_size=batch_size,
            batch_format="pyarrow",
            num_cpus=0.1,
            compute=ActorPoolStrategy(size=self.endpoint.num_actors),
        )
        for rows in stream(asked, columns=_ROW, what=f"endpoint {self.endpoint.base_url}"):
            yield Answers(replies=tuple(_from_row(row) for row in rows), logits={})


class EndpointWorker:
    """An actor that asks the endpoint for a batch of pairs at a time, many requests at once on one event loop."""

    def __init__(self, *, endpoint: Endpoint, policy: Policy, dimensions: tuple[str, ...]) -> None:
        self.endpoint = endpoint
        self.policy = policy
        self.dimensions = dimensions
        self.runner = asyncio.Runner()
        self.client = open_client(endpoint)
        self.dialect = Dialect()

    def __call__(self, pairs: pa.Table) -> pa.Table:
        """A row for every pair and dimension it is to be asked: grade masses, or the reason for having none."""
        return self.runner.run(self._ask_all(pairs))

    async def _ask_all(self, pairs: pa.Table) -> pa.Table:
        gate = asyncio.Semaphore(self.endpoint.max_concurrency)

        async def one(pair: Mapping[str, str], dimension: str) -> dict[str, Any]:
            asked = messages(
                self.policy, dimension, query=pair["query"], profile=pair["profile"], document=pair["document"]
            )
            async with gate:
                found = await ask(self.client, self.endpoint, self.dialect, asked)
            return {"pair_id": pair["pair_id"], "dimension": dimension, **found}

        wanted = [(pair, name) for pair in pairs.to_pylist() for name in asked_of(pair, self.dimensions)]
        rows = await asyncio.gather(*(one(pair, name) for pair, name in wanted))
        return pa.Table.from_pylist(list(rows), schema=_SCHEMA)


@dataclass(kw_only=True)
class Dialect:
    """What this server turned out to understand; learnt from its first refusals and kept for the worker's life."""

    limit: str = "max_tokens"
    logprobs: bool = True

    def arguments(self) -> dict[str, Any]:
        """The request's arguments in this dialect."""
        wanted = {"logprobs": True, "top_logprobs": _TOP_LOGPROBS} if self.logprobs else {}
        return {self.limit: 1, "temperature": 0.0, **wanted}

    def learn(self, sent: Mapping[str, Any], complaint: str) -> bool:
        """Whether `complaint` (a 400's text) about the arguments `sent` calls for asking again in other words."""
        if "logprobs" in complaint and "logprobs" in sent:
            self.logprobs = False
            return True
        if "max_completion_tokens" in complaint and "max_tokens" in sent:
            self.limit = "max_completion_tokens"
            return True
        return False


def open_client(endpoint: Endpoint) -> AsyncOpenAI:
    """A client that leaves retrying to `ask`."""
    import openai

    return openai.AsyncOpenAI(
        base_url=endpoint.base_url, api_key=endpoint.api_key, timeout=endpoint.timeout_s, max_retries=0
    )


async def ask(client: AsyncOpenAI, endpoint: Endpoint, dialect: Dialect, asked: list[dict[str, str]]) -> dict[str, Any]:
    """`masses` of the five grades, or a `reason`; with `raw`, what was seen, and `attempt`, how many tries it took.

    Timeouts, lost connections, unreadable bodies, 429 and 5xx are tried `max_attempts` times, after Retry-After where
    the server sends it and otherwise after a wait that doubles and is jittered. Any other status is final.
    """
    chat: Any = asked
    attempt, fault = 0, _Fault(reason=UNREACHABLE, raw="", wait_s=None, final=True)
    while attempt < endpoint.max_attempts:
        sent = dialect.arguments()
        try:
            # The outer limit also ends a reply that trickles, which a limit per read would let run for ever.
            async with asyncio.timeout(endpoint.timeout_s):
                answer = await client.chat.completions.create(model=endpoint.model, messages=chat, **sent)
            return {**_read(answer), "attempt": attempt + 1}
        except Exception as error:
            fault = _fault_of(error)
        if fault.reason == "http 400" and dialect.learn(sent, fault.raw):
            continue
        attempt += 1
        if fault.final:
            break
        if attempt < endpoint.max_attempts:
            await asyncio.sleep(wait_s(attempt, fault.wait_s, first_s=endpoint.first_wait_s, draw=random.random))
    return {"masses": None, "reason": fault.reason, "raw": fault.raw, "attempt": attempt}


def wait_s(attempt: int, asked_s: float | None, *, first_s: float, draw: Callable[[], float]) -> float:
    """Seconds to wait after failed try number `attempt`: at least what the server asked for, at most 30 s.

    Without a word from the server it is a uniform draw below a bound that doubles with each try (the "full jitter" of
    Brooker, "Exponential backoff and jitter", 2015).
    """
    if asked_s is not None:
        return min(max(asked_s, 0.0), _LONGEST_WAIT_S)
    return min(first_s * 2 ** (attempt - 1), _LONGEST_WAIT_S) * draw()


@dataclass(frozen=True, kw_only=True)
class _Fault:
    reason: str
    raw: str
    wait_s: float | None
    final: bool


def _fault_of(error: Exception) -> _Fault:
    """What went wrong, or the error again where it is a defect of ours."""
    import openai

    raw = f"{type(error).__name__}: {error}"
    if isinstance(error, (openai.APITimeoutError, TimeoutError)):
        return _Fault(reason=TIMEOUT, raw=raw, wait_s=None, final=False)
    if isinstance(error, openai.APIStatusError):
        status = error.status_code
        final = status not in (408, 409, 429) and status < 500
        return _Fault(reason=f"http {status}", raw=raw, wait_s=_retry_after_s(error.response.headers), final=final)
    if isinstance(error, openai.APIResponseValidationError | ValueError | AttributeError | IndexError | TypeError):
        return _Fault(reason=UNREADABLE, raw=raw, wait_s=None, final=False)
    if isinstance(error, openai.APIConnectionError):
        return _Fault(reason=UNREACHABLE, raw=raw, wait_s=None, final=False)
    raise error


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) else None


def _read(answer: Any) -> dict[str, Any]:
    choice = answer.choices[0]
    text = choice.message.content
    listed = choice.logprobs.content if choice.logprobs is not None else None
    if not listed:
        return {"masses": one_hot(text), "reason": None, "raw": text}
    masses = [0.0] * NUM_GRADES
    for candidate in listed[0].top_logprobs:
        # Some tokenizers write a digit with and without a space before it: both are the grade.
        token = candidate.token.strip()
        if token.isdecimal() and len(token) == 1 and int(token) < NUM_GRADES:
            masses[int(token)] += math.exp(candidate.logprob)
    return {"masses": masses, "reason": None, "raw": text}


def _from_row(row: Mapping[str, Any]) -> Reply:
    if row["reason"] is not None:
        return rejected(row["pair_id"], row["dimension"], row["reason"], raw=row["raw"], attempt=row["attempt"])
    masses = row["masses"] if row["masses"] is not None else (0.0,) * NUM_GRADES
    return graded(row["pair_id"], row["dimension"], masses, raw=row["raw"], attempt=row["attempt"])
