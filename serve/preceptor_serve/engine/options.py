"""How an engine computes: one light value that a replica, a benchmark and a test can all name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal, get_args

from pydantic import ConfigDict

from preceptor.errors import InputError

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: Final[tuple[str, ...]] = get_args(Precision)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """`precision` of the weights and of what runs through them; int8 is of products alone, the rest as in bfloat16.

    `threads` is how many cores one forward pass uses (0 in serve.yaml: as many as Ray gives the replica, and at least
    one) and `cores`, where it is not empty, which ones.
    `max_forward_tokens` bounds one forward pass: what a later request waits for at most before its turn comes.
    A cache of 0 MiB is off.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    precision: Precision = "bfloat16"
    threads: int = 0
    cores: tuple[int, ...] = ()
    max_forward_tokens: int = 2048
    score_cache_mib: int = 32
    prefix_cache_mib: int = 64
    token_cache_mib: int = 64

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.max_forward_tokens < 1:
            raise InputError(f"max_forward_tokens must be above 0, got {self.max_forward_tokens}")
        for name in ("threads", "score_cache_mib", "prefix_cache_mib", "token_cache_mib"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 or above, got {getattr(self, name)}")
