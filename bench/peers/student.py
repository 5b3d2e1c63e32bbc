"""The student that every server of the benchmark serves, and the requests they all get.

The student is the lowest layers of SmolLM2-135M with untrained heads, exported as a bundle: speed does not depend on
what it has learned. Texts are random words, cut by the tokenizer to exactly the lengths asked for.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from preceptor.export import ExportConfig, export
from preceptor.ranker.backbones import resolve_backbone
from preceptor.ranker.model import action_heads, grade_heads, init_ranker
from preceptor.recipe import BackboneConfig, Blend
from preceptor.record import Record

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


def requests(shape: RequestShape, *, seed: int) -> Iterator[ScoreRequest]:
    """Endless requests, no text of which comes twice; the same for the same `seed`.

    A word of the list is at least one token, so that as many words as tokens are always cut to the length asked for.
    """
    source = random.Random(seed)
    while True:
        yield ScoreRequest(
            query=_text(source, 4),
            profile=_text(source, shape.prefix_tokens),
            documents=tuple(_text(source, shape.document_tokens) for _ in range(shape.num_documents)),
        )


def body(request: ScoreRequest) -> bytes:
    """`request` as the body of POST /v1/score."""
    fields = {"query": request.query, "profile": request.profile, "documents": list(request.documents)}
    return json.dumps(fields).encode()


def _text(source: random.Random, num_words: int) -> str:
    return " ".join((f"{source.randrange(10**6)}", *source.choices(_WORDS, k=num_words)))
