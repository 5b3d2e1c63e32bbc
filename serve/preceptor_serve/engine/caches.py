"""Caches bounded by bytes, and the content keys they are asked by."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")


def content_key(*parts: str) -> bytes:
    """16 bytes that depend on every part and on where each ends.

    Wider than an id of the contracts: whoever writes postings must not be able to find two that share a score.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.digest()


class ByteCache(Generic[V]):
    """The values asked for last, at most `max_bytes` of them as their callers count. Not for several threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, tuple[V, int]] = OrderedDict()
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> V | None:
        """The value put under `key`, if it is still there."""
        found = self._kept.get(key)
        if found is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: bytes, value: V, *, num_bytes: int) -> None:
        """Keep `value`, and drop the values not asked for longest until all fit; one too large is not kept."""
        if num_bytes > self._max_bytes:
            return
        if key in self._kept:
            self.num_bytes -= self._kept.pop(key)[1]
        self._kept[key] = (value, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            _, (_, dropped) = self._kept.popitem(last=False)
            self.num_bytes -= dropped
