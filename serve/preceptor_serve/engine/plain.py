"""A student's weights read from config.json and safetensors, without the modules of transformers.

Only what is known to the letter: a Llama or Qwen3 classifier whose config.json says everything that matters, whose
rotations are the plain ones and whose files hold every tensor in its size. Of anything else, damaged files among it,
there is nothing to read here, and transformers is asked, which loads it or says why not. Measured: its model classes
import for 5.5 s of CPU, and for nothing else were they needed.

Shapes: X positions, E width of a head, H hidden size, M width of the MLP, V vocabulary, R rows of the heads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from preceptor_serve.engine.shape import Shape
from preceptor_serve.engine.weights import KNOWN_TYPES, MakeTurns, Weights, halves, unusual

_WHOLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_ADAPTER: Final = "adapter_config.json"
_FLOATS: Final = (torch.float32, torch.bfloat16, torch.float16)

_SIZES: Final = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
_CHANGE_THE_READING: Final = (
    "auto_map",
    "compression_config",
    "num_labels",
    "partial_rotary_factor",
    "quantization_config",
    "rope_scaling",
    "rope_theta",
    "transformers_weights",
)
"""Names in config.json by which transformers would read it, or the weights, in another way than is written here."""


def read_weights(directory: Path, config: Mapping[str, Any]) -> Weights | None:
    """The weights in `directory`, in bfloat16 as load_bundle has them; None where they are not of the plain kind.

    `config` is the content of its config.json. Raises what safetensors or the disk raises where a file is damaged.
    """
    theta = _plain_theta(config)
    if theta is None or not _is_plain(config) or (directory / _ADAPTER).exists():
        return None
    tensors = _read(directory, dict(_expected(config)))
    width = config["head_dim"]
    if tensors is None:
        return None
    return Weights(
        shape=Shape(
            num_heads=config["num_attention_heads"],
            num_key_heads=config["num_key_value_heads"],
            width=width,
            epsilon=config["rms_norm_eps"],
            scaling=width**-0.5,
        ),
        num_layers=config["num_hidden_layers"],
        tensors=tensors,
        turns=_plain_turns(theta, width),
    )


def _is_plain(config: Mapping[str, Any]) -> bool:
    return (
        config.get("model_type") in KNOWN_TYPES
        and not unusual(config)
        and not any(name in config for name in _CHANGE_THE_READING)
        and all(type(config.get(name)) is int and config[name] > 0 for name in _SIZES)
        and config.get("hidden_act") == "silu"
        and type(config.get("rms_norm_eps")) is float
        and all(type(config.get(name)) is bool for name in _flags(config))
        and type(config.get("id2label")) is dict
    )


def _flags(config: Mapping[str, Any]) -> tuple[str, ...]:
    return ("attention_bias", "mlp_bias") if config["model_type"] == "llama" else ("attention_bias",)


def _plain_theta(config: Mapping[str, Any]) -> float | None:
    """The base of the rotations' frequencies, where nothing else is said of them."""
    said = config.get("rope_parameters")
    if type(said) is not dict or said.keys() != {"rope_theta", "rope_type"} or said["rope_type"] != "default":
        return None
    theta = said["rope_theta"]
    return theta if type(theta) in (int, float) else None


def _plain_turns(theta: float, width: int) -> MakeTurns:
    def turns(num_positions: int, dtype: torch.dtype) -> Tensor:
        # Rounded where transformers rounds: frequencies, angles and turns in float32, then once to `dtype`.
        speeds = 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
        angles = torch.arange(num_positions).unsqueeze(1).float() * speeds
        angles_XE = torch.cat([angles, angles], dim=1)
        return halves(angles_XE.cos().to(dtype), angles_XE.sin().to(dtype))

    return turns


def _expected(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that such a classifier has."""
    hidden, mlp, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    yield "score.weight", (len(config["id2label"]), hidden)
    attention = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
    attention |= {"o_proj": (hidden, queries)}
    rest = {"gate_proj": (mlp, hidden), "up_proj": (mlp, hidden), "down_proj": (hidden, mlp)}
    linears = [(f"self_attn.{name}", shape, config["attention_bias"]) for name, shape in attention.items()]
    linears += [(f"mlp.{name}", shape, config.get("mlp_bias", False)) for name, shape in rest.items()]
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        if config["model_type"] == "qwen3":
            yield f"{layer}.self_attn.q_norm.weight", (width,)
            yield f"{layer}.self_attn.k_norm.weight", (width,)
        for name, shape, has_bias in linears:
            yield f"{layer}.{name}.weight", shape
            if has_bias:
                yield f"{layer}.{name}.bias", shape[:1]


def _read(directory: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """The tensors of these names, rounded to bfloat16; None where one is missing, of another shape or no float."""
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    for file, names in _places(directory, expected).items():
        with safe_open(file, framework="pt") as opened:
            held = set(opened.keys())
            for name in names:
                tensor = opened.get_tensor(name) if name in held else None
                if tensor is None or tensor.shape != expected[name] or tensor.dtype not in _FLOATS:
                    return None
                # A copy, since what safetensors gives may be the file itself, which others may change.
                found[name] = tensor.to(torch.bfloat16, copy=True)
    return found if found.keys() == expected.keys() else None


def _places(directory: Path, expected: Mapping[str, object]) -> dict[Path, list[str]]:
    """Which file of `directory` holds which of the `expected` tensors; a name that no index knows is left out."""
    if (directory / _WHOLE).is_file():
        return {directory / _WHOLE: list(expected)}
    where = json.loads((directory / _INDEX).read_text())["weight_map"]
    places: dict[Path, list[str]] = {}
    for name in expected:
        # The last part alone: an index must not lead out of the bundle.
        if name in where and Path(where[name]).name == where[name]:
            places.setdefault(directory / where[name], []).append(name)
    return places
