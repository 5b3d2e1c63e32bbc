"""The zero-shot judge: a language model in vLLM, asked one dimension of one pair at a time, policy first.

All prompts start with the policy, and all dimensions of a pair share the pair that follows, so that vLLM's prefix cache
computes the policy once and each pair once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa

from preceptor.contracts import NUM_GRADES
from preceptor.errors import InputError
from preceptor.judge.engine import Engine, answered, over_long, reason_of, usage_of, workers_of
from preceptor.judge.replies import Answers, Reply, Usage, Workers, graded, in_waves, rejected
from preceptor.policy import ANSWER, REASONED_ANSWER, Policy, messages, reasoned_messages
from preceptor.recipe import EngineConfig

Row = Mapping[str, Any]

GRADE_LINE: Final = "Grade: "
GRADE_LINE_TOKENS: Final = 8


@dataclass(frozen=True, kw_only=True)
class VllmJudge:
    """A language model asked for the probability of each of the five digits, after its reasons where it is to give any.

    `model` is a directory or a Hugging Face name; `rationale_tokens` the length that reasons are cut at, 0 for none.
    """

    judge_id: str
    model: str
    policy: Policy
    dimensions: tuple[str, ...]
    engine: EngineConfig
    rationale_tokens: int = 0
    heads: tuple[str, ...] = ()

    @property
    def asking(self) -> str:
        """For a digit, or for reasons and a digit."""
        return REASONED_ANSWER if self.rationale_tokens else ANSWER

    @property
    def workers(self) -> Workers:
        """An actor for each engine."""
        return workers_of(self.model, self.engine)

    def open(self) -> VllmGrader:
        """The judge with its engine running in this process."""
        return VllmGrader(self)


class VllmGrader:
    """An engine, and the tokenizer that makes its prompts."""

    def __init__(self, judge: VllmJudge) -> None:
        from transformers import AutoTokenizer

        self.judge = judge
        self.tokens = PromptTokens(AutoTokenizer.from_pretrained(judge.model))
        self.grade_tokens = grade_token_ids(self.tokens.tokenizer, judge.model)
        self.engine = Engine(model=judge.model, config=judge.engine, task="generate")

    def reading(self, judge: VllmJudge) -> VllmGrader:
        """A grader that asks as `judge` does, another policy perhaps, in this one's engine."""
        other = copy(self)
        other.judge, other.tokens = judge, PromptTokens(self.tokens.tokenizer)
        return other

    async def grade(self, pairs: pa.Table) -> Answers:
        """Answers to `pairs`; label mass is the true probability of the five digits."""
        ask = self._reasoned_reply if self.judge.rationale_tokens else self._reply
        rows = list(in_waves(pairs.to_pylist(), self.judge.dimensions))
        found, usage = await answered(self.engine, [ask(pair, name) for pair, name in rows])
        return Answers(
            replies=tuple(
                _failed(pair["pair_id"], name, reply) if isinstance(reply, Exception) else reply
                for (pair, name), reply in zip(rows, found, strict=True)
            ),
            usage=usage,
        )

    async def _reply(self, pair: Row, dimension: str) -> tuple[Reply, Usage]:
        asked = messages(
            self.judge.policy, dimension, query=pair["query"], profile=pair["profile"], document=pair["document"]
        )
        token_ids = self.tokens.of_chat(asked)
        too_long = over_long(len(token_ids), self.judge.engine, num_new=1)
        if too_long:
            return rejected(pair["pair_id"], dimension, reason_of(too_long), raw=too_long), Usage()
        masses, usage = await self._masses(token_ids)
        return graded(pair["pair_id"], dimension, masses), usage

    async def _reasoned_reply(self, pair: Row, dimension: str) -> tuple[Reply, Usage]:
        """The reply after the model's reasons: those are generated first, and the grade is read where it follows."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        asked = reasoned_messages(
            self.judge.policy, dimension, query=pair["query"], profile=pair["profile"], document=pair["document"]
        )
        token_ids = self.tokens.of_chat(asked)
        limit = self.judge.rationale_tokens
        too_long = over_long(len(token_ids), self.judge.engine, num_new=limit + GRADE_LINE_TOKENS)
        if too_long:
            return rejected(pair["pair_id"], dimension, reason_of(too_long), raw=too_long), Usage()
        params = SamplingParams(
            max_tokens=limit, temperature=0.0, stop=["Grade:"], output_kind=RequestOutputKind.FINAL_ONLY
        )
        output = await self.engine.ask(token_ids, params)
        said = output.outputs[0]
        first = usage_of(output, num_generated=len(said.token_ids))
        rationale = said.text.strip()
        # Asked again with its own words before it, the model needs no luck to write the line; the prefix is cached.
        masses, second = await self._masses([*token_ids, *self.tokens.of_text(f"{rationale}\n{GRADE_LINE}")])
        return replace(graded(pair["pair_id"], dimension, masses), rationale=rationale or None), first + second

    async def _masses(self, token_ids: list[int]) -> tuple[list[float], Usage]:
        """The probability of each digit as the next token."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, logprob_token_ids=self.grade_tokens)
        output = await self.engine.ask(token_ids, params)
        return masses_of(output.outputs[0].logprobs[0], self.grade_tokens), usage_of(output, num_generated=1)


class PromptTokens:
    """Chat prompts as token ids. What all prompts begin with is tokenised once: a policy is long, a pair short."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._markers = sorted({str(token) for token in tokenizer.all_special_tokens}, key=len, reverse=True)
        self._head, self._head_ids = "", list[int]()
        self._previous: str | None = None

    def of_chat(self, asked: Sequence[dict[str, str]]) -> list[int]:
        """The prompt that ends where the model is to answer `asked`."""
        return self.of_text(self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))

    def of_text(self, text: str) -> list[int]:
        """The tokens of `text`, special tokens in it included and none added."""
        if self._head and text.startswith(self._head):
            return self._head_ids + self._ids(text[len(self._head) :])
        if self._previous is not None:
            self._learn(self._previous, text)
        self._previous = text
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _learn(self, first: str, second: str) -> None:
        """Keep what `first` and `second` begin with, up to their last common special token.

        A tokenizer splits at special tokens before anything else, so the two sides do not touch; where it does not
        (some put a space before a text), the parts differ from the whole, and nothing is kept.
        """
        same = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))
        ends = [first.rfind(marker, 0, same) + len(marker) for marker in self._markers if marker in first[:same]]
        head = first[: max(ends, default=0)]
        if head and self._ids(head) + self._ids(second[len(head) :]) == self._ids(second):
            self._head, self._head_ids = head, self._ids(head)


def grade_token_ids(tokenizer: Any, model: str) -> list[int]:
    """The token of each digit 0 to 4; InputError where the tokenizer splits one."""
    ids = [tokenizer.encode(str(grade), add_special_tokens=False) for grade in range(NUM_GRADES)]
    split = [grade for grade, tokens in enumerate(ids) if len(tokens) != 1]
    if split:
        raise InputError(f"{model}: a judge needs one token per grade, its tokenizer splits {split}. Choose another.")
    return [tokens[0] for tokens in ids]


def masses_of(logprobs: Any, grade_tokens: Sequence[int]) -> list[float]:
    """The probability of each grade's token at one position of an output."""
    return [math.exp(logprobs[token].logprob) for token in grade_tokens]


def _failed(pair_id: str, dimension: str, error: Exception) -> Reply:
    seen = f"{type(error).__name__}: {error}"
    return rejected(pair_id, dimension, reason_of(seen), raw=seen)
