"""The sizes a forward pass needs to know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of attention's heads, with the epsilon of norms and the scaling of attention's weights."""

    num_heads: int
    num_key_heads: int
    width: int
    epsilon: float
    scaling: float

    @property
    def query_size(self) -> int:
        return self.num_heads * self.width
