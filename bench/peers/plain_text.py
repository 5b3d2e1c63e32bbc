"""A model's directory from which sentence-transformers reads a pair's text as it stands."""

from __future__ import annotations

from pathlib import Path

_TEMPLATE = "chat_template.jinja"


def plain_text(model: Path) -> Path:
    """A directory beside `model`, holding links to all of it but its chat template.

    CrossEncoder (5.4) writes every pair as two turns of a chat where the tokenizer has a template: 31 tokens more a
    pair with SmolLM2's, other last tokens, and other logits than the same weights give for the text.
    """
    target = model.with_name(f"{model.name}-plain")
    target.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        link = target / file.name
        if file.name != _TEMPLATE and not link.exists():
            link.symlink_to(file.resolve())
    return target
