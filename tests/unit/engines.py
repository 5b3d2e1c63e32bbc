"""A tiny student with random weights, and the reference its scores are held against: transformers, pair by pair."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, Qwen3Config

from preceptor.bundle import Reader
from preceptor.contracts import OVERALL
from preceptor.ranker.model import action_heads, grade_heads
from preceptor.recipe import Blend
from preceptor_serve.engine.kernels import Kernels
from preceptor_serve.engine.student import Student, make_student

VOCABULARY = 97
MAX_PREFIX, MAX_DOCUMENT = 24, 28
HEADS = (*grade_heads([OVERALL]), *action_heads())
NUM_ROWS = sum(head.size for head in HEADS)
CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config}


class WordTokenizer:
    """Words, marks and line breaks as tokens, called as transformers' tokenizers are."""

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[self._id(word) for word in re.findall(r"\w+|[^\w ]", text)] for text in texts]}

    def _id(self, word: str) -> int:
        # 0 pads, and transformers reads the last token that is not padding.
        return 1 + zlib.crc32(word.encode()) % (VOCABULARY - 1)


@cache
def classifier(
    kind: str = "llama",
    dtype: torch.dtype = torch.float32,
    *,
    num_layers: int = 3,
    spread: float = 0.1,
    rounded: bool = False,
    width: int = 16,
) -> Any:
    """A Hugging Face classifier with random weights of that spread; the same ones for the same arguments.

    `rounded`: to what bfloat16 can hold, whatever `dtype` they are kept and computed in.
    """
    config = CONFIGS[kind](
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=num_layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=width,
        max_position_embeddings=128,
        num_labels=NUM_ROWS,
        pad_token_id=0,
    )
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, spread, generator=generator)
            else:
                weight.uniform_(0.5, 1.5, generator=generator)
            if rounded:
                weight.copy_(weight.bfloat16().float())
    return model.to(dtype)


@cache
def student(
    precision: Any = "float32", kind: str = "llama", *, kernels: Kernels | None = None, **weights: Any
) -> Student:
    """The same weights in the engine's form."""
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    made = classifier(kind, dtype, **weights)
    return make_student(made, precision=precision, max_tokens=MAX_PREFIX + MAX_DOCUMENT, kernels=kernels)


def reader(bundle_id: str = "tiny") -> Reader:
    """A bundle's other half, with a tokenizer of words."""
    return Reader(
        path=Path("tiny"),
        bundle_id=bundle_id,
        policy_version="1",
        blend=Blend(relevance=0.7, click=0.2, apply=0.1),
        known_answers=(),
        heads=HEADS,
        max_prefix_tokens=MAX_PREFIX,
        max_document_tokens=MAX_DOCUMENT,
        tokenizer=WordTokenizer(),
    )


@torch.no_grad()
def reference_logits(pairs: Sequence[Sequence[int]], kind: str = "llama", **weights: Any) -> torch.Tensor:
    """Raw logits of whole pairs, one forward pass of transformers for each."""
    model = classifier(kind, **weights)
    return torch.stack([model(input_ids=torch.tensor([list(pair)])).logits[0].float() for pair in pairs])
