"""What the tests of the ranker and of its losses share: a tiny ranker, words for it to read, and targets drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from preceptor.contracts import NUM_GRADES, OVERALL
from preceptor.ranker.losses import Targets
from preceptor.ranker.model import Ranker, action_heads, grade_heads, init_ranker
from preceptor.recipe import BackboneConfig

LIMITS = BackboneConfig(source="random-tiny", max_prefix_tokens=24, max_document_tokens=20)
HEADS = (*grade_heads([OVERALL, "role"]), *action_heads())
WORDS = ("nurse", "welder", "Köln", "night shift,", "5 years", "AAA!!!", "C++", "管理", "")


def sharp_ranker(backbone: str) -> tuple[Ranker, Any]:
    """A ranker whose attention is sharp enough for a token out of place to show, and its tokenizer.

    The fresh weights of the tiny backbone attend almost evenly, and fresh action heads say nothing.
    """
    ranker, tokenizer = init_ranker(LIMITS, backbone, HEADS)
    score = ranker.classifier.score.weight
    with torch.no_grad():
        for layer in ranker.classifier.model.layers:
            for weight in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
                weight.mul_(8)
        score[10:] = torch.randn(2, score.shape[1], generator=torch.Generator().manual_seed(5)) * 0.2
    return ranker.eval(), tokenizer


def softmax(values: Sequence[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def drawn_targets(generator: torch.Generator, *, num: int, num_groups: int = 3) -> Targets:
    probs = torch.rand(num, 1, NUM_GRADES, generator=generator)
    probs[0, 0, :4] = 0.0
    return Targets(
        grade_probs_NG5=probs / probs.sum(-1, keepdim=True),
        grade_weights_NG=(torch.rand(num, 1, generator=generator) - 0.3).clamp(min=0),
        action_probs_NA=torch.rand(num, 2, generator=generator),
        action_weights_NA=(torch.rand(num, 2, generator=generator) - 0.3).clamp(min=0),
        group_N=torch.randint(num_groups, (num,), generator=generator).sort().values,
    )
