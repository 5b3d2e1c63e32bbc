"""What bfloat16 is computed in: a processor without instructions for it takes several times as long as in float32."""

from __future__ import annotations

import functools
from typing import Literal, TypeVar

P = TypeVar("P", bound=str)


def computed_in(precision: P, *, num_gpus: int = 0) -> P | Literal["float32"]:
    """`precision`, or float32 for bfloat16 without a GPU and on a CPU that has no instructions for it.

    That is more exact, and there faster: on two cores with AVX2 alone a product of 1,024 x 576 x 1,536 in torch takes
    15 ms in float32 and 117 in bfloat16 (bench/RESULTS.md).
    """
    if precision == "bfloat16" and not num_gpus and not _has_bfloat16():
        return "float32"
    return precision


@functools.cache
def _has_bfloat16() -> bool:
    # The question that torch itself asks before it hands a product in bfloat16 to oneDNN.
    import torch

    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is None or bool(supported())
