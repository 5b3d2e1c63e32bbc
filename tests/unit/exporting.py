"""A student with random weights and what its export needs: a bundle without a run behind it."""

from __future__ import annotations

from pathlib import Path

import torch

from preceptor.contracts import OVERALL
from preceptor.export import ExportConfig, export
from preceptor.ranker.backbones import resolve_backbone
from preceptor.ranker.model import action_heads, grade_heads, init_ranker
from preceptor.recipe import BackboneConfig, Blend
from preceptor.record import Record

BLEND = Blend(relevance=0.7, click=0.2, apply=0.1)
CONFIG = ExportConfig(backbone="random-tiny", blend=BLEND, check_vllm=False)
HEADS = (*grade_heads([OVERALL]), *action_heads())


def train_student(
    root: Path, *, max_prefix_tokens: int = 24, max_document_tokens: int = 32, spread: float = 0.2
) -> Record:
    """The record of a student with random weights; those of its heads have `spread` as their standard deviation."""
    backbone = BackboneConfig(
        source="random-tiny",
        num_layers=2,
        max_prefix_tokens=max_prefix_tokens,
        max_document_tokens=max_document_tokens,
    )
    ranker, tokenizer = init_ranker(backbone, resolve_backbone("random-tiny"), HEADS)
    torch.manual_seed(3)
    torch.nn.init.normal_(ranker.classifier.score.weight, std=spread)
    ranker.save(root / "model", tokenizer)
    return Record(
        stage="distill", version="v1", fingerprint="s0", path=root, config={"num_layers": 2}, policy_version="1.0.0+ab"
    )


def gate_record(root: Path, *, passed: bool = True) -> Record:
    """The record of a gate that let the student pass, or did not."""
    metrics = {"passed": passed, "values": {"student overall ndcg@10": 0.81}}
    return Record(stage="gate", version="v1", fingerprint="g0", path=root, config={}, metrics=metrics)


def random_bundle(root: Path) -> Path:
    """A bundle of such a student, as long-sighted as the recipe `tiny` makes its own, with logits as small."""
    student = train_student(root / "distill" / "v1", max_prefix_tokens=48, max_document_tokens=64, spread=0.05)
    return export_student(student, root)


def export_student(student: Record, root: Path) -> Path:
    """The bundle of `student`, exported under `root`."""
    return export(CONFIG, student=student, gate=gate_record(root), out=root / "export" / "v1").path / "bundle"
