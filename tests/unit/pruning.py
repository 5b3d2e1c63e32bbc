"""A tiny student with random weights, a BPE tokenizer trained on its texts, and pairs: all that pruning reads."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedTokenizerFast

from preceptor.contracts import OVERALL, PAIRS, make_pair, rows_to_table, write_table
from preceptor.ranker.batches import group_requests
from preceptor.ranker.model import Ranker, action_heads, grade_heads
from preceptor.ranker.scoring import score_requests
from preceptor.recipe import BackboneConfig
from preceptor.record import Record

HEADS = (*grade_heads([OVERALL]), *action_heads())
LIMITS = BackboneConfig(source="made", max_prefix_tokens=24, max_document_tokens=24)
WIDTH, GROUPS, QUERIES, MLP, LAYERS, HIDDEN = 8, 3, 2, 32, 4, 48
SEEN = "nurse welder baker driver ward night day shift hospital shipyard kitchen leeds hull york senior".split()  # noqa: SIM905
UNSEEN = ["archaeologist", "paleontology", "zeppelin", "quixotic"]


@cache
def tokenizer() -> Any:
    """A byte-level BPE whose words are SEEN and UNSEEN, so that there are rows to cut."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<pad>", "<end>"], initial_alphabet=alphabet, show_progress=False
    )
    texts = [" ".join(draw) for draw in (SEEN, UNSEEN, SEEN, UNSEEN, ["Query: Member: \nPosting: \nGrade: "])]
    made.train_from_iterator(texts * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>")


def ranker(*, seed: int = 5, spread: float = 0.3) -> Ranker:
    """A fresh Llama classifier of 4 layers with 3 key-value groups of 2 query heads; the same for the same seed."""
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=GROUPS * QUERIES,
        num_key_value_heads=GROUPS,
        head_dim=WIDTH,
        max_position_embeddings=128,
        pad_token_id=tokenizer().pad_token_id,
        eos_token_id=tokenizer().eos_token_id,
        bos_token_id=None,
    )
    config.num_labels = sum(head.size for head in HEADS)
    config.preceptor_heads = [{"name": head.name, "kind": head.kind} for head in HEADS]
    config.preceptor_max_prefix_tokens = LIMITS.max_prefix_tokens
    config.preceptor_max_document_tokens = LIMITS.max_document_tokens
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, spread, generator=generator)
    return Ranker(model, HEADS, LIMITS)


@cache
def pairs() -> tuple[dict[str, str], ...]:
    """40 pairs of 10 requests, of SEEN words alone."""
    draw = random.Random(1)

    def words(num: int) -> str:
        return " ".join(draw.choice(SEEN) for _ in range(num))

    return tuple(make_pair(query, words(4), words(8), slice="s") for query in map(words, [2] * 10) for _ in range(4))


def logits(ranker: Ranker, tokenizer: Any, rows: Any = None) -> torch.Tensor:
    """The raw logits of all pairs, or of `rows`, one row each."""
    requests = [request for request, _ in group_requests(list(rows or pairs()))]
    return torch.cat(score_requests(ranker, tokenizer, requests))


def student_record(folder: Path, student: Ranker, *, fingerprint: str = "s0") -> Record:
    """A finished distillation of `student`, with its training pairs."""
    student.save(folder / "model", tokenizer())
    write_table(rows_to_table(pairs(), PAIRS), folder / "training" / "pairs" / "part-0.parquet", PAIRS)
    return Record(
        stage="distill", version="v1", fingerprint=fingerprint, path=folder, config={}, policy_version="1.0.0+ab"
    )
