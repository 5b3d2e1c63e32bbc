"""What a student is made of, wherever it comes from: tensors by the names transformers gives them, sizes, rotations.

Shapes: X positions, E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from preceptor.errors import InputError
from preceptor_serve.engine.shape import Shape

KNOWN_TYPES: Final = ("llama", "qwen3")
"""Architectures whose layers are the ones written down in forward.py."""

_USUAL_TURNS: Final = ("default", "linear", "llama3", "yarn")
"""Kinds of rotation that depend on the position alone. Others (dynamic, longrope) depend on how long the text is."""

_USUAL: Final = {"hidden_act": "silu", "use_sliding_window": False, "pretraining_tp": 1}
"""What forward.py computes, of what config.json may say otherwise."""

MakeTurns = Callable[[int, torch.dtype], Tensor]
"""Rotations of as many positions, from 0 on, in that precision: [X, E], half cosines and half sines."""


class UnknownArchitecture(InputError):
    """A classifier that transformers can compute and the packed forward pass cannot."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A classifier's tensors, under transformers' names, and what its config says of them."""

    shape: Shape
    num_layers: int
    tensors: Mapping[str, Tensor]
    turns: MakeTurns


def weights_of(classifier: Any) -> Weights:
    """Those of a Hugging Face classifier, which is only read; UnknownArchitecture unless forward.py is its layers."""
    config = classifier.config
    _require_known(classifier)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def turns(num_positions: int, dtype: torch.dtype) -> Tensor:
        # transformers rotates in float32 and rounds the result: asked of it, so that no variant is written down twice.
        cos_1XE, sin_1XE = classifier.model.rotary_emb(
            torch.empty(0, dtype=dtype), torch.arange(num_positions).unsqueeze(0)
        )
        return halves(cos_1XE[0], sin_1XE[0])

    return Weights(
        shape=Shape(
            num_heads=config.num_attention_heads,
            num_key_heads=config.num_key_value_heads,
            width=width,
            epsilon=config.rms_norm_eps,
            scaling=width**-0.5,
        ),
        num_layers=len(classifier.model.layers),
        tensors=classifier.state_dict(),
        turns=turns,
    )


def halves(cos_XE: Tensor, sin_XE: Tensor) -> Tensor:
    """The table [X, E] of kernels.Kernels.turn: the second half of each row repeats the first, and is left out."""
    half = cos_XE.shape[1] // 2
    return torch.cat([cos_XE[:, :half], sin_XE[:, :half]], dim=1).contiguous()


def unusual(config: Mapping[str, Any]) -> list[str]:
    """What `config`, the content of config.json, asks for that forward.py does not compute: name=value."""
    return [f"{name}={config[name]}" for name, usual in _USUAL.items() if config.get(name) not in (usual, None)]


def _require_known(classifier: Any) -> None:
    config = classifier.config
    odd = unusual(vars(config))
    if config.model_type in KNOWN_TYPES:
        turns = getattr(classifier.model.rotary_emb, "rope_type", "default")
        odd += [] if turns in _USUAL_TURNS else [f"rope_type={turns}"]
    if config.model_type not in KNOWN_TYPES or odd:
        got = " with ".join([config.model_type, *odd])
        raise UnknownArchitecture(f"the packed engine computes {' and '.join(KNOWN_TYPES)} students, got {got}")
