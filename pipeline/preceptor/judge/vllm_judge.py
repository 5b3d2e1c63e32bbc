"""The zero-shot judge: a language model in vLLM, asked one dimension of one pair at a time, policy first.

All prompts start with the policy and all dimensions of a pair stand next to each other, so that vLLM's prefix cache
computes the policy once and each pair once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from preceptor.contracts import NUM_GRADES
from preceptor.errors import InputError
from preceptor.judge.engine import ERROR, Row, over_long, reason_of, run_engine
from preceptor.judge.replies import Answers, Reply, asked_of, graded, pair_columns, rejected
from preceptor.policy import Policy, messages
from preceptor.recipe import EngineConfig


@dataclass(frozen=True, kw_only=True)
class VllmJudge:
    """A language model asked through ray.data.llm for the probability of each of the five digits.

    `model` is a directory or a Hugging Face name.
    """

    judge_id: str
    model: str
    policy: Policy
    dimensions: tuple[str, ...]
    engine: EngineConfig
    heads: tuple[str, ...] = ()

    def grade(self, pairs: pa.Table) -> Iterator[Answers]:
        """Answers for `pairs`; label mass is the true probability of the five digits."""
        batches = run_engine(
            pair_columns(pairs),
            model=self.model,
            engine=self.engine,
            task="generate",
            rows_per_pair=len(self.dimensions),
            prepare=PromptRenderer,
            prepare_args={
                "model": self.model,
                "policy": self.policy,
                "dimensions": self.dimensions,
                "engine": self.engine,
            },
            finish=pick_masses,
            columns=("pair_id", "dimension", "masses"),
        )
        for rows in batches:
            yield Answers(replies=tuple(_reply(row) for row in rows), logits={})


class PromptRenderer:
    """Turns pairs into one tokenised chat prompt per dimension; an over-long one is marked and skips the engine."""

    def __init__(self, *, model: str, policy: Policy, dimensions: Sequence[str], engine: EngineConfig) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.policy = policy
        self.dimensions = dimensions
        self.engine = engine
        self.grade_tokens = grade_token_ids(self.tokenizer, model)

    def __call__(self, pairs: pa.Table) -> pa.Table:
        """A row for every pair and dimension it is to be asked, a pair's dimensions together."""
        return pa.Table.from_pylist(
            [self._row(pair, name) for pair in pairs.to_pylist() for name in asked_of(pair, self.dimensions)]
        )

    def _row(self, pair: Row, dimension: str) -> Row:
        asked = messages(
            self.policy, dimension, query=pair["query"], profile=pair["profile"], document=pair["document"]
        )
        text = self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        token_ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return {
            "pair_id": pair["pair_id"],
            "dimension": dimension,
            "tokenized_prompt": token_ids,
            "grade_tokens": self.grade_tokens,
            "sampling_params": {
                "max_tokens": 1,
                "temperature": 0.0,
                "detokenize": False,
                "logprob_token_ids": self.grade_tokens,
            },
            ERROR: over_long(len(token_ids), self.engine, num_new=1),
        }


def grade_token_ids(tokenizer: Any, model: str) -> list[int]:
    """The token of each digit 0 to 4; InputError where the tokenizer splits one."""
    ids = [tokenizer.encode(str(grade), add_special_tokens=False) for grade in range(NUM_GRADES)]
    split = [grade for grade, tokens in enumerate(ids) if len(tokens) != 1]
    if split:
        raise InputError(f"{model}: a judge needs one token per grade, its tokenizer splits {split}. Choose another.")
    return [tokens[0] for tokens in ids]


def pick_masses(row: Row) -> Row:
    """`pair_id`, `dimension` and the probability of each digit, from an engine's output row."""
    found = row["logprobs"][0]
    masses = [math.exp(found[token]["logprob"]) for token in row["grade_tokens"]]
    return {"pair_id": row["pair_id"], "dimension": row["dimension"], "masses": masses}


def _reply(row: Row) -> Reply:
    if row[ERROR]:
        return rejected(row["pair_id"], row["dimension"], reason_of(row[ERROR]), raw=row[ERROR])
    return graded(row["pair_id"], row["dimension"], row["masses"])
