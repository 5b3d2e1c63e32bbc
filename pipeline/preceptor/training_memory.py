"""What training a model takes of each GPU's memory, on paper: shards, gathered layers, activations.

`preceptor plan RECIPE --training` prints it and docs/scale.md explains it. The constants are counted from what the loop
and its layers do; bench/fit_memory.py measures them on a CPU. Nothing here was measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from preceptor.errors import RecipeError

STATE_BYTES: Final = 16
"""Counted: float32 weight 4, gradient 4, AdamW's two moments 8, for a trained parameter; all are sharded."""
FROZEN_BYTES: Final = 2
"""Counted: a frozen parameter in bfloat16; each GPU holds all of them."""
GATHERED_BYTES: Final = 10
"""Design, a parameter of one layer: two layers' weights gathered (this and the next) 2 x 2, and one's gradient on its
way to the shards, 2 in bfloat16 and 4 in float32, which it is added up in."""
KEPT_BYTES: Final = 50
"""Counted: bytes that a layer keeps of a token for the backward pass, over the hidden size, in SmolLM2's shape: norms
16, queries, keys and values 3, attention's weights over 256 tokens 8, its output 2, the MLP 21. Attention that keeps no
weights, as GPUs have it, takes less; a layer with as many key heads as query heads more."""
INPUT_BYTES: Final = 2
"""Counted: the same with recomputed activations: what went into the layer, in bfloat16."""
RESERVE: Final = 0.1
"""Assumption: the share of a GPU's memory that its context, kernels and fragmentation take."""

Activations = Literal["kept", "recomputed"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A language model's sizes, as its published config has them."""

    name: str
    num_layers: int
    hidden: int
    inner: int
    query_size: int
    key_size: int
    vocabulary: int

    @property
    def layer_parameters(self) -> int:
        """2 x hidden x (query size + key size) + 3 x hidden x inner + 2 x hidden, of one layer."""
        return 2 * self.hidden * (self.query_size + self.key_size) + 3 * self.hidden * self.inner + 2 * self.hidden

    @property
    def trained(self) -> int:
        """layers x parameters of a layer: all but the embeddings, the last norm and the heads' few rows."""
        return self.num_layers * self.layer_parameters

    @property
    def frozen(self) -> int:
        """vocabulary x hidden: the embeddings."""
        return self.vocabulary * self.hidden


SHAPES: Final = (
    Shape(
        name="0.6B", num_layers=28, hidden=1024, inner=3072, query_size=2048, key_size=1024, vocabulary=151_936
    ),  # Qwen3-0.6B
    Shape(
        name="1.7B", num_layers=28, hidden=2048, inner=6144, query_size=2048, key_size=1024, vocabulary=151_936
    ),  # Qwen3-1.7B
    Shape(
        name="7B", num_layers=32, hidden=4096, inner=11_008, query_size=4096, key_size=4096, vocabulary=32_000
    ),  # Llama 2 7B
)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """GPUs that one training run is sharded over, and the tokens of one pass through the model on each."""

    num_gpus: int = 8
    gpu_bytes: float = 80e9
    pass_tokens: int = 16_384
    activations: Activations = "kept"

    def __post_init__(self) -> None:
        for name in ("num_gpus", "gpu_bytes", "pass_tokens"):
            if getattr(self, name) <= 0:
                raise RecipeError(f"{name} must be above 0, got {getattr(self, name)}. See `preceptor plan --help`.")


def state_bytes(s: Shape, c: Cluster) -> float:
    """trained parameters x 16 / GPUs: weights, gradients and optimiser, sharded."""
    return s.trained * STATE_BYTES / c.num_gpus


def frozen_bytes(s: Shape) -> float:
    """frozen parameters x 2: the embeddings, whole on each GPU."""
    return s.frozen * FROZEN_BYTES


def gathered_bytes(s: Shape) -> float:
    """parameters of a layer x 10: layers gathered for their turn, and a gradient on its way."""
    return s.layer_parameters * GATHERED_BYTES


def activation_bytes(s: Shape, c: Cluster) -> float:
    """tokens x bytes a token (see `token_bytes`)."""
    return c.pass_tokens * token_bytes(s, c.activations)


def token_bytes(s: Shape, activations: Activations) -> float:
    """hidden x layers x KEPT where activations are kept; hidden x (layers x 2 + KEPT) where one layer has them."""
    kept = s.num_layers * KEPT_BYTES if activations == "kept" else s.num_layers * INPUT_BYTES + KEPT_BYTES
    return float(s.hidden * kept)


def total_bytes(s: Shape, c: Cluster) -> float:
    """All four together, on each GPU."""
    return state_bytes(s, c) + frozen_bytes(s) + gathered_bytes(s) + activation_bytes(s, c)


def most_tokens(s: Shape, c: Cluster) -> int:
    """The tokens of a pass that fit: what is left of nine tenths of a GPU, over bytes a token; 0 where nothing is."""
    left = c.gpu_bytes * (1 - RESERVE) - (total_bytes(s, c) - activation_bytes(s, c))
    return max(int(left / token_bytes(s, c.activations)), 0)


def render_training(c: Cluster, shapes: Sequence[Shape] = SHAPES) -> str:
    """A Markdown table with a column for each shape, closed by what it was reckoned from."""
    rows = (
        ("trained parameters", [f"{s.trained / 1e9:.2f} billion" for s in shapes]),
        ("weights, gradients, optimiser: a shard", [_gb(state_bytes(s, c)) for s in shapes]),
        ("frozen embeddings, whole", [_gb(frozen_bytes(s)) for s in shapes]),
        ("gathered layers and gradients", [_gb(gathered_bytes(s)) for s in shapes]),
        ("activations", [_gb(activation_bytes(s, c)) for s in shapes]),
        ("a GPU in all", [_gb(total_bytes(s, c)) for s in shapes]),
        ("all GPUs without activations, a billion trained parameters", [_gb(_per_billion(s, c)) for s in shapes]),
        ("tokens of a pass that would fit", [f"{most_tokens(s, c):,}" for s in shapes]),
    )
    lines = [f"| {' | '.join(['', *(s.name for s in shapes)])} |", f"| --- |{' ---: |' * len(shapes)}"]
    lines += [f"| {' | '.join([name, *cells])} |" for name, cells in rows]
    said = (
        f"Reckoned from {c.num_gpus} GPUs of {c.gpu_bytes / 1e9:g} GB, {100 * RESERVE:.0f} % of them left alone; "
        f"passes of {c.pass_tokens:,} tokens with activations {c.activations}; embeddings frozen, "
        "bfloat16 over float32 shards."
    )
    return "\n".join([*lines, "", said])


def _per_billion(s: Shape, c: Cluster) -> float:
    return (total_bytes(s, c) - activation_bytes(s, c)) * c.num_gpus / (s.trained / 1e9)


def _gb(value: float) -> str:
    return f"{value / 1e9:,.1f} GB"
