"""How large a student is, how large each round of pruning leaves it, and its weights with only some of them kept.

Every layer keeps as many neurons, key-value groups and query heads as every other, because a Hugging Face config has
one number for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import torch
from torch import Tensor

from preceptor.errors import InputError
from preceptor.ranker.model import Ranker
from preceptor.recipe import PruneConfig

_MULTIPLE: Final = 8
"""Matrix kernels like widths that are a multiple of this; targets are one where the student's width is one."""

_ROWS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What of a student may be cut: layers, and of every layer its key-value groups, query heads of each, neurons."""

    layers: int
    groups: int
    heads: int
    """Query heads of one group."""
    mlp: int


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What of one layer stays: neurons, and query and key-value heads, by their numbers before the cut."""

    neurons: Tensor
    heads: Sequence[int]
    groups: Sequence[int]


def sizes_of(config: Any) -> Sizes:
    """The sizes that a Hugging Face config says."""
    return Sizes(
        layers=config.num_hidden_layers,
        groups=config.num_key_value_heads,
        heads=config.num_attention_heads // config.num_key_value_heads,
        mlp=config.intermediate_size,
    )


def head_width(config: Any) -> int:
    """The width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def target_sizes(start: Sizes, config: PruneConfig, *, round: int) -> Sizes:
    """What is left of `start` after `round` (from 1) of the config's rounds: as near to its part as whole units go.

    At least one of everything stays. After the last round the shares of `config` are cut.
    """
    left = {}
    for item in fields(Sizes):
        size, share = getattr(start, item.name), getattr(config, item.name)
        unit = _MULTIPLE if item.name == "mlp" and size % _MULTIPLE == 0 else 1
        left[item.name] = max(round_half_up(size / unit * (1 - share * round / config.num_rounds)), 1) * unit
    return Sizes(**left)


def round_half_up(value: float) -> int:
    """The nearest whole number, halves up; a hair below a half, as shares in binary are, counts as a half."""
    return int(value + 0.5 + 1e-9)


def parameters_of(ranker: Ranker) -> dict[str, int]:
    """How many parameters the ranker has: in all, and outside the embeddings."""
    total = sum(weight.numel() for weight in ranker.classifier.parameters())
    return {"total": total, "outside_embeddings": total - ranker.classifier.model.embed_tokens.weight.numel()}


def require_prunable(ranker: Ranker) -> None:
    """Nothing; InputError for an architecture whose layers are not attention and a gated MLP of known names."""
    for layer in ranker.classifier.model.layers:
        parts = {**dict(layer.self_attn.named_children()), **dict(layer.mlp.named_children())}
        lacking = [name for name in _ROWS if not isinstance(parts.get(name), torch.nn.Linear)]
        if lacking:
            raise InputError(
                f"a {ranker.classifier.config.model_type} student has no {', '.join(lacking)} to cut. "
                "Prune Llama-like students (SmolLM2, Qwen), or leave prune out of the recipe."
            )


def with_sizes(ranker: Ranker, sizes: Sizes, weights: Mapping[str, Tensor], **changed: Any) -> Ranker:
    """A ranker of the given sizes with `weights`, the state of its Hugging Face classifier; same heads and limits.

    `changed` are other values of its config.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = ranker.classifier.config
    values = {
        **config.to_dict(),
        "architectures": None,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.groups,
        "num_attention_heads": sizes.groups * sizes.heads,
        "head_dim": head_width(config),
        "intermediate_size": sizes.mlp,
        **changed,
    }
    if getattr(config, "layer_types", None) and "layer_types" not in changed:
        values["layer_types"] = config.layer_types[: sizes.layers]
    classifier = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**values), dtype=torch.float32)
    classifier.load_state_dict(weights)
    return Ranker(classifier.eval(), ranker.heads, ranker.limits)


def narrowed(ranker: Ranker, kept: Sequence[Kept], outputs: Mapping[str, Tensor]) -> Ranker:
    """The ranker with only what `kept` names of each layer.

    `outputs` has weights that stand for cut ones, by their name in the state, such as those of a corrected projection.
    """
    state = dict(ranker.classifier.state_dict())
    width = head_width(ranker.classifier.config)
    for index, layer in enumerate(kept):
        queries, keys = _spread(layer.heads, width), _spread(layer.groups, width)
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            _cut_rows(state, f"model.layers.{index}.self_attn.{name}", rows)
        for name in ("gate_proj", "up_proj"):
            _cut_rows(state, f"model.layers.{index}.mlp.{name}", layer.neurons)
        for name, inputs in (("self_attn.o_proj", queries), ("mlp.down_proj", layer.neurons)):
            key = f"model.layers.{index}.{name}.weight"
            state[key] = outputs[key] if key in outputs else state[key][:, inputs]
    first = kept[0]
    sizes = Sizes(
        layers=len(kept),
        groups=len(first.groups),
        heads=len(first.heads) // len(first.groups),
        mlp=len(first.neurons),
    )
    return with_sizes(ranker, sizes, state)


def without_layers(ranker: Ranker, gone: Sequence[int]) -> Ranker:
    """The ranker without these layers."""
    left = [index for index in range(len(ranker.classifier.model.layers)) if index not in set(gone)]
    place = {index: new for new, index in enumerate(left)}
    state = {}
    for name, weight in ranker.classifier.state_dict().items():
        parts = name.split(".")
        if parts[:2] != ["model", "layers"]:
            state[name] = weight
        elif int(parts[2]) in place:
            state[".".join([*parts[:2], str(place[int(parts[2])]), *parts[3:]])] = weight
    config = ranker.classifier.config
    types = getattr(config, "layer_types", None)
    changed = {"layer_types": [types[index] for index in left]} if types else {}
    return with_sizes(ranker, replace(sizes_of(config), layers=len(left)), state, **changed)


def _cut_rows(state: dict[str, Tensor], module: str, rows: Tensor) -> None:
    for key in (f"{module}.weight", f"{module}.bias"):
        if key in state:
            state[key] = state[key][rows]


def _spread(heads: Sequence[int], width: int) -> Tensor:
    return (torch.tensor(heads).unsqueeze(1) * width + torch.arange(width)).flatten()
