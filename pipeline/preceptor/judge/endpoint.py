"""Asking an OpenAI-compatible endpoint: bounded, paced, retried, and never guessing a grade it was not given."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from preceptor.judge.completions import Prices, Verdict, read_grade, read_reasoned, usage_of
from preceptor.judge.pacing import Clock, Pace
from preceptor.judge.replies import TIMEOUT, UNREACHABLE, UNREADABLE, Usage

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Chat = list[dict[str, str]]

LONGEST_BACKOFF_S: Final = 30.0
LONGEST_TOLD_S: Final = 300.0
"""A server may ask for a longer wait than we would choose; beyond this a row is better asked by a later run."""

UNREADABLE_ERRORS: Final = (ValueError, LookupError, AttributeError, TypeError, RecursionError)
"""What reading a body raises where it is no JSON, or JSON of another shape."""

_FIRST_WAIT_S: Final = 0.5
_TOP_LOGPROBS: Final = 20
_FEW_TOP_LOGPROBS: Final = 5

# 'Grade: N' after the reasons, with the line break before it and whatever marks a model puts around it.
_GRADE_LINE_TOKENS: Final = 12

_TOO_MANY: Final = "http 429"

# A server also says 429 to a single request that is larger than its limit, whatever it answers to others.
_MOST_TURNS: Final = 20

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to ask, how patiently, how fast and at which prices.

    `max_concurrency` requests are open at once per actor, of `num_actors`; rates are for all actors together.
    `rationale_tokens` above 0 asks for reasons before each grade.
    """

    base_url: str
    model: str
    api_key: str = field(repr=False)
    max_concurrency: int
    timeout_s: float
    max_attempts: int
    num_actors: int = 1
    first_wait_s: float = _FIRST_WAIT_S
    rationale_tokens: int = 0
    max_requests_per_minute: int | None = None
    max_tokens_per_minute: int | None = None
    prices: Prices = field(default_factory=Prices)


@dataclass(kw_only=True)
class Dialect:
    """What a server understands; online it is learnt from its first refusals and kept for the actor's life."""

    limit: str = "max_tokens"
    top_logprobs: int = _TOP_LOGPROBS
    temperature: float | None = 0.0

    def arguments(self, endpoint: Endpoint) -> dict[str, Any]:
        """A request's arguments in this dialect, apart from model and messages."""
        wanted = {"logprobs": True, "top_logprobs": self.top_logprobs} if self.top_logprobs else {}
        drawn = {} if self.temperature is None else {"temperature": self.temperature}
        return {self.limit: num_new_tokens(endpoint), **drawn, **wanted}

    def learn(self, sent: Mapping[str, Any], complaint: str) -> bool:
        """Whether `complaint` (a 400's text) about the arguments `sent` calls for asking again in other words."""
        if "logprobs" in complaint and "logprobs" in sent:
            fewer = "top_logprobs" in complaint and sent["top_logprobs"] > _FEW_TOP_LOGPROBS
            self.top_logprobs = min(self.top_logprobs, _FEW_TOP_LOGPROBS if fewer else 0)
            return True
        if "max_completion_tokens" in complaint and "max_tokens" in sent:
            self.limit = "max_completion_tokens"
            return True
        if "temperature" in complaint and "temperature" in sent:
            # Models that reason before they answer often draw at one temperature of their own and take no other.
            self.temperature = None
            return True
        return False


def num_new_tokens(endpoint: Endpoint) -> int:
    """How many tokens an answer may have: one digit, or the reasons and a line for the grade."""
    return endpoint.rationale_tokens + _GRADE_LINE_TOKENS if endpoint.rationale_tokens else 1


def endpoint_judge_id(endpoint: Endpoint) -> str:
    """``openai:MODEL@HOST[:PORT]/PATH``, and ``+reasons`` where reasons are asked for.

    Two endpoints may serve different weights under one name. Neither credentials nor a query go in: they name who
    asks, not what answers. How long reasons may get is left out: those that are cut hold no grade, the others are the
    same.
    """
    parts = urlsplit(endpoint.base_url)
    port = "" if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{parts.port}"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    place = f"{host}{port}{parts.path.rstrip('/')}"
    return f"openai:{endpoint.model}@{place}{'+reasons' if endpoint.rationale_tokens else ''}"


def open_client(endpoint: Endpoint) -> AsyncOpenAI:
    """A client that leaves retrying to `ask`."""
    import openai

    return openai.AsyncOpenAI(
        base_url=endpoint.base_url, api_key=endpoint.api_key, timeout=endpoint.timeout_s, max_retries=0
    )


async def ask(
    client: AsyncOpenAI,
    endpoint: Endpoint,
    dialect: Dialect,
    pace: Pace,
    chat: Chat,
    *,
    read: Callable[[Mapping[str, Any]], Verdict] | None = None,
) -> Verdict:
    """The verdict on `chat`, after as many tries as it took; `read` makes it of a body (a grade where it is None).

    Timeouts, lost connections, unreadable bodies, 408, 409, 429 and 5xx are tried `max_attempts` times, after
    Retry-After where the server sends it and otherwise after a wait that doubles and is jittered. A 429, or any answer
    with Retry-After, holds everybody at this `pace`. A further 429 is no failed try, twenty times, where the server has
    answered others since the one before: this request's turn has not come. Any other status is final.
    """
    read = read or (read_reasoned if endpoint.rationale_tokens else read_grade)
    attempt, num_turns, usage = 0, 0, Usage()
    # How many answers there had been at the last 429.
    refused_at: int | None = None
    fault = _Fault(reason=UNREACHABLE, raw="", told_s=None, final=True)
    while attempt < endpoint.max_attempts:
        sent = dialect.arguments(endpoint)
        try:
            body = await _completion(client, endpoint, pace, chat, sent)
            # Before it is read: what cannot be read was billed all the same.
            usage += usage_of(body, endpoint.prices)
            return replace(read(body), attempt=attempt + 1, usage=usage)
        except Exception as error:
            fault = _fault_of(error, pace.clock)
        if fault.reason == "http 400" and dialect.learn(sent, fault.raw):
            continue
        others_first = fault.reason == _TOO_MANY and refused_at not in (None, pace.num_answered)
        refused_at = pace.num_answered if fault.reason == _TOO_MANY else None
        if others_first and num_turns < _MOST_TURNS:
            num_turns += 1
        else:
            attempt += 1
        if fault.final:
            break
        wait = wait_s(attempt, fault.told_s, first_s=endpoint.first_wait_s, draw=random.random)
        if fault.holds_everybody:
            pace.pause(wait)
        elif attempt < endpoint.max_attempts:
            await pace.clock.sleep(wait)
    return Verdict(reason=fault.reason, raw=fault.raw, attempt=attempt, usage=usage)


async def _completion(client: AsyncOpenAI, endpoint: Endpoint, pace: Pace, chat: Chat, sent: Mapping[str, Any]) -> Any:
    """The JSON that the server answers one request with, once it is this request's turn."""
    messages: Any = chat
    num_bytes = num_bytes_of(chat)
    taken = pace.estimate(num_bytes) + num_new_tokens(endpoint)
    await pace.enter(taken)
    # The outer limit also ends a reply that trickles, which a limit per read would let run for ever.
    async with asyncio.timeout(endpoint.timeout_s):
        answer = await client.chat.completions.with_raw_response.create(model=endpoint.model, messages=messages, **sent)
    body = json.loads(answer.content)
    told = usage_of(body, endpoint.prices)
    pace.settle(
        num_bytes=num_bytes,
        num_prompt_tokens=told.num_prompt_tokens,
        num_generated_tokens=told.num_generated_tokens,
        taken=taken,
    )
    return body


def num_bytes_of(chat: Sequence[Mapping[str, str]]) -> int:
    """The length of what `chat` says, in UTF-8."""
    return sum(len(message["content"].encode(errors="replace")) for message in chat)


def wait_s(attempt: int, told_s: float | None, *, first_s: float, draw: Callable[[], float]) -> float:
    """Seconds to wait after failed try number `attempt`: what the server asked for, at most 300 s.

    Without a word from the server it is a uniform draw below a bound that doubles with each try, at most 30 s (the
    "full jitter" of Brooker, "Exponential backoff and jitter", 2015).
    """
    if told_s is not None:
        return min(max(told_s, 0.0), LONGEST_TOLD_S)
    return min(first_s * 2 ** (attempt - 1), LONGEST_BACKOFF_S) * draw()


@dataclass(frozen=True, kw_only=True)
class _Fault:
    """Why a try failed, the wait the server asked for, and whether trying again is of no use."""

    reason: str
    raw: str
    told_s: float | None
    final: bool

    @property
    def holds_everybody(self) -> bool:
        """Whether the server has had enough of all of us and not of this one request."""
        return self.reason == _TOO_MANY or self.told_s is not None


def _fault_of(error: Exception, clock: Clock) -> _Fault:
    """What went wrong, or the error again where it is a defect of ours."""
    import openai

    raw = f"{type(error).__name__}: {error}"
    if isinstance(error, (openai.APITimeoutError, TimeoutError)):
        return _Fault(reason=TIMEOUT, raw=raw, told_s=None, final=False)
    if isinstance(error, openai.APIStatusError):
        status, told_s = error.status_code, retry_after_s(error.response.headers, clock.wall_s())
        return _Fault(reason=f"http {status}", raw=raw, told_s=told_s, final=is_final(status))
    if isinstance(error, openai.APIConnectionError):
        return _Fault(reason=UNREACHABLE, raw=raw, told_s=None, final=False)
    if isinstance(error, UNREADABLE_ERRORS):
        return _Fault(reason=UNREADABLE, raw=raw, told_s=None, final=False)
    raise error


def is_final(status: int) -> bool:
    """Whether asking the same again would be answered with the same HTTP `status`."""
    return status not in (408, 409, 429) and status < 500


def retry_after_s(headers: Mapping[str, str], wall_s: float) -> float | None:
    """How long the server asks to wait, None where it does not say: retry-after-ms, or Retry-After in either form.

    A date is compared with the server's own Date, so that a clock that is wrong here makes no difference; without one
    with `wall_s`, seconds since 1970.
    """
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    until_s = _date_s(headers.get("retry-after"))
    if until_s is None:
        return None
    now_s = _date_s(headers.get("date"))
    return max(until_s - (wall_s if now_s is None else now_s), 0.0)


def _date_s(date: str | None) -> float | None:
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
