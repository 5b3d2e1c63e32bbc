"""What becomes of a ranker before it trains: frozen parts, recomputed activations, shards, an optimiser."""

from __future__ import annotations

import torch
from torch import nn

from preceptor.precision import computed_in
from preceptor.ranker.last_layer import register_last_layer
from preceptor.ranker.model import Ranker
from preceptor.recipe import TrainConfig


def make_optimizer(ranker: Ranker, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; score rows and embeddings learn at their own rates."""
    rates = {"score": config.head_learning_rate, "embed_tokens": config.embedding_learning_rate}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, weight in ranker.named_parameters():
        if weight.requires_grad:
            part = next((part for part in rates if part in name.split(".")), None)
            groups.setdefault(rates[part] if part else config.learning_rate, []).append(weight)
    return torch.optim.AdamW(
        [{"params": weights, "lr": rate, "peak": rate} for rate, weights in groups.items()],
        weight_decay=config.weight_decay,
        betas=(0.9, 0.98),
        fused=True,
    )


def recompute_activations(ranker: Ranker, config: TrainConfig) -> None:
    """Keep of each layer only what went in, where the recipe says so: the backward pass computes the layer again."""
    if config.activations == "recomputed":
        ranker.classifier.gradient_checkpointing_enable({"use_reentrant": False})


def freeze_embeddings(ranker: Ranker, config: TrainConfig) -> None:
    """Fix the embeddings where their learning rate is 0: no gradient, no optimiser state."""
    if config.embedding_learning_rate == 0:
        ranker.classifier.model.embed_tokens.requires_grad_(False)


def shard(ranker: Ranker, config: TrainConfig) -> Ranker:
    """The ranker with each layer, and the rest, sharded over all workers (FSDP2).

    What is frozen is kept whole by every worker, in the precision it is computed in: gathering SmolLM2's embeddings
    anew in each step cost more than a quarter of a step of 6 layers.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    precision = getattr(torch, computed_in(config.precision, num_gpus=config.gpus_per_worker))
    policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
    frozen = {weight for weight in ranker.parameters() if not weight.requires_grad}
    for weight in frozen:
        weight.data = weight.data.to(precision)
    # Gathered parameters stay until the step ends: one gather a step, at the cost of a copy in the low precision.
    for layer in ranker.classifier.model.layers:
        fully_shard(layer, mp_policy=policy, reshard_after_forward=config.gpus_per_worker > 0)
    register_last_layer(ranker.classifier.model.layers[-1])
    fully_shard(ranker, mp_policy=policy, reshard_after_forward=config.gpus_per_worker > 0, ignored_params=frozen)
    return ranker
