"""The few operations that take the time, at the precision of an engine.

Shapes: T tokens, I inputs, O outputs, H width of a normed row, S heads, E width of a head, X positions.

In bfloat16 and int8 they are those of vLLM's CPU build where it is installed, loaded as the library they are, without
the package around it (5 ms instead of 4 s, 3 MB). Measured on 2 cores with AVX-512 VNNI, 1,024 tokens of SmolLM2's
shape, one layer's projections: torch bfloat16 18.9 ms, oneDNN bfloat16 with the weight packed once 16.7 ms, int8 8.5 ms
with 0.3 ms of quantising; a norm 0.18 and 0.08 ms, the rotation 0.28 and 0.06 ms. Without that library int8 is
refused; without it or AVX512-BF16, bfloat16 is torch's.

int8 is W8A8: weights with one scale for each output, activations with one for each token, both symmetric, products
summed in int32, the answer in what came in. Processors without VNNI sum two products in 16 bits, which 8-bit weights
overflow: there weights have 7 bits. They also multiply unsigned by signed numbers alone: there the products are those
of torch's own oneDNN, which takes unsigned ones.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm

from preceptor.errors import InputError
from preceptor.precision import computed_in
from preceptor_serve.engine.attention import MakeAttention, in_blocks, in_one_call
from preceptor_serve.engine.options import Precision


class Linear(Protocol):
    """`x_TI` times a weight, and a bias where there is one: [T, O]."""

    def __call__(self, x_TI: Tensor) -> Tensor: ...


MakeLinear = Callable[[Tensor, Tensor | None], Linear]


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """What a forward pass is made of.

    `norm` is RMS norm of rows [., H]. `turn` rotates heads [T, S, E], perhaps in place, by a table [X, E] whose rows
    hold half the cosines and half the sines of a position. At most `mlp_rows` tokens go through an MLP at once: what
    lies between its two products should stay in the processor's cache.
    """

    linear: MakeLinear
    norm: Callable[[Tensor, Tensor, float], Tensor]
    turn: Callable[[Tensor, Tensor, Tensor], Tensor]
    attention: MakeAttention
    mlp_rows: int = 2**31


def make_kernels(precision: Precision) -> Kernels:
    """The fastest kernels this machine has at `precision`; InputError where it has none."""
    linears: MakeLinear
    library = None if precision == "float32" or (precision == "bfloat16" and not _has("avx512_bf16")) else cpu_library()
    if precision == "int8":
        if library is None:
            raise InputError(
                "precision int8 runs on the kernels of vLLM's CPU build, which is not installed or needs another CPU. "
                "Install preceptor[cpu], or choose precision bfloat16."
            )
        linears = _int8_linear()
        mlp_rows = _INT8_MLP_ROWS[computed_in("bfloat16")]
    elif library is None:
        return PLAIN
    else:
        linears = functools.partial(PackedLinear, library)
        mlp_rows = Kernels.mlp_rows
    return Kernels(
        linear=linears, norm=_packed_norm, turn=_packed_turn, attention=_attention(library), mlp_rows=mlp_rows
    )


_INT8_MLP_ROWS: Final = {"bfloat16": 256, "float32": 768}
"""By what lies between the products. Measured on 2 cores with 1 MiB of cache each, SmolLM2's MLP in int8: 4,096 tokens
at once 55 ms, 256 at a time 34 ms; 736 tokens 7.1 and 6.3 ms. In bfloat16, whose products are slower, it makes no
difference. On 2 cores with AVX2 alone, whose products want more tokens, passes of 576 and 1,376 through 5 layers:
107 and 242 ms 256 at a time, 102 and 232 with 384, 97 and 216 with 768."""


def _attention(library: Any) -> MakeAttention:
    # That for AVX2 lacks it.
    return functools.partial(in_one_call, library) if hasattr(library, "extend_attention_cpu") else in_blocks


class PlainLinear:
    """The weight as it is, in torch."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._weight_OI = weight_OI
        self._bias_O = bias_O

    def __call__(self, x_TI: Tensor) -> Tensor:
        return linear(x_TI, self._weight_OI, self._bias_O)


class PackedLinear:
    """The weight in bfloat16, packed once."""

    def __init__(self, library: Any, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._library = library
        self._num_out = weight_OI.shape[0]
        self._bias_O = bias_O
        self._handle = _Handle(library, library.create_onednn_mm_handler(weight_OI.t(), _SHAPES_KEPT))

    def __call__(self, x_TI: Tensor) -> Tensor:
        out_TO = x_TI.new_empty(x_TI.shape[0], self._num_out)
        self._library.onednn_mm(out_TO, x_TI, self._bias_O, self._handle.number)
        return out_TO


class QuantisedLinear:
    """The weight in integers up to `largest`; what comes in, of the weight's type, is quantised token by token."""

    def __init__(self, library: Any, weight_OI: Tensor, bias_O: Tensor | None, *, largest: int) -> None:
        # The handle points at the scales and does not keep them: they live as long as this layer.
        integers_OI, self._scale_O1 = _quantised_weight(weight_OI, largest)
        self._library = library
        self._num_out = weight_OI.shape[0]
        self._bias_O = bias_O
        made = library.create_onednn_scaled_mm_handler(
            integers_OI.t(), self._scale_O1, weight_OI.dtype, True, False, _SHAPES_KEPT
        )
        self._handle = _Handle(library, made)

    def __call__(self, x_TI: Tensor) -> Tensor:
        integers_TI, scale_T1 = _quantised_tokens(self._library, x_TI)
        out_TO = x_TI.new_empty(x_TI.shape[0], self._num_out)
        self._library.onednn_scaled_mm(out_TO, integers_TI, scale_T1, None, None, self._bias_O, self._handle.number)
        return out_TO


class ShiftedLinear:
    """As QuantisedLinear, with 128 added to what comes in, so that it is unsigned.

    Given signed numbers without VNNI, oneDNN sums up the weights anew in every product, on one thread. Measured on 2
    cores with AVX2 alone, 3,072 outputs of 576 inputs: 20 tokens 3.4 ms, and 0.9 so; 200 tokens 6.4 and 3.9.
    """

    def __init__(self, library: Any, weight_OI: Tensor, bias_O: Tensor | None, *, largest: int) -> None:
        integers_OI, scale_O1 = _quantised_weight(weight_OI, largest)
        self._library = library
        self._weight = torch.ops.onednn.qlinear_prepack(integers_OI, None)
        self._scale_O = scale_O1.flatten()
        self._zero_O = torch.zeros(weight_OI.shape[0], dtype=torch.int64)
        self._bias_O = bias_O

    def __call__(self, x_TI: Tensor) -> Tensor:
        integers_TI, scale_T1 = _quantised_tokens(self._library, x_TI)
        # The sign's bit, turned over, is 128 more of the same bits unsigned.
        shifted_TI = integers_TI.view(torch.uint8).bitwise_xor_(128)
        out_TO = torch.ops.onednn.qlinear_pointwise(
            shifted_TI,
            1.0,
            128,
            self._weight,
            self._scale_O,
            self._zero_O,
            None,
            1.0,
            0,
            # Whatever is wanted: written as bfloat16 by oneDNN itself, a product took 1,000 times as long.
            torch.float32,
            "none",
            [],
            "",
        ).mul_(scale_T1)
        if self._bias_O is not None:
            out_TO += self._bias_O
        return out_TO.to(x_TI.dtype)


def _quantised_weight(weight_OI: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Integers up to `largest` [O, I], and their scales [O, 1]."""
    weight_OI = weight_OI.float()
    scale_O1 = (weight_OI.abs().amax(dim=1, keepdim=True) / largest).clamp_min(1e-12)
    return (weight_OI / scale_O1).round().clamp(-largest, largest).to(torch.int8), scale_O1


def _quantised_tokens(library: Any, x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """Integers up to 127 [T, I], and their scales [T, 1]."""
    integers_TI = torch.empty(x_TI.shape, dtype=torch.int8)
    scale_T1 = torch.empty(x_TI.shape[0], 1, dtype=torch.float32)
    library.dynamic_scaled_int8_quant(integers_TI, x_TI, scale_T1, None)
    return integers_TI, scale_T1


@functools.cache
def _int8_linear() -> MakeLinear:
    """With weights of 8 bits where their products are exact here, else of 7: 2 x 255 x 64 fits in 16 bits."""
    # Asked of the kernels: it is the instructions they choose that count, and their names are many (VNNI, AVX-VNNI,
    # AMX).
    library = cpu_library()
    signed = functools.partial(QuantisedLinear, library)
    if _is_exact(functools.partial(signed, largest=127)):
        return functools.partial(signed, largest=127)
    shifted = functools.partial(ShiftedLinear, library, largest=64)
    has_shifted = hasattr(torch.ops.onednn, "qlinear_pointwise") and _is_exact(shifted)
    return shifted if has_shifted else functools.partial(signed, largest=64)


def _is_exact(make: MakeLinear) -> bool:
    """Whether the product of the largest numbers there are is right."""
    weight_OI, x_TI = torch.full((64, 64), 127.0), torch.full((64, 64), 127.0)
    return torch.allclose(make(weight_OI, None)(x_TI), x_TI @ weight_OI.t(), rtol=1e-3)


# oneDNN prepares a kernel for each number of tokens; packed batches have many.
_SHAPES_KEPT: Final = 128


class _Handle:
    """A weight packed inside the library, which is freed with this object."""

    def __init__(self, library: Any, made: int) -> None:
        self._release = library.release_dnnl_matmul_handler
        self._made = made
        self.number = torch.tensor(made, dtype=torch.int64)

    def __del__(self) -> None:
        self._release(self._made)


def plain_turn(states_TSE: Tensor, positions_T: Tensor, table_XE: Tensor) -> Tensor:
    """The rotation in torch."""
    cos, sin = table_XE.index_select(0, positions_T).unsqueeze(1).chunk(2, dim=-1)
    left, right = states_TSE.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def _plain_norm(rows: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
    return rms_norm(rows, (weight_H.shape[0],), weight_H, epsilon)


_NORM_WIDTHS: Final = 8
_TURN_WIDTHS: Final = 16
"""The kernels take multiples of these. vLLM 0.32 refuses another width of a norm, and ends the process at a head of 20,
24, 28, 40 or 100 to turn."""


def _packed_norm(rows: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
    if rows.shape[-1] % _NORM_WIDTHS:
        return _plain_norm(rows, weight_H, epsilon)
    rows = rows.contiguous()
    out = torch.empty_like(rows)
    torch.ops._C.rms_norm(out, rows, weight_H, epsilon)
    return out


def _packed_turn(states_TSE: Tensor, positions_T: Tensor, table_XE: Tensor) -> Tensor:
    if states_TSE.shape[2] % _TURN_WIDTHS:
        return plain_turn(states_TSE, positions_T, table_XE)
    # In place, and heads side by side: this is how the kernel takes a part of a wider row.
    flat_TX = states_TSE.flatten(1)
    torch.ops._C.rotary_embedding(positions_T, flat_TX, None, states_TSE.shape[2], table_XE, True)
    return flat_TX.view(states_TSE.shape)


PLAIN: Final = Kernels(linear=PlainLinear, norm=_plain_norm, turn=plain_turn, attention=in_blocks)
"""torch's own, at any precision it computes in: what a machine has that has nothing better."""


@functools.cache
def cpu_library() -> Any:
    """vLLM's CPU operators as built for this processor, or None where they are not installed or there are none."""
    found = importlib.util.find_spec("vllm")
    name = next((name for flags, name in _BUILDS.items() if all(map(_has, flags))), None)
    if found is None or not found.submodule_search_locations or name is None:
        return None
    try:
        torch.ops.load_library(Path(found.submodule_search_locations[0]) / name)
    except OSError:
        # A GPU build, or one for another torch.
        return None
    return torch.ops._C if all(hasattr(torch.ops._C, name) for name in _NEEDED) else None


_BUILDS: Final = {
    ("avx512", "avx512_bf16"): "_C.abi3.so",
    ("avx512",): "_C_AVX512.abi3.so",
    ("avx2",): "_C_AVX2.abi3.so",
}
"""vLLM's own choice (vllm/platforms/cpu.py), by what the processor has."""


def _has(instructions: str) -> bool:
    # Without a public name in torch; where it is gone, slower kernels are the worst that can come of it.
    asked = getattr(torch.cpu, f"_is_{instructions}_supported", None)
    return asked is not None and bool(asked())


_NEEDED: Final = (
    "create_onednn_mm_handler",
    "onednn_mm",
    "create_onednn_scaled_mm_handler",
    "dynamic_scaled_int8_quant",
    "onednn_scaled_mm",
    "release_dnnl_matmul_handler",
    "rms_norm",
    "rotary_embedding",
)
