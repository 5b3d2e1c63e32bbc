"""Attention over packed documents, in each of its ways, against a softmax for one token at a time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preceptor_serve.engine.attention import in_blocks
from preceptor_serve.engine.packing import Packed, Piece, PrefixState, pack
from preceptor_serve.engine.shape import Shape

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = Shape(num_heads=6, num_key_heads=2, width=8, epsilon=1e-5, scaling=8**-0.5)
# On both sides of 64 tokens, where another kernel takes over, and equal ones among them.
LENGTHS = st.sampled_from([1, 2, 17, 63, 64, 65, 90])
PIECES = st.lists(
    st.tuples(st.sampled_from([1, 5, 64, 80]), st.booleans(), st.lists(LENGTHS, min_size=1, max_size=4)),
    min_size=1,
    max_size=3,
)


def packed_of(asked: Sequence[tuple[int, bool, list[int]]]) -> Packed:
    """Pieces of (tokens of the prefix, whether it is known already, tokens of each document)."""
    pieces = []
    for num_prefix, known, lengths in asked:
        states = torch.zeros(1, 2, num_prefix, SHAPE.num_key_heads, SHAPE.width)
        prefix = PrefixState(states=states) if known else [1] * num_prefix
        pieces.append(Piece(prefix=prefix, documents=tuple([1] * length for length in lengths)))
    return pack(pieces)


def token_by_token(query_AE: Tensor, key_LKE: Tensor, value_LKE: Tensor) -> Tensor:
    """What one token sees of the keys it may look at, [A x E], in float64."""
    group = SHAPE.num_heads // SHAPE.num_key_heads
    heads = []
    for head, query_E in enumerate(query_AE.double()):
        key_LE, value_LE = key_LKE[:, head // group].double(), value_LKE[:, head // group].double()
        heads.append(torch.softmax(key_LE @ query_E * SHAPE.scaling, dim=0) @ value_LE)
    return torch.cat(heads)


@settings(max_examples=25)
@given(asked=PIECES, seed=st.integers(0, 2**31))
def test_each_token_sees_its_prefix_and_what_stands_before_it_in_its_document(
    asked: list[tuple[int, bool, list[int]]], seed: int
) -> None:
    packed = packed_of(asked)
    generator = torch.Generator().manual_seed(seed)

    def drawn(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    num_tokens = len(packed.tokens_T)
    query_TAE = drawn(num_tokens, SHAPE.num_heads, SHAPE.width)
    key_TKE, value_TKE = drawn(2, num_tokens, SHAPE.num_key_heads, SHAPE.width)
    prefixes_2SKE = drawn(2, packed.num_kept, SHAPE.num_key_heads, SHAPE.width)
    for piece in packed.pieces:
        if not piece.is_known:
            own = slice(piece.prefix_start, piece.documents_start)
            prefixes_2SKE[:, piece.kept] = torch.stack([key_TKE[own], value_TKE[own]])
    out_TX = torch.full((num_tokens, SHAPE.num_heads * SHAPE.width), torch.nan)

    in_blocks(packed, SHAPE, torch.float32)(query_TAE, key_TKE, value_TKE, prefixes_2SKE, out_TX)

    def expect(start: int, length: int, before_2LKE: Tensor) -> None:
        for token in {start, start + length // 2, start + length - 1}:
            seen = slice(start, token + 1)
            key_LKE = torch.cat([before_2LKE[0], key_TKE[seen]])
            value_LKE = torch.cat([before_2LKE[1], value_TKE[seen]])
            expected_X = token_by_token(query_TAE[token], key_LKE, value_LKE)
            assert (out_TX[token] - expected_X).abs().max() <= 1e-5

    for piece in packed.pieces:
        if not piece.is_known:
            expect(piece.prefix_start, piece.num_prefix, prefixes_2SKE[:, :0])
        for block in piece.blocks:
            for start in range(block.span.start, block.span.stop, block.length):
                expect(start, block.length, prefixes_2SKE[:, piece.kept])
    assert not out_TX.isnan().any()
