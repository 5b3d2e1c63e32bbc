"""The last layer for the tokens whose logits are read, each document's last: the others give keys and values only.

Shapes: T tokens of the batch, N documents, X tokens that a document's last one looks at, at most; K key-value heads, G
heads that share one of them, E width of a head, H hidden size.

Of a layer's arithmetic seven eighths or more are queries, attention's output and the MLP, which nobody asks of the
other tokens: of a student of ten layers that is a twelfth of a step, of a teacher of 30 a thirtieth.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, Final

import torch
from torch import Tensor, nn

from preceptor.ranker.attention import Layout, PaddedRows

KNOWN: Final = ("llama", "qwen2", "qwen3", "mistral")
"""Architectures whose layers are those below: norm, attention, norm, MLP, with norms of queries and keys or without."""

_METHOD: Final = "last_tokens"


def last_hidden(
    model: Any, tokens_T: Tensor, positions_T: Tensor, layout: Layout | PaddedRows, ends_N: Tensor
) -> Tensor:
    """Hidden states [N, H] of the tokens `ends_N` after all layers and the last norm, of a Llama-like `model`."""
    hidden_1TH = model.embed_tokens(tokens_T.unsqueeze(0))
    positions_1T = positions_T.unsqueeze(0)
    turns = model.rotary_emb(hidden_1TH, position_ids=positions_1T)
    *layers, last = model.layers
    for layer in layers:
        hidden_1TH = layer(
            hidden_1TH,
            attention_mask=None,
            position_ids=positions_1T,
            past_key_values=None,
            use_cache=False,
            position_embeddings=turns,
            layout=layout,
        )
    found: Tensor = getattr(last, _METHOD, MethodType(_last_tokens, last))(hidden_1TH, turns, layout, ends_N)
    return model.norm(found)[0]


def register_last_layer(layer: nn.Module) -> None:
    """Let a sharded `layer` gather its weights for `last_hidden` as it does for its own forward."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    setattr(layer, _METHOD, MethodType(_last_tokens, layer))
    register_fsdp_forward_method(layer, _METHOD)


def _last_tokens(
    layer: Any, hidden_1TH: Tensor, turns: tuple[Tensor, Tensor], layout: Layout | PaddedRows, ends_N: Tensor
) -> Tensor:
    attention = layer.self_attn
    normed_1TH = layer.input_layernorm(hidden_1TH)
    query, key, value = (
        project(states)[0].unflatten(-1, (-1, attention.head_dim))
        for project, states in (
            (attention.q_proj, normed_1TH.index_select(1, ends_N)),
            (attention.k_proj, normed_1TH),
            (attention.v_proj, normed_1TH),
        )
    )
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    cos_TE, sin_TE = (item[0] for item in turns)
    query_NAE = _turned(query, cos_TE.index_select(0, ends_N), sin_TE.index_select(0, ends_N))
    token_NX, visible_NX = layout.seen_by(ends_N)
    out_NX = _attend(query_NAE, _turned(key, cos_TE, sin_TE), value, token_NX, visible_NX, attention.scaling)
    last_1NH = hidden_1TH.index_select(1, ends_N) + attention.o_proj(out_NX.unsqueeze(0))
    after: Tensor = last_1NH + layer.mlp(layer.post_attention_layernorm(last_1NH))
    return after


def _attend(
    query_NAE: Tensor, key_TKE: Tensor, value_TKE: Tensor, token_NX: Tensor, visible_NX: Tensor, scale: float
) -> Tensor:
    num_documents, num_seen = token_NX.shape
    num_keys = key_TKE.shape[1]
    key_NKXE, value_NKXE = (
        states.index_select(0, token_NX.flatten()).unflatten(0, (num_documents, num_seen)).transpose(1, 2)
        for states in (key_TKE, value_TKE)
    )
    scores_NKGX = (query_NAE * scale).unflatten(1, (num_keys, -1)) @ key_NKXE.mT
    hidden_N11X = ~visible_NX[:, None, None]
    weights_NKGX = torch.softmax(scores_NKGX.masked_fill(hidden_N11X, float("-inf")), dim=-1, dtype=torch.float32)
    return (weights_NKGX.to(value_TKE.dtype) @ value_NKXE).flatten(1)


def _turned(states_CSE: Tensor, cos_CE: Tensor, sin_CE: Tensor) -> Tensor:
    left, right = states_CSE.chunk(2, dim=-1)
    return states_CSE * cos_CE.unsqueeze(1) + torch.cat([-right, left], dim=-1) * sin_CE.unsqueeze(1)
