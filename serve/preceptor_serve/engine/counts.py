"""What an engine has done, as numbers that travel: to /metrics, and to a benchmark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Since the engine started. `num_padding_tokens` went through the model and meant nothing."""

    num_passes: int
    num_tokens: int
    num_padding_tokens: int
    num_documents: int
    busy_s: float
    score_hits: int
    score_misses: int
    prefix_hits: int
    prefix_misses: int
    token_hits: int
    token_misses: int
