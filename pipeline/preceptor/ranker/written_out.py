"""Shared-prefix attention as matrix products with their gradient written out: what a CPU trains with.

Shapes: T tokens of the batch, P requests; of one request L prefix tokens, N documents of at most M tokens and D in all;
K key-value heads, G heads that share one of them, A = K x G, E width of a head, B = K x N, R = M x G.

For each key-value head the queries of all documents are one matrix against their prefix, which is never copied, and N
matrices against the documents' own keys; one softmax runs over both. Autograd would copy the prefix for each document,
each key for the heads that share it, and add gradients up row by row where tokens are laid out; here a token stands in
one place, so its gradient is read back from there. What is kept for the backward pass are the weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Block:
    """One request: where its documents' D tokens stand among N rows of M, and what they may look at."""

    num_prefix: int
    num_documents: int
    longest: int
    place_D: Tensor
    """For each of the documents' tokens, in order, its place in the N x M padded ones."""
    token_NM: Tensor
    """For each padded place its token, counted from the first document's first; 0 where there is none."""
    prefix_mask_1RL: Tensor
    document_mask_1RM: Tensor

    @property
    def num_tokens(self) -> int:
        """Its prefix's and its documents' tokens."""
        return self.num_prefix + len(self.place_D)


@lru_cache(maxsize=64)
def make_block(num_prefix: int, document_lengths: tuple[int, ...], *, group: int, dtype: torch.dtype) -> Block:
    """The block of one request, masks for `group` heads that share a key-value head; every layer of a pass asks."""
    longest = max(document_lengths, default=0)
    place, token, start = [], torch.zeros(len(document_lengths), longest, dtype=torch.long), 0
    for row, length in enumerate(document_lengths):
        place.append(torch.arange(row * longest, row * longest + length))
        token[row, :length] = torch.arange(start, start + length)
        start += length
    return Block(
        num_prefix=num_prefix,
        num_documents=len(document_lengths),
        longest=longest,
        place_D=torch.cat(place) if place else torch.zeros(0, dtype=torch.long),
        token_NM=token.flatten(),
        prefix_mask_1RL=_causal(num_prefix, group, dtype),
        document_mask_1RM=_causal(longest, group, dtype),
    )


def written_out(query_TAE: Tensor, key_TKE: Tensor, value_TKE: Tensor, blocks: Sequence[Block], scale: float) -> Tensor:
    """Attention output [T, A, E] of the requests that stand one after the other."""
    out: Tensor = _WrittenOut.apply(query_TAE, key_TKE, value_TKE, blocks, scale)
    return out


class _WrittenOut(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_TAE: Tensor, key_TKE: Tensor, value_TKE: Tensor, blocks: Sequence[Block], scale: float
    ) -> Tensor:
        out_TAE = torch.empty(query_TAE.shape, dtype=query_TAE.dtype)
        weights: list[Tensor] = []
        for block, query, key, value, out in _pieces(blocks, query_TAE, key_TKE, value_TKE, out_TAE):
            group = query.shape[1] // key.shape[1]
            laid = _lay_out(block, query, key, value, group, scale)
            own = torch.softmax(torch.baddbmm(block.prefix_mask_1RL, laid.query_K, laid.key_K.mT), dim=-1)
            out[: block.num_prefix] = _heads_last(own @ laid.value_K, group)
            weights.append(own)
            if not block.num_documents:
                continue
            on_prefix_BRL = (laid.query_J @ laid.key_K.mT).view(laid.query_B.shape[0], -1, block.num_prefix)
            on_own_BRM = torch.baddbmm(block.document_mask_1RM, laid.query_B, laid.key_B.mT)
            both = torch.softmax(torch.cat([on_prefix_BRL, on_own_BRM], dim=-1), dim=-1)
            found_BRE = both[..., block.num_prefix :] @ laid.value_B
            found_BRE.view(laid.query_J.shape).baddbmm_(_on_prefix(both, block, laid), laid.value_K)
            padded = _heads_last(found_BRE.view(laid.query_J.shape), group)
            torch.index_select(padded, 0, block.place_D, out=out[block.num_prefix :])
            weights.append(both)
        ctx.save_for_backward(query_TAE, key_TKE, value_TKE, *weights)
        ctx.blocks, ctx.scale = blocks, scale
        return out_TAE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query_TAE, key_TKE, value_TKE, *weights = ctx.saved_tensors
        grad_TAE = grads[0].contiguous()
        into = tuple(torch.empty(states.shape, dtype=states.dtype) for states in (query_TAE, key_TKE, value_TKE))
        kept = iter(weights)
        pieces = _pieces(ctx.blocks, query_TAE, key_TKE, value_TKE, grad_TAE, *into)
        for block, query, key, value, grad, query_into, key_into, value_into in pieces:
            group = query.shape[1] // key.shape[1]
            laid = _lay_out(block, query, key, value, group, ctx.scale)
            own, grad_K = next(kept), _heads_first(grad[: block.num_prefix], group)
            score_K = _softmax_gradient(grad_K @ laid.value_K.mT, own)
            query_into[: block.num_prefix] = _heads_last(score_K @ laid.key_K, group).mul_(ctx.scale)
            key_K, value_K = score_K.mT @ laid.query_K, own.mT @ grad_K
            if block.num_documents:
                both = next(kept)
                grad_J = _heads_first(_padded(grad[block.num_prefix :], block), group)
                grad_B = grad_J.view(laid.query_B.shape)
                towards = (grad_J @ laid.value_K.mT).view(len(both), -1, block.num_prefix)
                score_B = _softmax_gradient(torch.cat([towards, grad_B @ laid.value_B.mT], dim=-1), both)
                score_J, score_own = _on_prefix(score_B, block, laid), score_B[..., block.num_prefix :]
                query_J = torch.baddbmm((score_own @ laid.key_B).view(laid.query_J.shape), score_J, laid.key_K)
                key_K.baddbmm_(score_J.mT, laid.query_J)
                value_K.baddbmm_(_on_prefix(both, block, laid).mT, grad_J)
                query_padded = _heads_last(query_J, group).mul_(ctx.scale)
                torch.index_select(query_padded, 0, block.place_D, out=query_into[block.num_prefix :])
                _keys_back(score_own.mT @ laid.query_B, block, key_into)
                _keys_back(both[..., block.num_prefix :].mT @ grad_B, block, value_into)
            key_into[: block.num_prefix] = key_K.transpose(0, 1)
            value_into[: block.num_prefix] = value_K.transpose(0, 1)
        return (*into, None, None)


@dataclass(frozen=True, kw_only=True)
class _Laid:
    """A request's states: of its prefix by key-value head (K), of its documents by head (J) and by document too (B).

    Queries are scaled. J and B are two views of the same numbers.
    """

    query_K: Tensor
    key_K: Tensor
    value_K: Tensor
    query_J: Tensor
    query_B: Tensor
    key_B: Tensor
    value_B: Tensor


def _lay_out(block: Block, query: Tensor, key: Tensor, value: Tensor, group: int, scale: float) -> _Laid:
    num_keys, width = key.shape[1:]
    scaled = query * scale
    query_J = _heads_first(scaled[block.num_prefix :].index_select(0, block.token_NM), group)
    key_B, value_B = (
        states[block.num_prefix :]
        .index_select(0, block.token_NM)
        .view(block.num_documents, block.longest, num_keys, width)
        .permute(2, 0, 1, 3)
        .reshape(num_keys * block.num_documents, block.longest, width)
        for states in (key, value)
    )
    return _Laid(
        query_K=_heads_first(scaled[: block.num_prefix], group),
        key_K=key[: block.num_prefix].transpose(0, 1).contiguous(),
        value_K=value[: block.num_prefix].transpose(0, 1).contiguous(),
        query_J=query_J,
        query_B=query_J.view(num_keys * block.num_documents, block.longest * group, width),
        key_B=key_B,
        value_B=value_B,
    )


def _pieces(blocks: Sequence[Block], *states: Tensor) -> Any:
    sizes = [block.num_tokens for block in blocks]
    return zip(blocks, *(item.split(sizes) for item in states), strict=True)


def _on_prefix(weights_BRX: Tensor, block: Block, laid: _Laid) -> Tensor:
    """What documents' queries give the prefix, [K, N x R, L]: a view, since a head's documents follow each other."""
    return weights_BRX.view(*laid.query_J.shape[:2], -1)[..., : block.num_prefix]


def _padded(states_DAE: Tensor, block: Block) -> Tensor:
    rows = states_DAE.new_zeros(block.num_documents * block.longest, *states_DAE.shape[1:])
    return rows.index_copy_(0, block.place_D, states_DAE)


def _keys_back(states_BME: Tensor, block: Block, into: Tensor) -> None:
    states = states_BME.view(-1, block.num_documents * block.longest, states_BME.shape[-1]).transpose(0, 1)
    into[block.num_prefix :] = states.index_select(0, block.place_D)


def _heads_first(states_CAE: Tensor, group: int) -> Tensor:
    """[K, C x G, E] of [C, K x G, E]."""
    return states_CAE.unflatten(1, (-1, group)).transpose(0, 1).flatten(1, 2)


def _heads_last(states_KRE: Tensor, group: int) -> Tensor:
    """[C, K x G, E] of [K, C x G, E]."""
    return states_KRE.unflatten(1, (-1, group)).transpose(0, 1).flatten(1, 2)


def _softmax_gradient(grad: Tensor, weights: Tensor) -> Tensor:
    return torch._softmax_backward_data(grad, weights, -1, weights.dtype)


def _causal(length: int, group: int, dtype: torch.dtype) -> Tensor:
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    mask = torch.zeros(length, length, dtype=dtype).masked_fill_(hidden, float("-inf"))
    return mask.repeat_interleave(group, dim=0).unsqueeze(0)
