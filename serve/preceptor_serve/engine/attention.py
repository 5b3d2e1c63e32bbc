"""Attention of packed documents over their prefix and themselves.

Shapes: T tokens of the batch, S tokens of all its prefixes, N documents of M tokens, Q queries of each (M, or 1: the
last), A attention heads, K key-value heads, G heads that share one of them, L tokens of one prefix, E width of a head.

Three ways to the same sums. `in_one_call` gives the whole batch to the kernel of vLLM's CPU build that is made for
texts with a known prefix. `in_blocks` is torch, documents of one length at once, in one of two ways. `attend`: for each
key-value head, the queries of all documents are one matrix against the prefix, and N matrices against the documents'
own keys, with one softmax over both. `attend_fused`: torch's fused kernel, for which each document gets its prefix's
keys and values beside its own.

Measured on 2 cores, 9 heads of 64. In bfloat16, 4 documents of 160 tokens on a prefix of 96: one call 1.3 ms, `attend`
4.7 ms, and the fused kernel for each part 6 times that. In float32 with AVX2, `attend` over `attend_fused`: 8
documents of 160 on 96 1.2 times, of 160 on 1,000 3.0, 4 of 512 on 96 2.6; 50 of 20 on 96 0.9, of one token 0.6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from preceptor_serve.engine.packing import Packed
from preceptor_serve.engine.shape import Shape


class Attention(Protocol):
    """Fills `out_TX`, X = A x E, for every token of the batch it is made for.

    `prefixes_2SKE` holds keys and values of the batch's prefixes, as `Placed.kept` says where.
    """

    def __call__(
        self, query_TAE: Tensor, key_TKE: Tensor, value_TKE: Tensor, prefixes_2SKE: Tensor, out_TX: Tensor
    ) -> None: ...


MakeAttention = Callable[[Packed, Shape, torch.dtype], Attention]


def in_blocks(packed: Packed, shape: Shape, dtype: torch.dtype) -> Attention:
    """Torch's, at any precision and width."""
    lengths = {block.length for piece in packed.pieces for block in piece.blocks}
    lengths |= {piece.num_prefix for piece in packed.pieces if not piece.is_known}
    group = shape.num_heads // shape.num_key_heads
    longest_prefix = max(piece.num_prefix for piece in packed.pieces)
    fused = {length for length in lengths if dtype == torch.float32 and length >= _FUSED_FROM}
    masks = {
        length: mask_behind(longest_prefix, length) if length in fused else causal_mask(length, group, dtype)
        for length in lengths
    }

    def attention(query_TAE: Tensor, key_TKE: Tensor, value_TKE: Tensor, prefixes_2SKE: Tensor, out_TX: Tensor) -> None:
        def over(span: slice, prefix_2LKE: Tensor | None, *, count: int, length: int) -> None:
            (attend_fused if length in fused else attend)(
                query_TAE[span],
                key_TKE[span],
                value_TKE[span],
                prefix_2LKE,
                count=count,
                scaling=shape.scaling,
                mask=masks[length],
                out_CX=out_TX[span],
            )

        for piece in packed.pieces:
            if not piece.is_known:
                over(slice(piece.prefix_start, piece.documents_start), None, count=1, length=piece.num_prefix)
            for block in piece.blocks:
                over(block.span, prefixes_2SKE[:, piece.kept], count=block.count, length=block.length)

    return attention


_FUSED_FROM: Final = 64
"""Tokens of a document, in float32. Where documents are short the prefix's copies cost more than fusing spares."""


def in_one_call(library: Any, packed: Packed, shape: Shape, dtype: torch.dtype) -> Attention:
    """That of vLLM's CPU build `library`, where it computes heads of this width and type; else `in_blocks`."""
    if shape.width % _WIDTHS or dtype != torch.bfloat16:
        return in_blocks(packed, shape, dtype)
    # Each unknown prefix is a text of its own on nothing, each document one on the slots of its prefix.
    texts: list[tuple[int, int, slice]] = []
    for piece in packed.pieces:
        if not piece.is_known:
            texts.append((piece.prefix_start, piece.num_prefix, slice(0, 0)))
        for block in piece.blocks:
            starts = range(block.span.start, block.span.stop, block.length)
            texts.extend((start, block.length, piece.kept) for start in starts)
    known = [kept.stop - kept.start for _, _, kept in texts]
    ends = [length + before for (_, length, _), before in zip(texts, known, strict=True)]
    slots_NL = torch.zeros(len(texts), max(ends), dtype=torch.int32)
    for row, (_, _, kept) in zip(slots_NL, texts, strict=True):
        torch.arange(kept.start, kept.stop, dtype=torch.int32, out=row[: kept.stop - kept.start])
    lengths = [length for _, length, _ in texts]
    ends_N, lengths_N = torch.tensor(ends), torch.tensor(lengths, dtype=torch.int32)
    starts_N = torch.tensor([start for start, _, _ in texts], dtype=torch.int32)
    rows_N, longest = torch.arange(len(texts)), max(lengths)

    def attention(query_TAE: Tensor, key_TKE: Tensor, value_TKE: Tensor, prefixes_2SKE: Tensor, out_TX: Tensor) -> None:
        library.extend_attention_cpu(
            q_extend=query_TAE,
            k_extend=key_TKE,
            v_extend=value_TKE,
            o_extend=out_TX.view(query_TAE.shape),
            k_buffer=prefixes_2SKE[0],
            v_buffer=prefixes_2SKE[1],
            req_to_token=slots_NL,
            req_pool_indices=rows_N,
            seq_lens=ends_N,
            extend_seq_lens=lengths_N,
            extend_start_loc=starts_N,
            max_len_extend=longest,
            sm_scale=shape.scaling,
            logit_cap=0.0,
            is_cross_attn=False,
            sliding_window_size=-1,
            encoder_lens=None,
            sinks=None,
        )

    return attention


_WIDTHS: Final = 32
"""The kernel computes heads whose width is a multiple of this."""


def mask_behind(prefix: int, length: int) -> Tensor:
    """[M, L + M] in float32, -inf where a token of a document of `length` would look ahead of itself."""
    return torch.full((length, prefix + length), float("-inf")).triu_(prefix + 1)


def causal_mask(length: int, group: int, dtype: torch.dtype) -> Tensor:
    """[1, M x G, M], -inf where a token would look ahead, for queries that stand as (token, head of the group)."""
    hidden_MM = torch.ones(length, length, dtype=torch.bool).triu(1)
    mask_MM = torch.zeros(length, length, dtype=dtype).masked_fill_(hidden_MM, float("-inf"))
    return mask_MM.repeat_interleave(group, dim=0).unsqueeze(0)


def attend(
    query_CAE: Tensor,
    key_DKE: Tensor,
    value_DKE: Tensor,
    prefix_2LKE: Tensor | None,
    *,
    count: int,
    scaling: float,
    mask: Tensor | None,
    out_CX: Tensor,
) -> None:
    """Fills `out_CX`, [C, A x E], for the C = N x Q queries of `count` documents, whose D = N x M keys and values stand
    in their order.

    `mask`, of `causal_mask`, hides what stands ahead of a query; a document's last token needs none.
    """
    num_queries, num_heads, width = query_CAE.shape
    num_key_heads = key_DKE.shape[1]
    group = num_heads // num_key_heads
    scaled = torch.empty(num_key_heads, num_queries, group, width, dtype=query_CAE.dtype)
    torch.mul(query_CAE.unflatten(1, (num_key_heads, group)).permute(1, 0, 2, 3), scaling, out=scaled)
    rows = num_queries // count * group
    query_BRE = scaled.view(num_key_heads * count, rows, width)
    key_BEM = key_DKE.unflatten(0, (count, -1)).permute(2, 0, 3, 1).flatten(0, 1)
    value_BME = value_DKE.unflatten(0, (count, -1)).permute(2, 0, 1, 3).flatten(0, 1)
    own_BRM = torch.bmm(query_BRE, key_BEM) if mask is None else torch.baddbmm(mask, query_BRE, key_BEM)
    if prefix_2LKE is None:
        out_BRE = torch.bmm(torch.softmax(own_BRM, dim=-1), value_BME)
    else:
        key_LKE, value_LKE = prefix_2LKE.unbind(0)
        shared = torch.bmm(scaled.view(num_key_heads, count * rows, width), key_LKE.permute(1, 2, 0))
        num_prefix = key_LKE.shape[0]
        weights = torch.softmax(torch.cat([shared.view(-1, rows, num_prefix), own_BRM], dim=-1), dim=-1)
        out_BRE = torch.bmm(weights[..., num_prefix:], value_BME)
        on_prefix = weights.view(num_key_heads, count * rows, -1)[..., :num_prefix]
        out_BRE.view(num_key_heads, count * rows, width).baddbmm_(on_prefix, value_LKE.transpose(0, 1))
    found_KCGE = out_BRE.view(num_key_heads, num_queries, group, width)
    out_CX.view(num_queries, num_key_heads, group, width).copy_(found_KCGE.permute(1, 0, 2, 3))


def attend_fused(
    query_CAE: Tensor,
    key_DKE: Tensor,
    value_DKE: Tensor,
    prefix_2LKE: Tensor | None,
    *,
    count: int,
    scaling: float,
    mask: Tensor,
    out_CX: Tensor,
) -> None:
    """As `attend`, of all tokens of the documents; `mask` is one of `mask_behind`, of this prefix or a longer one."""

    def by_document(states_DXE: Tensor, prefix_LKE: Tensor | None = None) -> Tensor:
        states_NMXE = states_DXE.unflatten(0, (count, -1))
        if prefix_LKE is not None:
            states_NMXE = torch.cat([prefix_LKE.expand(count, -1, -1, -1), states_NMXE], dim=1)
        return states_NMXE.transpose(1, 2)

    key_LKE, value_LKE = (None, None) if prefix_2LKE is None else prefix_2LKE.unbind(0)
    key_NKXE = by_document(key_DKE, key_LKE)
    found_NAME = scaled_dot_product_attention(
        by_document(query_CAE),
        key_NKXE,
        by_document(value_DKE, value_LKE),
        attn_mask=mask[:, -key_NKXE.shape[2] :],
        scale=scaling,
        enable_gqa=True,
    )
    out_CX.view(count, -1, *query_CAE.shape[1:]).copy_(found_NAME.transpose(1, 2))
