"""How fast the machine could be: the operations a request needs, and the rate at which it multiplies matrices."""

from __future__ import annotations

import time
from typing import Any

import torch

from bench.peers.student import RequestShape
from preceptor.precision import computed_in


def request_flops(config: Any, shape: RequestShape) -> float:
    """Floating-point operations of one request of `shape` with the prefix computed once, two for a multiply-add.

    Every layer reads every token, but after the last one only the documents' last tokens are read: there, the rest of
    the tokens need keys and values alone. Of a single layer these hang on the word alone, and can be looked up. That,
    embedding, norms and rotation count as nothing.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    width = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    prefix, document, count = shape.prefix_tokens, shape.document_tokens, shape.num_documents
    tokens = prefix + count * document
    key_value = 2 * 2 * hidden * keys
    others = 2 * hidden * queries + 2 * queries * hidden + 3 * 2 * hidden * inner
    # Query times key and weight times value, over what stands before a token and itself.
    seen = prefix * (prefix + 1) / 2 + count * (document * prefix + document * (document + 1) / 2)
    layer = tokens * (key_value + others) + 4 * queries * seen
    looked_up = config.num_hidden_layers == 1
    last = (0 if looked_up else tokens * key_value) + count * (others + 4 * queries * (prefix + document))
    return float((config.num_hidden_layers - 1) * layer + last)


def matmul_rate(config: Any, *, rows: int = 1024, seconds: float = 1.0) -> float:
    """Operations a second of the machine's best matrix multiplication: of a large square, and of the MLP's.

    In bfloat16, or what it is computed in here.
    """
    shapes = [(2048, 2048, 2048), (rows, config.hidden_size, 2 * config.intermediate_size)]
    return max(_rate(*shape, seconds=seconds) for shape in shapes)


def _rate(rows: int, inner: int, columns: int, *, seconds: float) -> float:
    dtype = getattr(torch, computed_in("bfloat16"))
    left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
    torch.nn.functional.linear(left, right)
    times: list[float] = []
    end_s = time.monotonic() + seconds
    while not times or time.monotonic() < end_s:
        started_s = time.monotonic()
        torch.nn.functional.linear(left, right)
        times.append(time.monotonic() - started_s)
    return 2 * rows * inner * columns / sorted(times)[len(times) // 2]
