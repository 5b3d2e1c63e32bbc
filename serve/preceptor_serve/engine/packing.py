"""Pieces of requests as one packed batch: shared parts once, documents after them, no padding anywhere.

Shapes: T tokens of the batch, N documents in it. A request's shared part (the prefix) stands before its documents
unless its keys and values are known already. Documents of one piece stand by length, so that those of equal length are
one block, which attention takes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

Tokens = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class PrefixState:
    """What documents need of their prefix: keys and values of every layer, [layers, 2, L, K, E]."""

    states: Tensor

    @property
    def num_tokens(self) -> int:
        return self.states.shape[2]

    @property
    def num_bytes(self) -> int:
        return self.states.numel() * self.states.element_size()


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Documents of one request that go through the model in one pass, and their prefix: token ids, or what is known."""

    prefix: Tokens | PrefixState
    documents: tuple[Tokens, ...]

    @property
    def num_new_tokens(self) -> int:
        """Tokens it adds to a pass."""
        known = isinstance(self.prefix, PrefixState)
        return sum(map(len, self.documents)) + (0 if known else len(self.prefix))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Block:
    """`count` documents of `length` tokens each, from token `start` of the batch; the first ends as row `row` of N."""

    start: int
    count: int
    length: int
    row: int

    @property
    def span(self) -> slice:
        """Its tokens."""
        return slice(self.start, self.start + self.count * self.length)

    @property
    def rows(self) -> slice:
        """Its documents."""
        return slice(self.row, self.row + self.count)


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where a piece stands: its prefix's tokens (none where it is known), and its documents in blocks.

    `kept` is where keys and values of its prefix stand among those of all prefixes of the batch.
    """

    prefix_start: int
    num_prefix: int
    known: PrefixState | None
    kept: slice
    documents_start: int
    documents_stop: int
    blocks: tuple[Block, ...]

    @property
    def is_known(self) -> bool:
        """Whether its prefix's keys and values were known before."""
        return self.known is not None


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One batch. `order_N` says which document, counted over all pieces in the caller's order, each row is."""

    tokens_T: Tensor
    positions_T: Tensor
    ends_N: Tensor
    order_N: tuple[int, ...]
    pieces: tuple[Placed, ...]

    @property
    def num_kept(self) -> int:
        """Tokens of all prefixes."""
        return sum(piece.num_prefix for piece in self.pieces)


def pack(pieces: Sequence[Piece]) -> Packed:
    """`pieces` laid end to end."""
    tokens: list[int] = []
    positions: list[Tensor] = []
    ends: list[int] = []
    order: list[int] = []
    placed: list[Placed] = []
    first = num_kept = 0
    for piece in pieces:
        known = piece.prefix if isinstance(piece.prefix, PrefixState) else None
        prefix_start = len(tokens)
        if isinstance(piece.prefix, PrefixState):
            num_prefix = piece.prefix.num_tokens
        else:
            num_prefix = len(piece.prefix)
            tokens.extend(piece.prefix)
            positions.append(torch.arange(num_prefix))
        documents_start = len(tokens)
        blocks: list[Block] = []
        by_length = sorted(range(len(piece.documents)), key=lambda index: len(piece.documents[index]))
        for length, group in groupby(by_length, key=lambda index: len(piece.documents[index])):
            start, row, members = len(tokens), len(ends), list(group)
            for index in members:
                tokens.extend(piece.documents[index])
                ends.append(len(tokens) - 1)
                order.append(first + index)
            positions.append(torch.arange(num_prefix, num_prefix + length).repeat(len(members)))
            blocks.append(Block(start=start, count=len(members), length=length, row=row))
        first += len(piece.documents)
        placed.append(
            Placed(
                prefix_start=prefix_start,
                num_prefix=num_prefix,
                known=known,
                kept=slice(num_kept, num_kept + num_prefix),
                documents_start=documents_start,
                documents_stop=len(tokens),
                blocks=tuple(blocks),
            )
        )
        num_kept += num_prefix
    return Packed(
        tokens_T=torch.tensor(tokens, dtype=torch.long),
        positions_T=torch.cat(positions),
        ends_N=torch.tensor(ends, dtype=torch.long),
        order_N=tuple(order),
        pieces=tuple(placed),
    )
