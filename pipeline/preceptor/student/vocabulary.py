"""A tokenizer and embeddings with only the rows that given texts can reach.

A byte-level BPE tokenizer keeps: what it was seen to write, every piece that it builds on the way there, its single
characters (all bytes), and its added tokens. Every text of seen tokens is then read as before, token for token: the
merges that are gone never applied to it. Any other text is still read whole, in smaller pieces, down to bytes.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from preceptor.errors import InputError
from preceptor.ranker.model import Ranker, load_tokenizer
from preceptor.student.shapes import sizes_of, with_sizes

_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")
_IDS: Final = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id")


def kept_tokens(described: dict[str, Any], seen: Iterable[int]) -> list[int]:
    """The ids, in order, that a tokenizer.json keeps for texts that were written with `seen`."""
    model = described["model"]
    by_id = {number: token for token, number in model["vocab"].items()}
    built: dict[str, list[tuple[str, str]]] = {}
    for left, right in _merges(model):
        built.setdefault(left + right, []).append((left, right))
    added = {item["id"] for item in described["added_tokens"]}
    always = {
        number
        for token, number in model["vocab"].items()
        if len(token) == 1 or _BYTE.fullmatch(token) or token == model.get("unk_token")
    }
    waiting = [number for number in seen if number in by_id]
    kept: set[int] = set()
    while waiting:
        number = waiting.pop()
        if number not in kept:
            kept.add(number)
            waiting += [model["vocab"][piece] for pair in built.get(by_id[number], []) for piece in pair]
    return sorted(kept | always | added)


def smaller_tokenizer(tokenizer: Any, seen: Iterable[int]) -> tuple[Any, list[int]]:
    """The tokenizer with only what texts of the ids `seen` need, renumbered, and the old id of each new one.

    InputError for a tokenizer that is not a BPE of `tokenizers`: of others it is not known what its pieces stand on.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        file = Path(folder) / "tokenizer.json"
        described = json.loads(file.read_text()) if file.is_file() else {"model": {}}
        if described["model"].get("type") != "BPE":
            kind = described["model"].get("type") or type(tokenizer).__name__
            raise InputError(
                f"vocabulary 'seen' cuts BPE tokenizers, got {kind}. Set the prune config's vocabulary to 'whole'."
            )
        kept = kept_tokens(described, seen)
        new = {old: number for number, old in enumerate(kept)}
        file.write_text(json.dumps(_renumbered(described, new), ensure_ascii=False))
        _renumber_decoder(Path(folder) / "tokenizer_config.json", new)
        for leftover in ("vocab.json", "merges.txt"):
            (Path(folder) / leftover).unlink(missing_ok=True)
        return load_tokenizer(Path(folder)), kept


def with_vocabulary(ranker: Ranker, kept: Sequence[int]) -> Ranker:
    """The ranker whose embeddings are the rows `kept`, in their order; ids in its config are renumbered."""
    config = ranker.classifier.config
    new = {old: number for number, old in enumerate(kept)}
    state = dict(ranker.classifier.state_dict())
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][torch.tensor(list(kept))]
    ids = {name: _renumber(getattr(config, name, None), new) for name in _IDS if hasattr(config, name)}
    return with_sizes(ranker, sizes_of(config), state, vocab_size=len(kept), **ids)


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = (merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def _renumbered(described: dict[str, Any], new: dict[int, int]) -> dict[str, Any]:
    model = described["model"]
    vocab = {token: new[number] for token, number in model["vocab"].items() if number in new}
    merges = [[left, right] for left, right in _merges(model) if {left, right, left + right} <= vocab.keys()]
    processor = described.get("post_processor")
    for token in ((processor or {}).get("special_tokens") or {}).values():
        token["ids"] = [new[number] for number in token["ids"]]
    return {
        **described,
        "model": {**model, "vocab": vocab, "merges": merges},
        "added_tokens": [{**item, "id": new[item["id"]]} for item in described["added_tokens"]],
    }


def _renumber_decoder(file: Path, new: dict[int, int]) -> None:
    described = json.loads(file.read_text())
    decoder = described.get("added_tokens_decoder")
    if decoder:
        described["added_tokens_decoder"] = {str(new[int(number)]): token for number, token in decoder.items()}
        file.write_text(json.dumps(described, ensure_ascii=False))


def _renumber(value: Any, new: dict[int, int]) -> Any:
    if isinstance(value, list):
        return [new[number] for number in value if number in new]
    return new.get(value) if value is not None else None
