"""Attention over packed requests: documents look at their request's prefix and at themselves.

Shapes: T tokens of the batch, P prefixes of at most L tokens, N documents of at most M tokens, A attention heads,
K key-value heads, E width of a head.

The linear layers of the model see the T tokens as one flat sequence without any padding; only here are they laid out
as P prefixes and N documents. Measured on 2 cores with SmolLM2-135M, 8 documents of 66 tokens on a prefix of 55: a
dense T x T mask spends 35 % of a training step in attention, because 7 of 8 blocks of it are empty.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from preceptor.ranker.written_out import make_block, written_out

NAME: Final = "preceptor_shared_prefix"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the T flat tokens stand in the padded prefixes [P, L] and documents [N, M]."""

    prefix_PL: Tensor
    """Flat index of each prefix token; 0 where there is none."""
    document_NM: Tensor
    """Flat index of each document token; 0 where there is none."""
    owner_N: Tensor
    """The prefix of each document."""
    visible_N1MX: Tensor
    """True where a document's token (M) may look at a prefix or document token (X = L + M)."""
    padded_T: Tensor
    """For each flat token, its place in the concatenation of the padded prefixes and documents."""
    lengths: tuple[tuple[int, tuple[int, ...]], ...]
    """Of each request the tokens of its prefix, and of each of its documents."""

    def to(self, device: torch.device) -> Layout:
        """The same layout on `device`."""
        moved = {item.name: getattr(self, item.name).to(device) for item in fields(self) if item.name != "lengths"}
        return Layout(lengths=self.lengths, **moved)

    def seen_by(self, ends_N: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that each document's last one may look at, [N, X], and whether there is one at that place."""
        token_NX = torch.cat([self.prefix_PL.index_select(0, self.owner_N), self.document_NM], dim=1)
        last = [length - 1 for _, documents in self.lengths for length in documents]
        last_N = torch.tensor(last, dtype=torch.long, device=ends_N.device)
        return token_NX, self.visible_N1MX[torch.arange(len(last), device=ends_N.device), 0, last_N]


@dataclass(frozen=True, kw_only=True)
class PaddedRows:
    """The T flat tokens are N rows of S tokens each, a whole pair in each row, padded behind its end.

    What stands behind a pair's last token is never looked at, because attention is causal: no mask is needed for it.
    """

    num_rows: int
    length: int

    def to(self, device: torch.device) -> PaddedRows:
        """The same layout: it holds no tensor."""
        return self

    def seen_by(self, ends_N: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of each pair's row, [N, S], and whether its last one, `ends_N`, may look at them."""
        token_NS = torch.arange(self.num_rows * self.length, device=ends_N.device).view(self.num_rows, -1)
        return token_NS, token_NS <= ends_N.unsqueeze(1)


def make_layout(prefix_lengths: list[int], owners: list[int], document_lengths: list[int]) -> Layout:
    """The layout of prefixes and documents that stand one after the other: all of request 0, then of request 1, ..."""
    longest_prefix, longest_document = max(prefix_lengths), max(document_lengths)
    num_padded_prefix = len(prefix_lengths) * longest_prefix
    prefix = torch.zeros(len(prefix_lengths), longest_prefix, dtype=torch.long)
    document = torch.zeros(len(document_lengths), longest_document, dtype=torch.long)
    padded: list[Tensor] = []
    lengths: list[tuple[int, tuple[int, ...]]] = []
    start, row = 0, 0
    for owner, length in enumerate(prefix_lengths):
        prefix[owner, :length] = torch.arange(start, start + length)
        padded.append(owner * longest_prefix + torch.arange(length))
        start, first = start + length, row
        while row < len(owners) and owners[row] == owner:
            count = document_lengths[row]
            document[row, :count] = torch.arange(start, start + count)
            padded.append(num_padded_prefix + row * longest_document + torch.arange(count))
            start += count
            row += 1
        lengths.append((length, tuple(document_lengths[first:row])))
    owner_N = torch.tensor(owners, dtype=torch.long)
    in_prefix_NL = torch.arange(longest_prefix) < torch.tensor(prefix_lengths)[owner_N].unsqueeze(1)
    causal_MM = torch.ones(longest_document, longest_document, dtype=torch.bool).tril()
    visible_NMX = torch.cat(
        [
            in_prefix_NL.unsqueeze(1).expand(-1, longest_document, -1),
            causal_MM.unsqueeze(0).expand(len(owners), -1, -1),
        ],
        dim=2,
    )
    return Layout(
        prefix_PL=prefix,
        document_NM=document,
        owner_N=owner_N,
        visible_N1MX=visible_NMX.unsqueeze(1),
        padded_T=torch.cat(padded),
        lengths=tuple(lengths),
    )


def shared_prefix_attention(
    module: nn.Module,
    query_1ATE: Tensor,
    key_1KTE: Tensor,
    value_1KTE: Tensor,
    attention_mask: None,
    *,
    layout: Layout | PaddedRows,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention output [1, T, A, E] for the flat tokens; the signature is transformers' attention interface."""
    if isinstance(layout, PaddedRows):
        return _padded_attention(query_1ATE, key_1KTE, value_1KTE, layout, scaling), None
    repeats = query_1ATE.shape[1] // key_1KTE.shape[1]
    query_TAE, key_TKE, value_TKE = (states[0].transpose(0, 1) for states in (query_1ATE, key_1KTE, value_1KTE))
    if trains_on_cpu(query_TAE):
        blocks = [make_block(*lengths, group=repeats, dtype=query_TAE.dtype) for lengths in layout.lengths]
        return written_out(query_TAE, key_TKE, value_TKE, blocks, scaling).unsqueeze(0), None
    prefix_key, prefix_value = _lay_out(key_TKE, layout.prefix_PL), _lay_out(value_TKE, layout.prefix_PL)
    longest_prefix = layout.prefix_PL.shape[1]
    causal_LL = torch.ones(longest_prefix, longest_prefix, dtype=torch.bool, device=query_1ATE.device).tril()
    prefix_PALE = _attend(
        _lay_out(query_TAE, layout.prefix_PL),
        prefix_key.repeat_interleave(repeats, dim=1),
        prefix_value.repeat_interleave(repeats, dim=1),
        visible=causal_LL,
        scale=scaling,
    )
    key_NKXE = torch.cat([prefix_key[layout.owner_N], _lay_out(key_TKE, layout.document_NM)], dim=2)
    value_NKXE = torch.cat([prefix_value[layout.owner_N], _lay_out(value_TKE, layout.document_NM)], dim=2)
    document_NAME = _attend(
        _lay_out(query_TAE, layout.document_NM),
        key_NKXE.repeat_interleave(repeats, dim=1),
        value_NKXE.repeat_interleave(repeats, dim=1),
        visible=layout.visible_N1MX,
        scale=scaling,
    )
    laid_out = torch.cat([_flat(prefix_PALE), _flat(document_NAME)])
    return laid_out.index_select(0, layout.padded_T).unsqueeze(0), None


def _padded_attention(
    query_1ATE: Tensor, key_1KTE: Tensor, value_1KTE: Tensor, layout: PaddedRows, scaling: float
) -> Tensor:
    query_NASE, key_NKSE, value_NKSE = (
        states[0].unflatten(1, (layout.num_rows, -1)).transpose(0, 1) for states in (query_1ATE, key_1KTE, value_1KTE)
    )
    repeats, length = query_1ATE.shape[1] // key_1KTE.shape[1], query_NASE.shape[2]
    out_NASE = _attend(
        query_NASE,
        key_NKSE.repeat_interleave(repeats, dim=1),
        value_NKSE.repeat_interleave(repeats, dim=1),
        visible=torch.ones(length, length, dtype=torch.bool, device=query_1ATE.device).tril(),
        scale=scaling,
    )
    return _flat(out_NASE).unsqueeze(0)


def trains_on_cpu(states: Tensor) -> bool:
    """Whether a gradient of `states` will be asked of a CPU: for pieces this short torch's fused backward is slower."""
    return states.device.type == "cpu" and torch.is_grad_enabled()


def _attend(query: Tensor, key: Tensor, value: Tensor, *, visible: Tensor, scale: float) -> Tensor:
    """Attention of `query` [R, A, C, E] over `key` and `value` [R, A, X, E] where `visible` is true."""
    if not trains_on_cpu(query):
        return scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)
    weights = ((query * scale) @ key.transpose(-1, -2)).masked_fill(~visible, float("-inf"))
    return torch.softmax(weights, dim=-1, dtype=torch.float32).to(value.dtype) @ value


def _lay_out(states_TKE: Tensor, index_RC: Tensor) -> Tensor:
    rows, columns = index_RC.shape
    picked = states_TKE.index_select(0, index_RC.reshape(-1))
    return picked.view(rows, columns, *states_TKE.shape[1:]).transpose(1, 2)


def _flat(states_RACE: Tensor) -> Tensor:
    return states_RACE.transpose(1, 2).flatten(0, 1)


def register() -> None:
    """Make the attention known to transformers under NAME."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, shared_prefix_attention)
