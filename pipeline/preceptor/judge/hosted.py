"""A trained ranker hosted by vLLM: raw logits of every head, and the tuned-teacher judge made of its grade heads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from preceptor.contracts import NUM_GRADES
from preceptor.errors import InputError
from preceptor.judge.engine import Engine, answered, over_long, reason_of, usage_of, workers_of
from preceptor.judge.replies import Answers, Reply, Usage, Workers, asked_of, graded, rejected
from preceptor.logits import softmax
from preceptor.policy import UNASKED
from preceptor.ranker.text import prompt_token_ids
from preceptor.recipe import EngineConfig
from preceptor.record import Record

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a ranker's config.json says: where each head's logits lie, and where its text is cut (in tokens)."""

    path: Path
    heads: Mapping[str, slice]
    grade_heads: tuple[str, ...]
    max_prefix_tokens: int
    max_document_tokens: int


@dataclass(frozen=True, kw_only=True)
class HostedJudge:
    """A relevance teacher as a judge: the softmax of each grade head in `dimensions`, with a label mass of 1.

    Of `heads` the raw logits come along.
    """

    judge_id: str
    checkpoint: Checkpoint
    dimensions: tuple[str, ...]
    engine: EngineConfig
    heads: tuple[str, ...] = ()
    asking: str = UNASKED

    @property
    def workers(self) -> Workers:
        """An actor for each engine."""
        return workers_of(str(self.checkpoint.path), self.engine)

    def open(self) -> HostedGrader:
        """The teacher with its engine running in this process."""
        return HostedGrader(self)


class HostedGrader:
    """An engine in vLLM's pooling runner, and the tokenizer that makes the prompts the ranker was trained on."""

    def __init__(self, judge: HostedJudge) -> None:
        from transformers import AutoTokenizer

        self.judge = judge
        self.tokenizer = AutoTokenizer.from_pretrained(judge.checkpoint.path)
        self.engine = Engine(model=str(judge.checkpoint.path), config=judge.engine, task="classify")

    async def grade(self, pairs: pa.Table) -> Answers:
        """Answers to `pairs`, with the raw logits of every head that they come from."""
        rows = pairs.to_pylist()
        found, usage = await answered(self.engine, [self._logits(pair) for pair in rows])
        logits = {
            pair["pair_id"]: {name: values[self.judge.checkpoint.heads[name]] for name in self.judge.heads}
            for pair, values in zip(rows, found, strict=True)
            if not isinstance(values, Exception)
        }
        replies = [
            self._reply(pair["pair_id"], name, values)
            for pair, values in zip(rows, found, strict=True)
            for name in asked_of(pair, self.judge.dimensions)
        ]
        return Answers(replies=tuple(replies), logits=logits, usage=usage)

    def _reply(self, pair_id: str, dimension: str, values: list[float] | Exception) -> Reply:
        if isinstance(values, Exception):
            seen = str(values) if isinstance(values, OverLong) else f"{type(values).__name__}: {values}"
            return rejected(pair_id, dimension, reason_of(seen), raw=seen)
        return graded(pair_id, dimension, softmax(values[self.judge.checkpoint.heads[dimension]]))

    async def _logits(self, pair: Row) -> tuple[list[float], Usage]:
        from vllm import PoolingParams

        token_ids = prompt_token_ids(
            self.tokenizer,
            pair["query"],
            pair["profile"],
            pair["document"],
            max_prefix_tokens=self.judge.checkpoint.max_prefix_tokens,
            max_document_tokens=self.judge.checkpoint.max_document_tokens,
        )
        too_long = over_long(len(token_ids), self.judge.engine, num_new=0)
        if too_long:
            raise OverLong(too_long)
        output = await self.engine.ask(token_ids, PoolingParams(task="classify", use_activation=False))
        return [float(logit) for logit in output.outputs.data.float()], usage_of(output, num_generated=0)


class OverLong(Exception):
    """A prompt the engine has no room for."""


def teacher_id(teacher: Record) -> str:
    """The judge id of a trained teacher."""
    return f"teacher:{teacher.fingerprint}"


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`; InputError where it is missing or was not made by Preceptor."""
    file = path / "config.json"
    try:
        config = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{file}: not a model's config ({error}). Train the teacher again.") from error
    try:
        kinds = {head["name"]: head["kind"] for head in config["preceptor_heads"]}
        limits = config["preceptor_max_prefix_tokens"], config["preceptor_max_document_tokens"]
    except KeyError as error:
        raise InputError(
            f"{file}: no key {error}; not a ranker made by Preceptor. Point at a teacher's model/."
        ) from error
    heads, start = {}, 0
    for name, kind in kinds.items():
        heads[name] = slice(start, start + (NUM_GRADES if kind == "grade" else 1))
        start = heads[name].stop
    return Checkpoint(
        path=path,
        heads=heads,
        grade_heads=tuple(name for name, kind in kinds.items() if kind == "grade"),
        max_prefix_tokens=limits[0],
        max_document_tokens=limits[1],
    )
