"""A tokenizer read without transformers: the same token ids as transformers' own, or left to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from preceptor.bundle import load_bundle
from preceptor.ranker.plain_tokenizer import FastTokenizer, PlainTokenizer, known_tokens, plain_digest, read_plain
from preceptor.ranker.text import prompt_token_ids
from preceptor_serve.engine.loading import load_parts

TEXTS = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.text(alphabet="aehn Ñé\u0301ﬁ\t\n 123'.,<|>_im", max_size=60),
        st.lists(
            st.sampled_from(["<|im_start|>", "<|endoftext|>", "<|im_end|>", " ", "nurse", "'ll", "\r\n", "日本", "👩‍⚕️"])
        ).map("".join),
    ),
    min_size=1,
    max_size=4,
)


def ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return found


def qwen_tokenizer(folder: Path) -> Any:
    """Qwen's class, which replaces what tokenizer.json says of splitting by its own rules, with a small vocabulary."""
    letters = sorted(ByteLevel.alphabet())
    merges: list[Any] = [("n", "u"), ("nu", "r"), ("Ġ", "n"), ("i", "m"), ("1", "2"), (".", "Ċ")]
    words = [*letters, *("".join(pair) for pair in merges)]
    made = Qwen2Tokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=merges, eos_token="<|im_end|>"
    )
    made.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def changeable(random_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(random_bundle, tmp_path / "bundle")


@pytest.fixture(scope="module")
def tokenizers(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """transformers' tokenizer, the plain one and the fast one, of each kind."""
    qwen = tmp_path_factory.mktemp("qwen")
    made = {random_bundle: AutoTokenizer.from_pretrained(random_bundle), qwen: qwen_tokenizer(qwen)}
    found = {}
    for folder, theirs in made.items():
        digest = plain_digest(folder, theirs)
        plain, fast = read_plain(folder, digest, None), read_plain(folder, digest, known_tokens(theirs))
        assert isinstance(plain, PlainTokenizer) and isinstance(fast, FastTokenizer)
        found[type(theirs).__name__] = [theirs, plain, fast]
    assert found.keys() == {"TokenizersBackend", "Qwen2Tokenizer"}
    return found


@given(texts=TEXTS)
@example(texts=["<|im_start|>system<|im_end|>", "", " \u00a0\u2003x\n\n y"])
@example(texts=["nurse", "of a plane that SmolLM2 has no byte for: \U00050000"])
def test_texts_are_split_as_transformers_splits_them(tokenizers: dict[str, list[Any]], texts: list[str]) -> None:
    for theirs, plain, fast in tokenizers.values():
        assert ids(plain, texts) == ids(fast, texts) == ids(theirs, texts)


def test_one_that_splits_otherwise_is_not_used(random_bundle: Path) -> None:
    """As a later fastokens might: what the export noted of the probe texts is not what it gives them."""
    digest = plain_digest(random_bundle, AutoTokenizer.from_pretrained(random_bundle))
    assert isinstance(read_plain(random_bundle, digest, "0" * 64), PlainTokenizer)


def test_a_file_that_the_fast_one_does_not_know_is_read_by_the_plain_one(tmp_path: Path) -> None:
    """A word is a token, or unknown: no merges, as no ranker's tokenizer is made."""
    made = Tokenizer(WordLevel({"[UNK]": 0, "nurse": 1, "night": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    theirs = PreTrainedTokenizerFast(tokenizer_object=made)
    theirs.save_pretrained(tmp_path)
    read = read_plain(tmp_path, plain_digest(tmp_path, theirs), known_tokens(theirs))
    assert isinstance(read, PlainTokenizer)
    assert ids(read, ["night nurse", "day nurse"]) == [[2, 1], [0, 1]]


def test_a_member_cannot_write_a_special_token(random_bundle: Path) -> None:
    reader, theirs = load_parts(random_bundle)[0], AutoTokenizer.from_pretrained(random_bundle)
    assert isinstance(reader.tokenizer, FastTokenizer)
    texts = ("<|im_end|>", "nurse <|endoftext|>", "<|im_start|>")
    found = prompt_token_ids(reader.tokenizer, *texts, max_prefix_tokens=99, max_document_tokens=99)
    assert found == prompt_token_ids(theirs, *texts, max_prefix_tokens=99, max_document_tokens=99)
    assert not set(found) & set(theirs.all_special_ids)


def test_a_file_that_transformers_reads_otherwise_is_left_to_it(changeable: Path) -> None:
    """The word is added by tokenizer_config.json alone: tokenizer.json does not know it."""
    said = json.loads((changeable / "tokenizer_config.json").read_text())
    (changeable / "tokenizer_config.json").write_text(json.dumps({**said, "extra_special_tokens": ["nurse"]}))
    assert plain_digest(changeable, AutoTokenizer.from_pretrained(changeable)) is None


@pytest.mark.parametrize("digest", [None, "0" * 64])
def test_a_bundle_whose_tokenizer_was_not_compared_is_read_by_transformers(
    changeable: Path, digest: str | None
) -> None:
    described = json.loads((changeable / "bundle.json").read_text())
    (changeable / "bundle.json").write_text(json.dumps({**described, "plain_tokenizer": digest}))
    reader, weights = load_parts(changeable)
    assert not isinstance(reader.tokenizer, PlainTokenizer | FastTokenizer)
    assert reader.prefix_ids("nurse", "") == load_bundle(changeable).reader.prefix_ids("nurse", "")
    assert weights.num_layers == 2


def test_a_bundle_from_before_its_tokens_were_noted_is_read_by_the_plain_one(changeable: Path) -> None:
    described = json.loads((changeable / "bundle.json").read_text())
    del described["known_tokens"]
    (changeable / "bundle.json").write_text(json.dumps(described))
    reader, _ = load_parts(changeable)
    assert isinstance(reader.tokenizer, PlainTokenizer)
    assert reader.prefix_ids("nurse", "") == load_bundle(changeable).reader.prefix_ids("nurse", "")
