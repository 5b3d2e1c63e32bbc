"""One forward pass of a student over a packed batch.

Shapes: T tokens of the batch, N documents in it, H hidden size, A attention heads, K key-value heads, S = A + K, E
width of a head, P tokens of all prefixes, R rows of the heads.

Linear layers run over all T tokens at once; only attention knows pieces and blocks. The layers are those of Llama, and
of Qwen3, which also norms queries and keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from preceptor_serve.engine.attention import Attention, attend
from preceptor_serve.engine.packing import Packed, PrefixState
from preceptor_serve.engine.shape import Shape
from preceptor_serve.engine.student import LastLayer, Layer, Norms, Rest, Student


@dataclass(frozen=True, kw_only=True)
class Forwarded:
    """Raw logits [N, R] in float32, rows as the batch's documents stand, and what each piece's prefix came to."""

    logits_NR: Tensor
    prefixes: tuple[PrefixState, ...]


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """What every layer of one pass shares."""

    student: Student
    packed: Packed
    prefixes: Tensor
    """Keys and values of all prefixes, [layers, 2, P, K, E]: known before, or filled layer by layer."""

    @cached_property
    def attention(self) -> Attention:
        """Of every token. Made when it is first asked for, because a last layer alone never does."""
        return self.student.kernels.attention(self.packed, self.student.shape, self.student.dtype)


@torch.inference_mode()
def forward(student: Student, packed: Packed) -> Forwarded:
    """What `student` says of the documents of `packed`."""
    shared = _begin(student, packed)
    if student.states_VX is None:
        hidden_TH = student.embedding_VH.index_select(0, packed.tokens_T)
        for index, layer in enumerate(student.layers):
            _whole_layer(hidden_TH, layer, index, shared)
        last_NH = hidden_TH.index_select(0, packed.ends_N)
        states_TX = student.last.key_value(_input_normed(hidden_TH, student.last, student))
    else:
        last_NH = student.embedding_VH.index_select(0, packed.tokens_T.index_select(0, packed.ends_N))
        states_TX = student.states_VX.index_select(0, packed.tokens_T)
    _last_layer(last_NH, states_TX, shared)
    # The heads in float32, whatever the layers: it costs nothing, and bfloat16 knows no number between 4 and 4.03.
    normed_NH = rms_norm(last_NH.float(), (last_NH.shape[1],), student.norm_H, student.shape.epsilon)
    return Forwarded(
        logits_NR=linear(normed_NH, student.score_RH),
        prefixes=tuple(
            # A copy: a part alone would keep the whole pass's in memory.
            piece.known or PrefixState(states=shared.prefixes[:, :, piece.kept].clone())
            for piece in packed.pieces
        ),
    )


def _begin(student: Student, packed: Packed) -> _Pass:
    shape, dtype = student.shape, student.dtype
    num_layers = len(student.layers) + 1
    prefixes = torch.empty(num_layers, 2, packed.num_kept, shape.num_key_heads, shape.width, dtype=dtype)
    for piece in packed.pieces:
        if piece.known is not None:
            prefixes[:, :, piece.kept] = piece.known.states
    return _Pass(student=student, packed=packed, prefixes=prefixes)


def _whole_layer(hidden_TH: Tensor, layer: Layer, index: int, shared: _Pass) -> None:
    """Adds to `hidden_TH` what `layer` computes of it."""
    student, shape = shared.student, shared.student.shape
    states_TXE = layer.query_key_value(_input_normed(hidden_TH, layer, student)).unflatten(1, (-1, shape.width))
    turned_TSE = _turned(states_TXE[:, : -shape.num_key_heads], layer.norms, student, shared.packed.positions_T)
    query_TAE, key_TKE = turned_TSE.split([shape.num_heads, shape.num_key_heads], dim=1)
    value_TKE = states_TXE[:, -shape.num_key_heads :]
    _keep_prefixes(key_TKE, value_TKE, index, shared)
    out_TX = hidden_TH.new_empty(hidden_TH.shape[0], shape.query_size)
    shared.attention(query_TAE, key_TKE, value_TKE, shared.prefixes[index], out_TX)
    _finish(hidden_TH, out_TX, layer.rest, student)


def _last_layer(hidden_NH: Tensor, states_TX: Tensor, shared: _Pass) -> None:
    """Adds to `hidden_NH`, of the documents' last tokens, what the last layer makes of it and of every token's keys and
    values, side by side in `states_TX`."""
    student, shape, packed = shared.student, shared.student.shape, shared.packed
    layer, index = student.last, len(student.layers)
    key_TKE, value_TKE = states_TX.unflatten(1, (-1, shape.width)).split(shape.num_key_heads, dim=1)
    key_TKE = student.kernels.turn(
        _head_normed(key_TKE, layer.norms.key_E, shape), packed.positions_T, student.turns_XE
    )
    query_NAE = layer.query(_input_normed(hidden_NH, layer, student)).unflatten(1, (-1, shape.width))
    positions_N = packed.positions_T.index_select(0, packed.ends_N)
    query_NAE = student.kernels.turn(_head_normed(query_NAE, layer.norms.query_E, shape), positions_N, student.turns_XE)
    _keep_prefixes(key_TKE, value_TKE, index, shared)
    out_NX = hidden_NH.new_empty(hidden_NH.shape[0], shape.query_size)
    for piece in packed.pieces:
        for block in piece.blocks:
            attend(
                query_NAE[block.rows],
                key_TKE[block.span],
                value_TKE[block.span],
                shared.prefixes[index][:, piece.kept],
                count=block.count,
                scaling=shape.scaling,
                mask=None,
                out_CX=out_NX[block.rows],
            )
    _finish(hidden_NH, out_NX, layer.rest, student)


def _input_normed(hidden_CH: Tensor, layer: Layer | LastLayer, student: Student) -> Tensor:
    return student.kernels.norm(hidden_CH, layer.norms.input_H, student.shape.epsilon)


def _finish(hidden_CH: Tensor, attended_CX: Tensor, rest: Rest, student: Student) -> None:
    """Adds attention's output and the MLP's to `hidden_CH`."""
    hidden_CH += rest.attention_out(attended_CX)
    for part_CH in hidden_CH.chunk(math.ceil(hidden_CH.shape[0] / student.kernels.mlp_rows)):
        gate, up = rest.gate_up(student.kernels.norm(part_CH, rest.norm_H, student.shape.epsilon)).chunk(2, dim=1)
        part_CH += rest.down(silu(gate).mul_(up))


def _keep_prefixes(key_TKE: Tensor, value_TKE: Tensor, index: int, shared: _Pass) -> None:
    for piece in shared.packed.pieces:
        if not piece.is_known:
            span = slice(piece.prefix_start, piece.documents_start)
            shared.prefixes[index, 0, piece.kept] = key_TKE[span]
            shared.prefixes[index, 1, piece.kept] = value_TKE[span]


def _turned(states_TSE: Tensor, norms: Norms, student: Student, positions_T: Tensor) -> Tensor:
    """Queries and keys, side by side, at their positions."""
    if norms.query_E is not None:
        query, key = states_TSE.split([student.shape.num_heads, student.shape.num_key_heads], dim=1)
        parts = (_head_normed(query, norms.query_E, student.shape), _head_normed(key, norms.key_E, student.shape))
        states_TSE = torch.cat(parts, dim=1)
    return student.kernels.turn(states_TSE, positions_T, student.turns_XE)


def _head_normed(states_CSE: Tensor, weight_E: Tensor | None, shape: Shape) -> Tensor:
    return states_CSE if weight_E is None else rms_norm(states_CSE, (shape.width,), weight_E, shape.epsilon)
