"""A tokenizer read without transformers, where that gives the same token ids as transformers' own reader.

transformers may change what tokenizer.json says when it reads it: its classes add tokens, and some replace the rules by
which text is split. The export compares, with the student's tokenizer at hand, and notes the file's digest where
nothing was changed; a server then reads the file as it is. Measured: AutoTokenizer imports for 5.5 s of CPU and takes
0.5 s to read SmolLM2's tokenizer; `tokenizers` imports for 0.02 s and takes 0.3 s.

`fastokens` reads most such files too and splits texts in a hundredth of the time, by code of its own: it is used where
it gives PROBE_TEXTS the ids that the student's tokenizer gave them at the export. Else `tokenizers` itself reads on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

_FILE: Final = "tokenizer.json"
_SET_AT_EACH_CALL: Final = {"truncation": None, "padding": None, "post_processor": None}
"""Parts of tokenizer.json that have no say in ids asked for uncut, unpadded and without special tokens."""

PROBE_TEXTS: Final = (
    "",
    "Query: night nurse, Leeds\nMember: Registered nurse; six years on surgical wards.",
    "\nPosting: Forklift driver (m/f/d), £14.50/h, 37.5 h, B&Q #2 [distance km 3 | pay 34.5 | names 07]",
    "\nGrade: ",
    "I'm sure they'll've said it's WE'RE DON'T nurse\u2019s 'tis 'S 'LL 's's",
    "0 12 345 6789 1,234,567.89 \uff11\uff12\uff13 ²½Ⅷ ٣٤ 3rd 2nd x86_64 v1.2.3-rc4",
    "a  b   c\t\td \n\n e\r\nf\x0bg\x0ch\u00a0i\u2003j\u200bk\u3000l\u0085m\u2028n ",
    "   leading and trailing   ",
    "Zürich Łódź São Paulo Αθήνα Москва İstanbul ǅ ﬁrst straße ȺȾ",
    "e\u0301 n\u0303 a\u0308\u0301 \u0301x \ufeffy \ufffd \x00\x7f\x1f \U0010ffff \ue000",
    "看護師募集中 東京都 간호사 서울 พยาบาล नर्स ممرضة אחות",
    "👩‍⚕️ 🏳️‍🌈 👍🏽 🇬🇧 ☎️ ™©® → ≤ ∑ € ¿¡ «»",
    "<|im_start|>system<|im_end|> <|endoftext|> <s></s> [CLS] [SEP] <unk> <pad> </tool_call>",
    "https://example.org/jobs?id=42&ref=a%20b#top name@example.org C++ C# .NET node.js R&D",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ---------------- ================ ................",
    "Donaudampfschifffahrtsgesellschaftskapitän pneumonoultramicroscopicsilicovolcanoconiosis",
)
"""What two readers of one tokenizer.json might split otherwise: spaces, digits, marks, scripts, special tokens."""


class Splits(Protocol):
    """A tokenizer as preceptor.ranker.text calls it: transformers' own, or one of those below."""

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool, split_special_tokens: bool) -> Any: ...


class PlainTokenizer:
    """A tokenizers.Tokenizer, called as preceptor.ranker.text calls transformers' tokenizers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()

    def __call__(
        self, texts: Sequence[str], *, add_special_tokens: bool, split_special_tokens: bool
    ) -> dict[str, list[list[int]]]:
        """The token ids of each of `texts`, under "input_ids"."""
        if self._tokenizer.encode_special_tokens != split_special_tokens:
            self._tokenizer.encode_special_tokens = split_special_tokens
        # Without offsets, which nobody reads: 20 documents of 160 tokens in 8 ms, not 11.
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return {"input_ids": [one.ids for one in encoded]}


class FastTokenizer:
    """A fastokens.Tokenizer, called likewise: 20 documents of 160 tokens in 0.1 ms. `read` gives the plain one."""

    def __init__(self, tokenizer: Any, read: Callable[[], PlainTokenizer]) -> None:
        self._tokenizer = tokenizer
        self._plain = functools.cache(read)
        tokenizer.no_truncation()
        tokenizer.no_padding()

    def __call__(
        self, texts: Sequence[str], *, add_special_tokens: bool, split_special_tokens: bool
    ) -> dict[str, list[list[int]]]:
        """The token ids of each of `texts`, under "input_ids"."""
        # One by one, on the caller's own thread: the engine's cores have no room for others.
        return {"input_ids": [self._ids(text, add_special_tokens, split_special_tokens) for text in texts]}

    def _ids(self, text: str, add: bool, split: bool) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.encode(text, add, split).ids
        except ValueError:
            # A byte that the vocabulary lacks, as SmolLM2's lacks some of rare planes: refused here, left out there.
            # This text alone, so that known_tokens compares what is read here.
            return self._plain()([text], add_special_tokens=add, split_special_tokens=split)["input_ids"][0]
        return ids


def plain_digest(directory: Path, tokenizer: Any) -> str | None:
    """The digest of tokenizer.json in `directory` where, read as it is, it splits texts as `tokenizer` does; else None.

    `tokenizer` is transformers' own, as it was saved there.
    """
    from tokenizers import Tokenizer

    file, backend = directory / _FILE, getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not file.is_file():
        return None
    content = file.read_bytes()
    return _digest(content) if _rules(Tokenizer.from_buffer(content)) == _rules(backend) else None


def known_tokens(tokenizer: Splits) -> str:
    """The digest of PROBE_TEXTS and of the token ids that `tokenizer` gives them: equal where two split them alike."""
    ids = tokenizer(list(PROBE_TEXTS), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return _digest(json.dumps([PROBE_TEXTS, [list(map(int, row)) for row in ids]]).encode())


def read_plain(directory: Path, digest: str | None, known: str | None) -> PlainTokenizer | FastTokenizer | None:
    """The tokenizer in `directory`, where its tokenizer.json is the one `digest` was taken of; else None.

    `known` is what `known_tokens` gave at the export; None where it was not asked.
    """
    file = directory / _FILE
    if digest is None or not file.is_file():
        return None
    content = file.read_bytes()
    return (_fast(content, known) or _plain(content)) if _digest(content) == digest else None


def _plain(content: bytes) -> PlainTokenizer:
    from tokenizers import Tokenizer

    return PlainTokenizer(Tokenizer.from_buffer(content))


def _fast(content: bytes, known: str | None) -> FastTokenizer | None:
    """fastokens' reading of `content` where it splits texts as is `known`; else None."""
    if known is None:
        return None
    # Read at its first text. Without, it starts a thread for every core but one, which no text of a request needs.
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
    from fastokens import Tokenizer

    try:
        reading = Tokenizer.from_json_str(content.decode())
    except ValueError:  # Rules that it does not know: `tokenizers` knows them.
        return None
    tokenizer = FastTokenizer(reading, functools.partial(_plain, content))
    return tokenizer if known_tokens(tokenizer) == known else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _rules(tokenizer: Any) -> dict[str, Any]:
    rules: dict[str, Any] = json.loads(tokenizer.to_str())
    return {**rules, **_SET_AT_EACH_CALL}
