"""Which texts say the same, or nearly: compared by their words, so that spacing, case and punctuation do not count.

Cheap enough for every lint: an index of word pairs finds the few candidates, and only those are compared word by word.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Final

Words = tuple[str, ...]

NEAR: Final = 0.9
"""Share of their words, in order, from which two pairs are nearly the same: six words of sixty may differ."""

INSIDE: Final = 0.8
"""Share of a text's word pairs from which another text holds it."""

MIN_INSIDE: Final = 8
"""Words from which on a text can be recognised inside another: 'Nurse, Leeds.' stands in many."""

_SHARED: Final = 0.6
"""Two texts at NEAR share at least 0.78 of the shorter one's word pairs; this leaves room for repeated pairs."""

_FIELD_END: Final = "|"


@dataclass(frozen=True, kw_only=True)
class Near:
    """Two texts that are nearly the same: the first one's place in the index, and the words in which they differ."""

    index: int
    ours: str
    theirs: str


def words_of(*fields: str) -> Words:
    """The words of `fields`, folded; where each field ends is kept, so that words do not move between them."""
    found: list[str] = []
    for field in fields:
        found += re.findall(r"\w+", unicodedata.normalize("NFKC", field).casefold())
        found.append(_FIELD_END)
    return tuple(found)


class Similar:
    """An index over texts, to be asked for those that others resemble."""

    def __init__(self, texts: Sequence[Words]) -> None:
        self._texts = tuple(texts)
        self._pairs = tuple(_word_pairs(words) for words in self._texts)
        self._holders: dict[tuple[str, str], list[int]] = {}
        for index, pairs in enumerate(self._pairs):
            for pair in pairs:
                self._holders.setdefault(pair, []).append(index)

    def near(self, words: Words) -> Iterator[Near]:
        """The texts that `words` nearly equal, themselves included where they are in the index."""
        pairs = _word_pairs(words)
        for index, num_shared in sorted(self._shared(pairs).items()):
            if num_shared < _SHARED * min(len(pairs), len(self._pairs[index])):
                continue
            matcher = SequenceMatcher(None, self._texts[index], words, autojunk=False)
            if matcher.quick_ratio() >= NEAR and matcher.ratio() >= NEAR:
                changed = [op for op in matcher.get_opcodes() if op[0] != "equal"]
                yield Near(
                    index=index,
                    ours=_some(word for _, low, high, _, _ in changed for word in self._texts[index][low:high]),
                    theirs=_some(word for _, _, _, low, high in changed for word in words[low:high]),
                )

    def holding(self, words: Words) -> frozenset[int]:
        """The texts that hold nearly all of `words`; none where `words` are too few to tell."""
        pairs = _word_pairs(words)
        if len(words) < MIN_INSIDE:
            return frozenset()
        return frozenset(index for index, num in self._shared(pairs).items() if num >= INSIDE * len(pairs))

    def _shared(self, pairs: frozenset[tuple[str, str]]) -> Counter[int]:
        return Counter(index for pair in pairs for index in self._holders.get(pair, ()))


def _word_pairs(words: Words) -> frozenset[tuple[str, str]]:
    return frozenset((left, right) for left, right in pairwise(words) if _FIELD_END not in (left, right))


def _some(words: Iterator[str]) -> str:
    kept = [word for word in words if word != _FIELD_END]
    return " ".join(kept[:6]) + (" ..." if len(kept) > 6 else "")
