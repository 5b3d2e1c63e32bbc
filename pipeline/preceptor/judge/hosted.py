"""A trained ranker hosted by vLLM: raw logits of every head, and the tuned-teacher judge made of its grade heads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from preceptor.contracts import NUM_GRADES
from preceptor.errors import InputError
from preceptor.judge.engine import ERROR, Row, over_long, reason_of, run_engine
from preceptor.judge.replies import Answers, graded, rejected
from preceptor.logits import softmax
from preceptor.ranker.text import prompt_token_ids
from preceptor.recipe import EngineConfig


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a ranker's config.json says: where each head's logits lie, and where its text is cut (in tokens)."""

    path: Path
    heads: Mapping[str, slice]
    grade_heads: tuple[str, ...]
    max_prefix_tokens: int
    max_document_tokens: int


@dataclass(frozen=True, kw_only=True)
class HostedBatch:
    """Raw logits by pair_id and head, and (pair_id, reason, what was seen) of each pair that got none."""

    logits: Mapping[str, Mapping[str, Sequence[float]]]
    rejects: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, kw_only=True)
class HostedJudge:
    """A relevance teacher as a judge: the softmax of each grade head in `dimensions`, with a label mass of 1."""

    judge_id: str
    checkpoint: Checkpoint
    dimensions: tuple[str, ...]
    engine: EngineConfig

    @property
    def heads(self) -> tuple[str, ...]:
        """Every head of the checkpoint: their logits come along."""
        return tuple(self.checkpoint.heads)

    def grade(self, pairs: pa.Table) -> Iterator[Answers]:
        """Answers for `pairs`, with the raw logits they come from."""
        for batch in score_hosted(self.checkpoint.path, pairs, self.engine):
            replies = [
                graded(pair_id, dimension, softmax(heads[dimension]))
                for pair_id, heads in batch.logits.items()
                for dimension in self.dimensions
            ]
            replies += [
                rejected(pair_id, dimension, reason, raw=raw)
                for pair_id, reason, raw in batch.rejects
                for dimension in self.dimensions
            ]
            yield Answers(replies=tuple(replies), logits=batch.logits)


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


def score_hosted(checkpoint: Path, pairs: pa.Table, engine: EngineConfig) -> Iterator[HostedBatch]:
    """Raw logits of every head of `checkpoint` for `pairs` (columns pair_id, query, profile, document), streamed.

    Each pair comes exactly once, with logits or as a reject. Raises StageFailed where the engine cannot run.
    """
    found = read_checkpoint(checkpoint)
    batches = run_engine(
        pairs.select(["pair_id", "query", "profile", "document"]),
        model=str(checkpoint),
        engine=engine,
        task="classify",
        rows_per_pair=1,
        prepare=PairTokeniser,
        prepare_args={"checkpoint": found, "engine": engine},
        finish=pick_logits,
        columns=("pair_id", "logits"),
    )
    for rows in batches:
        failed = [row for row in rows if row[ERROR]]
        yield HostedBatch(
            logits={
                row["pair_id"]: {name: row["logits"][where] for name, where in found.heads.items()}
                for row in rows
                if not row[ERROR]
            },
            rejects=[(row["pair_id"], reason_of(row[ERROR]), row[ERROR]) for row in failed],
        )


class PairTokeniser:
    """Turns pairs into the token ids the ranker was trained on, cut as it cuts them."""

    def __init__(self, *, checkpoint: Checkpoint, engine: EngineConfig) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
        self.checkpoint = checkpoint
        self.engine = engine

    def __call__(self, pairs: pa.Table) -> pa.Table:
        """One row per pair with its prompt; a prompt the engine has no room for is marked."""
        return pa.Table.from_pylist([self._row(pair) for pair in pairs.to_pylist()])

    def _row(self, pair: Row) -> Row:
        token_ids = prompt_token_ids(
            self.tokenizer,
            pair["query"],
            pair["profile"],
            pair["document"],
            max_prefix_tokens=self.checkpoint.max_prefix_tokens,
            max_document_tokens=self.checkpoint.max_document_tokens,
        )
        return {
            "pair_id": pair["pair_id"],
            "tokenized_prompt": token_ids,
            "pooling_params": {"use_activation": False},
            ERROR: over_long(len(token_ids), self.engine, num_new=0),
        }


def pick_logits(row: Row) -> Row:
    """`pair_id` and the raw logits of all heads, from an engine's output row."""
    logits: Any = row["embeddings"]
    return {"pair_id": row["pair_id"], "logits": [float(logit) for logit in logits]}
