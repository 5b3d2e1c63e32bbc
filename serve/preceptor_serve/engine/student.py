"""A student's weights laid out for scoring: projections that read the same input are one matrix.

Shapes: H hidden size, A attention heads, K key-value heads, E width of a head, R rows of the heads, V vocabulary.

The last layer is another kind of layer. After it only a document's last token is read, so it needs keys and values of
every token, and everything else of the last tokens alone: with 10 layers of SmolLM2's shape 9 % of the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from preceptor.errors import InputError
from preceptor_serve.engine.kernels import Kernels, Linear, MakeLinear, make_kernels
from preceptor_serve.engine.options import Precision
from preceptor_serve.engine.shape import Shape

KNOWN_TYPES: Final = ("llama", "qwen3")
"""Architectures whose layers are the ones written down in forward.py."""


USUAL_TURNS: Final = ("default", "linear", "llama3", "yarn")
"""Kinds of rotation that depend on the position alone. Others (dynamic, longrope) depend on how long the text is."""


class UnknownArchitecture(InputError):
    """A classifier that transformers can compute and the packed forward pass cannot."""


@dataclass(frozen=True, kw_only=True)
class Rest:
    """What follows attention in a layer."""

    attention_out: Linear
    norm_H: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, kw_only=True)
class Norms:
    """What a layer's input goes through first, and, in some architectures, its queries and keys."""

    input_H: Tensor
    query_E: Tensor | None
    key_E: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that every token goes through."""

    norms: Norms
    query_key_value: Linear
    rest: Rest


@dataclass(frozen=True, kw_only=True)
class LastLayer:
    """The layer after which only the documents' last tokens are read."""

    norms: Norms
    query: Linear
    key_value: Linear
    rest: Rest


@dataclass(frozen=True, kw_only=True)
class Student:
    """All a forward pass reads. Rows of `turns_XE` are the rotations of the positions 0 to X."""

    shape: Shape
    kernels: Kernels
    dtype: torch.dtype
    embedding_VH: Tensor
    turns_XE: Tensor
    layers: tuple[Layer, ...]
    last: LastLayer
    norm_H: Tensor
    score_RH: Tensor


def make_student(classifier: Any, *, precision: Precision, max_tokens: int, kernels: Kernels | None = None) -> Student:
    """The weights of a Hugging Face classifier at `precision`; UnknownArchitecture where forward.py is not its layers.

    `max_tokens` is the longest pair. `kernels`: this machine's fastest unless given. The classifier is only read.
    """
    config = classifier.config
    _require_known(classifier)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    kernels = kernels or make_kernels(precision)
    model = classifier.model
    *whole, last = model.layers
    # transformers rotates in float32 and rounds the result: asked of it, so that no variant is written down twice.
    cos_1XE, sin_1XE = model.rotary_emb(torch.empty(0, dtype=dtype), torch.arange(max_tokens).unsqueeze(0))
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Student(
        shape=Shape(
            num_heads=config.num_attention_heads,
            num_key_heads=config.num_key_value_heads,
            width=width,
            epsilon=config.rms_norm_eps,
            scaling=width**-0.5,
        ),
        kernels=kernels,
        dtype=dtype,
        embedding_VH=_plain(model.embed_tokens.weight, dtype),
        turns_XE=torch.cat([cos_1XE[0, :, : width // 2], sin_1XE[0, :, : width // 2]], dim=1).contiguous(),
        layers=tuple(_layer(layer, kernels.linear, dtype) for layer in whole),
        last=_last_layer(last, kernels.linear, dtype),
        norm_H=_plain(model.norm.weight, torch.float32),
        score_RH=_plain(classifier.score.weight, torch.float32),
    )


def _require_known(classifier: Any) -> None:
    config = classifier.config
    odd = [
        f"{name}={getattr(config, name)}"
        for name, usual in (("hidden_act", "silu"), ("use_sliding_window", False), ("pretraining_tp", 1))
        if getattr(config, name, usual) not in (usual, None)
    ]
    if config.model_type in KNOWN_TYPES:
        turns = getattr(classifier.model.rotary_emb, "rope_type", "default")
        odd += [] if turns in USUAL_TURNS else [f"rope_type={turns}"]
    if config.model_type not in KNOWN_TYPES or odd:
        got = " with ".join([config.model_type, *odd])
        raise UnknownArchitecture(f"the packed engine computes {' and '.join(KNOWN_TYPES)} students, got {got}")


def _layer(layer: Any, make: MakeLinear, dtype: torch.dtype) -> Layer:
    attention = layer.self_attn
    return Layer(
        norms=_norms(layer, dtype),
        query_key_value=_joined(make, dtype, attention.q_proj, attention.k_proj, attention.v_proj),
        rest=_rest(layer, make, dtype),
    )


def _last_layer(layer: Any, make: MakeLinear, dtype: torch.dtype) -> LastLayer:
    attention = layer.self_attn
    return LastLayer(
        norms=_norms(layer, dtype),
        query=_joined(make, dtype, attention.q_proj),
        key_value=_joined(make, dtype, attention.k_proj, attention.v_proj),
        rest=_rest(layer, make, dtype),
    )


def _norms(layer: Any, dtype: torch.dtype) -> Norms:
    attention = layer.self_attn
    query, key = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    return Norms(
        input_H=_plain(layer.input_layernorm.weight, dtype),
        query_E=None if query is None else _plain(query.weight, dtype),
        key_E=None if key is None else _plain(key.weight, dtype),
    )


def _rest(layer: Any, make: MakeLinear, dtype: torch.dtype) -> Rest:
    return Rest(
        attention_out=_joined(make, dtype, layer.self_attn.o_proj),
        norm_H=_plain(layer.post_attention_layernorm.weight, dtype),
        gate_up=_joined(make, dtype, layer.mlp.gate_proj, layer.mlp.up_proj),
        down=_joined(make, dtype, layer.mlp.down_proj),
    )


def _joined(make: MakeLinear, dtype: torch.dtype, *modules: Any) -> Linear:
    """One linear layer for several that read the same input; their outputs stand side by side."""
    weight_OI = torch.cat([_plain(module.weight, dtype) for module in modules])
    if all(module.bias is None for module in modules):
        return make(weight_OI, None)
    biases = [torch.zeros(module.weight.shape[0]) if module.bias is None else module.bias for module in modules]
    return make(weight_OI, torch.cat([_plain(bias, dtype) for bias in biases]))


def _plain(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to(dtype).contiguous()
