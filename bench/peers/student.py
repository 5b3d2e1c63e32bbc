"""The student that every server of the benchmark serves, and the requests they all get.

The student has SmolLM2-135M's shape, fewer layers and random weights, exported as a bundle: speed does not depend on
what it has learned. Random, since SmolLM2's own lowest layers under random heads are refused in int8 (of the pairs that
bfloat16 tells apart 9 % swapped): what int8 costs is a question to a trained student. Texts are random words, as many
as make exactly the number of tokens asked for.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from preceptor.export import ExportConfig, export
from preceptor.ranker.backbones import resolve_backbone
from preceptor.ranker.model import action_heads, grade_heads, init_ranker
from preceptor.ranker.text import document_token_ids, prefix_token_ids, render_pair
from preceptor.recipe import BackboneConfig, Blend
from preceptor.record import Record

HEAD_SPREAD = 0.1
"""Of the heads' weights: logits then differ by about 2 between documents."""

_WORDS = [
    "nurse",
    "welder",
    "night",
    "shift",
    "ward",
    "hospital",
    "forklift",
    "warehouse",
    "licence",
    "driver",
    "baker",
    "permanent",
    "contract",
    "Leeds",
    "Hull",
    "pay",
    "engineer",
    "software",
    "remote",
    "pension",
    "overtime",
    "teacher",
    "school",
    "primary",
    "maths",
    "degree",
    "certificate",
    "years",
    "experience",
    "team",
]


@dataclass(frozen=True, kw_only=True)
class RequestShape:
    """Sizes of a request, in tokens and documents."""

    prefix_tokens: int
    document_tokens: int
    num_documents: int


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """One request, as texts."""

    query: str
    profile: str
    documents: tuple[str, ...]


def make_bundle(root: Path, *, num_layers: int, shape: RequestShape, backbone: str = "smollm2-135m") -> Path:
    """The bundle under `root`, made once for each depth and shape."""
    name = f"{backbone}-{num_layers}-{shape.prefix_tokens}-{shape.document_tokens}"
    target = root / name
    if (target / "export" / "record.json").is_file():
        return target / "export" / "bundle"
    shutil.rmtree(target, ignore_errors=True)
    config = BackboneConfig(
        source=backbone,
        num_layers=num_layers,
        max_prefix_tokens=shape.prefix_tokens,
        max_document_tokens=shape.document_tokens,
    )
    ranker, tokenizer = init_ranker(config, resolve_backbone(backbone), (*grade_heads(["overall"]), *action_heads()))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in ranker.classifier.model.layers.parameters():
            if weight.dim() > 1:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
        ranker.classifier.model.norm.weight.fill_(1)
        ranker.classifier.score.weight.normal_(0, HEAD_SPREAD, generator=generator)
    ranker.save(target / "student" / "model", tokenizer)
    student = Record(
        stage="distill", version="v1", fingerprint=name, path=target / "student", config={}, policy_version="bench"
    )
    gate = Record(
        stage="gate", version="v1", fingerprint="bench", path=target, config={}, metrics={"passed": True, "values": {}}
    )
    blend = Blend(relevance=0.7, click=0.2, apply=0.1)
    exported = export(
        ExportConfig(backbone=backbone, blend=blend, check_vllm=False),
        student=student,
        gate=gate,
        out=target / "export",
    )
    return exported.path / "bundle"


def requests(shape: RequestShape, tokenizer: Any, *, seed: int) -> Iterator[ScoreRequest]:
    """Endless requests of exactly that shape, no text of which comes twice; the same for the same `seed`.

    Nothing is tokenised after the first: the load's process shares the machine with the server it measures.
    """
    source = random.Random(seed)
    # Words of one token each, after a number of six digits: as many words are as many tokens, whichever they are.
    words = [word for word in _WORDS if len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1]

    def text(num_words: int) -> str:
        return " ".join((str(source.randrange(10**5, 10**6)), *source.choices(words, k=num_words)))

    query = " ".join(source.choices(words, k=4))
    in_prefix = prefix_token_ids(tokenizer, query, text(0), max_prefix_tokens=10**6)
    in_document = document_token_ids(tokenizer, [text(0)], max_document_tokens=10**6)[0]
    profile_words, document_words = shape.prefix_tokens - len(in_prefix), shape.document_tokens - len(in_document)
    while True:
        yield ScoreRequest(
            query=" ".join(source.choices(words, k=4)),
            profile=text(profile_words),
            documents=tuple(text(document_words) for _ in range(shape.num_documents)),
        )


def body(request: ScoreRequest) -> bytes:
    """`request` as the body of POST /v1/score."""
    fields = {"query": request.query, "profile": request.profile, "documents": list(request.documents)}
    return json.dumps(fields).encode()


def classify_body(request: ScoreRequest, model: str) -> bytes:
    """`request` as the body of vLLM's POST /classify: whole pairs, which its prefix cache takes apart."""
    pairs = [render_pair(request.query, request.profile, document) for document in request.documents]
    return json.dumps({"model": model, "input": pairs, "use_activation": False, "add_special_tokens": False}).encode()
