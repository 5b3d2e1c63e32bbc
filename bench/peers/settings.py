"""Settings of the benchmark's servers: what each may be tuned by, and how one is told to a server's process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a server computes; each reads what concerns it.

    `replicas` of `threads` each; whole pairs of up to `requests` requests that wait together are computed together, in
    batches of `pairs`. vLLM's scheduler takes up to `tokens` tokens of `sequences` pairs at once.
    """

    replicas: int = 1
    threads: int = 2
    requests: int = 8
    pairs: int = 32
    tokens: int = 4096
    sequences: int = 64

    def told(self, server: str) -> str:
        """The fields that `server` reads, in words."""
        fields = READ_BY.get(server, ("replicas", "threads", "requests", "pairs"))
        return ", ".join(f"{name} {getattr(self, name)}" for name in fields)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def from_json(text: str) -> Setting:
    """The setting that `to_json` wrote."""
    return Setting(**json.loads(text))


def candidates(server: str, *, cores: int) -> tuple[Setting, ...]:
    """The settings that `server` is tried with."""
    whole = Setting(replicas=1, threads=cores)
    apart = Setting(replicas=cores, threads=1)
    if server == "vllm":
        return tuple(Setting(tokens=tokens, sequences=count) for tokens, count in TRIED_BY_VLLM)
    if server == "ours":
        return (whole, apart)
    return (
        whole,
        apart,
        Setting(replicas=1, threads=cores, requests=1),
        Setting(replicas=1, threads=cores, pairs=8),
        Setting(replicas=cores, threads=1, requests=2, pairs=8),
    )


READ_BY: Final = {"vllm": ("tokens", "sequences"), "ours": ("replicas", "threads")}
TRIED_BY_VLLM: Final = ((4096, 64), (1024, 64), (2048, 16), (8192, 128))
