"""Any OpenAI-compatible endpoint as the judge."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from preceptor.judge.completions import Verdict, reply_of
from preceptor.judge.endpoint import Chat, Dialect, Endpoint, ask, endpoint_judge_id, open_client
from preceptor.judge.pacing import Clock, pace_of
from preceptor.judge.replies import Answers, Reply, Usage, Workers, in_waves, pair_columns
from preceptor.policy import ANSWER, REASONED_ANSWER, Policy, messages, prompt_hash, reasoned_messages
from preceptor.policy.prompts import num_tokens_about

_LIGHT_CPUS: Final = 0.1

# Blocks are at least this many pairs; twice the open requests hide the slowest of a block behind the next ones.
_FEWEST_PAIRS: Final = 16

# A slow limit is not silence: with large blocks of long pairs, this is how long nothing may be finished.
_MOST_PAIRS: Final = 256
_PAIR_TOKENS: Final = 500
_GIVE_UP_S: Final = 1800.0


@dataclass(frozen=True, kw_only=True)
class OpenAIJudge:
    """An endpoint that is asked for one digit, or for reasons and a digit, per pair and dimension.

    A server without logprobs yields one-hot probs with a label mass of 1.
    """

    endpoint: Endpoint
    policy: Policy
    dimensions: tuple[str, ...]
    heads: tuple[str, ...] = ()

    @property
    def judge_id(self) -> str:
        """The model, where it is served, and whether it gives reasons."""
        return endpoint_judge_id(self.endpoint)

    @property
    def asking(self) -> str:
        """The words that every prompt ends with."""
        return REASONED_ANSWER if self.endpoint.rationale_tokens else ANSWER

    @property
    def prompt_hashes(self) -> dict[str, str]:
        """By dimension, the hash of what a prompt says of it; of this judge's own policy, the one it asks with."""
        return {name: prompt_hash(self.policy, name, asking=self.asking) for name in self.dimensions}

    @property
    def workers(self) -> Workers:
        """Light actors: they wait for the network."""
        num_requests = _FEWEST_PAIRS * max(len(self.dimensions), 1)
        blocks = max(2, -(-2 * self.endpoint.max_concurrency // num_requests))
        return Workers(
            num_actors=self.endpoint.num_actors,
            cpus=_LIGHT_CPUS,
            blocks_in_flight=blocks,
            give_up_s=max(_GIVE_UP_S, 2 * blocks * self._block_s()),
        )

    def _block_s(self) -> float:
        """About how long an actor has to take over a large block by the limits alone."""
        num_requests = _MOST_PAIRS * len(self.dimensions) * self.endpoint.num_actors
        num_tokens = num_requests * (
            _PAIR_TOKENS + max(num_tokens_about(self.policy, name) for name in self.dimensions)
        )
        return 60.0 * max(
            num_requests / (self.endpoint.max_requests_per_minute or math.inf),
            num_tokens / (self.endpoint.max_tokens_per_minute or math.inf),
        )

    def open(self) -> EndpointGrader:
        """A grader with a client of its own."""
        return EndpointGrader(judge=self)

    def chat(self, pair: Mapping[str, str], dimension: str) -> Chat:
        """The messages that ask about one pair and dimension."""
        ask_for = reasoned_messages if self.endpoint.rationale_tokens else messages
        return ask_for(self.policy, dimension, query=pair["query"], profile=pair["profile"], document=pair["document"])


@dataclass(kw_only=True)
class EndpointGrader:
    """An actor's client: all its blocks share one limit on open requests, one pace and one dialect."""

    judge: OpenAIJudge
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        endpoint = self.judge.endpoint
        self.client = open_client(endpoint)
        self.dialect = Dialect()
        self.gate = asyncio.Semaphore(endpoint.max_concurrency)
        self.pace = pace_of(
            requests_per_minute=_share(endpoint.max_requests_per_minute, endpoint.num_actors),
            tokens_per_minute=_share(endpoint.max_tokens_per_minute, endpoint.num_actors),
            clock=self.clock,
        )

    def reading(self, judge: OpenAIJudge) -> EndpointGrader:
        """A grader that asks as `judge` does, another policy perhaps, within this one's limits."""
        other = copy(self)
        other.judge = judge
        return other

    async def grade(self, pairs: pa.Table) -> Answers:
        """A reply for every pair and dimension asked, and what the server said they took."""
        wanted = list(in_waves(pair_columns(pairs).to_pylist(), self.judge.dimensions))
        answered = await asyncio.gather(*(self._one(pair, name) for pair, name in wanted))
        usage = sum((verdict.usage for _, verdict in answered), start=Usage())
        return Answers(replies=tuple(reply for reply, _ in answered), usage=usage)

    async def _one(self, pair: Mapping[str, str], dimension: str) -> tuple[Reply, Verdict]:
        async with self.gate:
            chat = self.judge.chat(pair, dimension)
            verdict = await ask(self.client, self.judge.endpoint, self.dialect, self.pace, chat)
        return reply_of(pair["pair_id"], dimension, verdict), verdict


def _share(limit: int | None, num_actors: int) -> float | None:
    return None if limit is None else limit / num_actors
