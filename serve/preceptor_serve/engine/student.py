"""A student's weights laid out for scoring: projections that read the same input are one matrix.

Shapes: H hidden size, A attention heads, K key-value heads, E width of a head, R rows of the heads, V vocabulary.

The last layer is another kind of layer. After it only a document's last token is read, so it needs keys and values of
every token, and everything else of the last tokens alone: with 10 layers of SmolLM2's shape 9 % of the arithmetic.
Where it is the first too, keys and values hang on nothing but the word, until they are turned to their positions: they
are computed once for the vocabulary, and looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from preceptor.precision import computed_in
from preceptor_serve.engine.kernels import Kernels, Linear, MakeLinear, make_kernels
from preceptor_serve.engine.options import Precision
from preceptor_serve.engine.shape import Shape
from preceptor_serve.engine.weights import Weights, weights_of

Tensors = Mapping[str, Tensor]


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
    """All a forward pass reads. Rows of `turns_XE` are the rotations of the positions 0 to X.

    `states_VX`, X = 2 x K x E, holds each word's keys and values, not yet turned, where there is one layer alone and
    they take no more room than the embedding.
    """

    shape: Shape
    kernels: Kernels
    dtype: torch.dtype
    embedding_VH: Tensor
    states_VX: Tensor | None
    turns_XE: Tensor
    layers: tuple[Layer, ...]
    last: LastLayer
    norm_H: Tensor
    score_RH: Tensor


def make_student(classifier: Any, *, precision: Precision, max_tokens: int, kernels: Kernels | None = None) -> Student:
    """The weights of a Hugging Face classifier, as pack_student has them; UnknownArchitecture as weights_of."""
    return pack_student(weights_of(classifier), precision=precision, max_tokens=max_tokens, kernels=kernels)


def pack_student(weights: Weights, *, precision: Precision, max_tokens: int, kernels: Kernels | None = None) -> Student:
    """`weights` at `precision`, laid out for forward.py.

    `max_tokens` is the longest pair. `kernels`: unless given this machine's fastest, those of float32 where it has no
    instructions for bfloat16.
    """
    if kernels is None:
        precision = computed_in(precision)
        kernels = make_kernels(precision)
    # int8 is of the products; what lies between them is as it is without int8.
    dtype = getattr(torch, computed_in("bfloat16") if precision == "int8" else precision)
    tensors, make = weights.tensors, kernels.linear
    *whole, name = (f"model.layers.{index}" for index in range(weights.num_layers))
    last = _last_layer(tensors, name, make, dtype)
    embedding_VH = _plain(tensors["model.embed_tokens.weight"], dtype)
    return Student(
        shape=weights.shape,
        kernels=kernels,
        dtype=dtype,
        embedding_VH=embedding_VH,
        states_VX=None if whole else _word_states(embedding_VH, last, kernels, weights.shape),
        turns_XE=weights.turns(max_tokens, dtype),
        layers=tuple(_layer(tensors, layer, make, dtype) for layer in whole),
        last=last,
        norm_H=_plain(tensors["model.norm.weight"], torch.float32),
        score_RH=_plain(tensors["score.weight"], torch.float32),
    )


def _layer(tensors: Tensors, layer: str, make: MakeLinear, dtype: torch.dtype) -> Layer:
    attention = f"{layer}.self_attn"
    return Layer(
        norms=_norms(tensors, layer, dtype),
        query_key_value=_joined(tensors, make, dtype, *(f"{attention}.{name}_proj" for name in "qkv")),
        rest=_rest(tensors, layer, make, dtype),
    )


def _last_layer(tensors: Tensors, layer: str, make: MakeLinear, dtype: torch.dtype) -> LastLayer:
    attention = f"{layer}.self_attn"
    return LastLayer(
        norms=_norms(tensors, layer, dtype),
        query=_joined(tensors, make, dtype, f"{attention}.q_proj"),
        key_value=_joined(tensors, make, dtype, f"{attention}.k_proj", f"{attention}.v_proj"),
        rest=_rest(tensors, layer, make, dtype),
    )


@torch.inference_mode()
def _word_states(embedding_VH: Tensor, layer: LastLayer, kernels: Kernels, shape: Shape) -> Tensor | None:
    """[V, 2 x K x E]; None where that is larger than the embedding."""
    num_words, hidden = embedding_VH.shape
    size = 2 * shape.num_key_heads * shape.width
    if size > hidden:
        # Qwen3-0.6B's would be twice as wide: 600 MB for its vocabulary.
        return None
    states_VX = embedding_VH.new_empty(num_words, size)
    for words_CH, states_CX in zip(embedding_VH.split(_WORDS_AT_ONCE), states_VX.split(_WORDS_AT_ONCE), strict=True):
        states_CX.copy_(layer.key_value(kernels.norm(words_CH, layer.norms.input_H, shape.epsilon)))
    return states_VX


_WORDS_AT_ONCE: Final = 4096


def _norms(tensors: Tensors, layer: str, dtype: torch.dtype) -> Norms:
    query, key = (tensors.get(f"{layer}.self_attn.{name}_norm.weight") for name in "qk")
    return Norms(
        input_H=_plain(tensors[f"{layer}.input_layernorm.weight"], dtype),
        query_E=None if query is None else _plain(query, dtype),
        key_E=None if key is None else _plain(key, dtype),
    )


def _rest(tensors: Tensors, layer: str, make: MakeLinear, dtype: torch.dtype) -> Rest:
    return Rest(
        attention_out=_joined(tensors, make, dtype, f"{layer}.self_attn.o_proj"),
        norm_H=_plain(tensors[f"{layer}.post_attention_layernorm.weight"], dtype),
        gate_up=_joined(tensors, make, dtype, f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj"),
        down=_joined(tensors, make, dtype, f"{layer}.mlp.down_proj"),
    )


def _joined(tensors: Tensors, make: MakeLinear, dtype: torch.dtype, *names: str) -> Linear:
    """One linear layer for several that read the same input; their outputs stand side by side."""
    weights = [tensors[f"{name}.weight"] for name in names]
    weight_OI = torch.cat([_plain(weight, dtype) for weight in weights])
    biases = [tensors.get(f"{name}.bias") for name in names]
    if all(bias is None for bias in biases):
        return make(weight_OI, None)
    whole = [torch.zeros(len(w)) if bias is None else bias for w, bias in zip(weights, biases, strict=True)]
    return make(weight_OI, torch.cat([_plain(bias, dtype) for bias in whole]))


def _plain(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to(dtype).contiguous()
