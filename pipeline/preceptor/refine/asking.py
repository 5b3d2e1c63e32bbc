"""Asking the judge and the reflection model: one client and one pace each, and every answer kept in the ledger."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from preceptor.contracts import content_id
from preceptor.errors import StageFailed
from preceptor.judge.completions import Prices, Verdict
from preceptor.judge.endpoint import Chat, Dialect, Endpoint, ask, endpoint_judge_id, open_client
from preceptor.judge.openai_judge import OpenAIJudge
from preceptor.judge.pacing import Clock, Pace, pace_of
from preceptor.judge.replies import Usage, is_passing
from preceptor.policy import Policy
from preceptor.recipe import ReflectionConfig
from preceptor.refine.ledger import Ledger

_NO_TEXT: Final = "no text"

_OTHERS_WORK: Final = ("http 400", "http 413", "http 422")
"""Refusals of one request, such as a prompt that is too long; any other status speaks of the endpoint."""

Row = tuple[Mapping[str, str], str]
"""A pair and the dimension to ask of it."""


@dataclass(kw_only=True)
class Line:
    """A connection to one endpoint: what it understands, and how fast it may be asked."""

    name: str
    endpoint: Endpoint
    dialect: Dialect
    pace: Pace
    gate: asyncio.Semaphore
    client: Any
    read: Callable[[Mapping[str, Any]], Verdict] | None = None
    fault: str | None = None

    async def answer(self, chat: Chat) -> Verdict | None:
        """The verdict on `chat`; None once the endpoint has shown that it cannot answer anybody."""
        async with self.gate:
            if self.fault is not None:
                return None
            verdict = await ask(self.client, self.endpoint, self.dialect, self.pace, chat, read=self.read)
        if verdict.reason is not None and (
            is_passing(verdict.reason) or (verdict.reason.startswith("http") and verdict.reason not in _OTHERS_WORK)
        ):
            self.fault = f"{verdict.reason} ({(verdict.raw or '')[:200]})"
            return None
        return verdict


@dataclass(kw_only=True)
class Asker:
    """Both models. What the ledger answers is not asked; what it took when it was asked counts all the same."""

    judge: Line
    reflection: Line
    ledger: Ledger
    runner: asyncio.Runner
    num_asked: int = 0
    _turns: dict[str, int] = field(default_factory=dict)

    @property
    def judge_id(self) -> str:
        """The judge's name, as in its labels."""
        return self.judge.name

    def verdicts(self, policy: Policy, rows: Sequence[Row]) -> list[Verdict]:
        """The judge's verdict on each of `rows`, asked with the prompts of `policy`.

        StageFailed where the endpoint cannot be asked; what it answered before is kept.
        """
        asked = OpenAIJudge(endpoint=self.judge.endpoint, policy=policy, dimensions=())
        chats = [asked.chat(pair, dimension) for pair, dimension in rows]
        keys = [content_id("judge", self.judge_id, json.dumps(chat)) for chat in chats]
        missing = {key: chat for key, chat in zip(keys, chats, strict=True) if key not in self.ledger.answers}
        self.runner.run(self._all(self.judge, missing))
        return [self.ledger.answers[key] for key in keys]

    def reflection_on(self, prompt: str) -> Verdict:
        """What the reflection model says to `prompt`, in `raw`; the same prompt again is another draw.

        StageFailed as `verdicts`.
        """
        turn = self._turns[prompt] = self._turns.get(prompt, 0) + 1
        key = content_id("reflection", self.reflection.name, prompt, str(turn))
        if key not in self.ledger.answers:
            chat = {key: [{"role": "user", "content": prompt}]}
            self.runner.run(self._all(self.reflection, chat))
        return self.ledger.answers[key]

    async def _all(self, line: Line, chats: Mapping[str, Chat]) -> None:
        async def one(key: str, chat: Chat) -> None:
            verdict = await line.answer(chat)
            if verdict is not None:
                self.num_asked += 1
                self.ledger.add(key, verdict)

        await asyncio.gather(*(one(key, chat) for key, chat in chats.items()))
        if line.fault is not None:
            raise StageFailed(
                f"{line.name} cannot be asked: {line.fault}. Answers so far are kept and the "
                "policy is as it was: mend the cause and run the same command again."
            )


@contextmanager
def open_asker(judge: Endpoint, reflection: Endpoint, *, temperature: float | None, ledger: Ledger) -> Iterator[Asker]:
    """Both models, ready to be asked, until the body ends."""
    judged = _line(endpoint_judge_id(judge), judge, Dialect())
    name = endpoint_judge_id(replace(reflection, rationale_tokens=0))
    reflected = replace(_line(name, reflection, Dialect(top_logprobs=0, temperature=temperature)), read=_read_text)
    with asyncio.Runner() as runner:
        try:
            yield Asker(judge=judged, reflection=reflected, ledger=ledger, runner=runner)
        finally:
            for line in (judged, reflected):
                runner.run(line.client.close())


def reflection_endpoint(config: ReflectionConfig, *, api_key: str) -> Endpoint:
    """The endpoint of `config`: asked for text, one request at a time."""
    return Endpoint(
        base_url=config.base_url,
        model=config.model,
        api_key=api_key,
        max_concurrency=1,
        timeout_s=config.timeout_s,
        max_attempts=config.max_attempts,
        rationale_tokens=config.max_tokens,
        prices=Prices(
            prompt=config.usd_per_million_prompt_tokens / 1e6,
            cached=config.usd_per_million_prompt_tokens / 1e6,
            generated=config.usd_per_million_generated_tokens / 1e6,
        ),
    )


def tokens_of(usage: Usage) -> int:
    """Tokens read and written."""
    return usage.num_prompt_tokens + usage.num_generated_tokens


def _line(name: str, endpoint: Endpoint, dialect: Dialect) -> Line:
    pace = pace_of(
        requests_per_minute=endpoint.max_requests_per_minute,
        tokens_per_minute=endpoint.max_tokens_per_minute,
        clock=Clock(),
    )
    gate = asyncio.Semaphore(endpoint.max_concurrency)
    return Line(name=name, endpoint=endpoint, dialect=dialect, pace=pace, gate=gate, client=open_client(endpoint))


def _read_text(body: Mapping[str, Any]) -> Verdict:
    """The text of a completion in `raw`; raises as `read_grade` does where it is none."""
    text = body["choices"][0]["message"]["content"]
    if text is not None and not isinstance(text, str):
        raise TypeError(f"message.content is {type(text).__name__}")
    return replace(Verdict(raw=text or ""), reason=None if text and text.strip() else _NO_TEXT)
