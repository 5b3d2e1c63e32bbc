"""What a ranker reads: the text of a pair, split where a request's documents part from what they share.

A pair reads ``Query: ...\\nMember: ...`` (the prefix, one per request) and ``\\nPosting: ...\\nGrade: `` (its own).
It ends where a language model would write the grade. The two parts are tokenised apart, here and wherever another
engine is asked: engines are given `prompt_token_ids`, not text. With SmolLM2's tokenizer the parts equal the whole;
tokenizers that merge punctuation with a line break after it, as Llama 3's and Qwen's do, may split the text otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

_ANSWER: Final = "\nGrade: "
_FEATURE: Final = r"[^\[\]|]*[^\[\]| ] -?[0-9]+(?:\.[0-9]+)?"
_FEATURES: Final = re.compile(rf" \[({_FEATURE}(?: \| {_FEATURE})*)\]$")


def render_prefix(query: str, profile: str) -> str:
    """The part of the text that all documents of a request share."""
    return f"Query: {_one_line(query)}".rstrip() + f"\nMember: {_one_line(profile)}".rstrip()


def render_document(document: str) -> str:
    """The part of the text that is the document's own, without the answer cue."""
    return f"\nPosting: {_one_line(document)}".rstrip()


def render_pair(query: str, profile: str, document: str) -> str:
    """The whole text of a pair, for people and for tokenizers that never merge across the document's line break."""
    return render_prefix(query, profile) + render_document(document) + _ANSWER


def with_numbers(text: str, numbers: Mapping[str, float | None]) -> str:
    """`text` with its numeric features as last words: ``Nurse, Leeds [distance km 3 | pay 34.5]``.

    Features stand by name in alphabetical order, with three significant digits and never an exponent, so that equal
    values read the same wherever they come from; what is None or not a number is left out. The text, and with it the
    document_id, then belongs to these values.
    """
    return _with_fields(
        text,
        {name: _plain_number(value) for name, value in numbers.items() if value is not None and math.isfinite(value)},
    )


def with_hundredths(text: str, numbers: Mapping[str, float]) -> str:
    """`text` with shares or cosines as last words, two digits each: ``Nurse, Leeds [names 58 | words 07]``.

    For numbers between 0 and 1; what lies outside stands as 00 or 99, NaN is a ValueError. Features stand by name in
    alphabetical order and always at the same distance from the end, so that a model of a single layer can tell them
    apart by their place: such a student kept 0.979 of its teacher's NDCG@10, and 0.941 of it with hundredths of one
    digit or two (bench/RESULTS.md). Documents are cut at their end: leave room in `max_document_tokens`, five or six
    tokens a feature.
    """
    return _with_fields(text, {name: f"{min(max(round(100 * value), 0), 99):02d}" for name, value in numbers.items()})


def features_of(text: str) -> tuple[str, ...]:
    """The names of the numeric features that `text` ends with, as `with_numbers` and `with_hundredths` write them."""
    return tuple(split_features(text)[1])


def split_features(text: str) -> tuple[str, dict[str, float]]:
    """`text` without the numeric features that it ends with, and these by name, as they are written: 0 to 99 where
    `with_hundredths` wrote them."""
    found = _FEATURES.search(text)
    if not found:
        return text, {}
    said = (item.rsplit(" ", 1) for item in found[1].split(" | "))
    return text[: found.start()], {name: float(value) for name, value in said}


def _with_fields(text: str, fields: Mapping[str, str]) -> str:
    said = [f"{' '.join(name.replace('_', ' ').split())} {value}" for name, value in sorted(fields.items())]
    return f"{text} [{' | '.join(said)}]" if said else text


def _plain_number(value: float) -> str:
    rounded = Decimal(f"{value:.3g}")
    return format(rounded.normalize() if rounded else Decimal(0), "f")


def prefix_token_ids(tokenizer: Any, query: str, profile: str, *, max_prefix_tokens: int) -> list[int]:
    """Token ids of the prefix, cut at the end to `max_prefix_tokens`."""
    return list(_encode(tokenizer, [render_prefix(query, profile)])[0][:max_prefix_tokens])


def document_token_ids(tokenizer: Any, documents: Sequence[str], *, max_document_tokens: int) -> list[list[int]]:
    """Token ids of each document part, cut to `max_document_tokens`; the answer cue always stays whole at the end."""
    answer = list(_encode(tokenizer, [_ANSWER])[0])
    room = max(max_document_tokens - len(answer), 0)
    return [list(ids[:room]) + answer for ids in _encode(tokenizer, [render_document(text) for text in documents])]


def prompt_token_ids(
    tokenizer: Any, query: str, profile: str, document: str, *, max_prefix_tokens: int, max_document_tokens: int
) -> list[int]:
    """Token ids of a whole pair, cut as the ranker cuts it."""
    prefix = prefix_token_ids(tokenizer, query, profile, max_prefix_tokens=max_prefix_tokens)
    return prefix + document_token_ids(tokenizer, [document], max_document_tokens=max_document_tokens)[0]


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    # A member's text must not be able to write a special token.
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] if texts else []


def _one_line(text: str) -> str:
    return " ".join(text.split())
