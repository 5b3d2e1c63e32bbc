"""The ranker: packed equals alone, texts are cut where they may be, heads and layers keep what they were given.

Weights are random and every text is made up: what is tested is arithmetic, not what a model learnt.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preceptor.contracts import NUM_GRADES, OVERALL, make_pair
from preceptor.errors import InputError
from preceptor.ranker.backbones import resolve_backbone
from preceptor.ranker.batches import Request, encode, group_requests, pack
from preceptor.ranker.model import (
    Ranker,
    action_heads,
    grade_heads,
    init_ranker,
    load_ranker,
    lowest_layers,
    spaced_layers,
    with_heads,
)
from preceptor.ranker.scoring import score_requests
from preceptor.ranker.text import document_token_ids, prefix_token_ids, prompt_token_ids, render_pair
from tests.unit.ranking import HEADS, LIMITS, WORDS, sharp_ranker


@pytest.fixture(scope="module")
def backbone() -> str:
    return resolve_backbone("random-tiny")


@pytest.fixture(scope="module")
def made(backbone: str) -> tuple[Ranker, Any]:
    return sharp_ranker(backbone)


@pytest.fixture(scope="module")
def ranker(made: tuple[Ranker, Any]) -> Ranker:
    return made[0]


@pytest.fixture(scope="module")
def tokenizer(made: tuple[Ranker, Any]) -> Any:
    return made[1]


@pytest.fixture(scope="module")
def plain(ranker: Ranker, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The saved ranker as transformers alone loads it."""
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("model")
    ranker.save(folder, tokenizer)
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def plain_logits(plain: Any, tokenizer: Any, query: str, profile: str, document: str) -> Tensor:
    ids = prompt_token_ids(
        tokenizer,
        query,
        profile,
        document,
        max_prefix_tokens=LIMITS.max_prefix_tokens,
        max_document_tokens=LIMITS.max_document_tokens,
    )
    return plain(input_ids=torch.tensor([ids])).logits[0].float()


# packing

TEXTS = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)
REQUESTS = st.lists(
    st.builds(Request, query=TEXTS, profile=TEXTS, documents=st.lists(TEXTS, max_size=4).map(tuple)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=15, deadline=None)
@given(requests=REQUESTS, max_batch_tokens=st.sampled_from([1, 60, 2048]))
def test_packed_logits_are_those_of_each_pair_alone(
    ranker: Ranker, plain: Any, tokenizer: Any, requests: list[Request], max_batch_tokens: int
) -> None:
    found = score_requests(ranker, tokenizer, requests, max_batch_tokens=max_batch_tokens)
    assert [len(logits) for logits in found] == [len(request.documents) for request in requests]
    for request, logits_NR in zip(requests, found, strict=True):
        for document, logits_R in zip(request.documents, logits_NR, strict=True):
            alone = score_requests(ranker, tokenizer, [replace(request, documents=(document,))])[0][0]
            wanted = plain_logits(plain, tokenizer, request.query, request.profile, document)
            torch.testing.assert_close(logits_R, alone, atol=1e-4, rtol=0)
            torch.testing.assert_close(logits_R, wanted, atol=1e-4, rtol=0)


def test_logits_depend_on_the_prefix_the_document_and_their_order(ranker: Ranker, tokenizer: Any) -> None:
    # Without this, the equalities above could hold of a model that reads nothing.
    texts = [("nurse", "", "ward"), ("welder", "", "ward"), ("nurse", "", "roof"), ("ward", "", "nurse")]
    requests = [Request(query=query, profile=profile, documents=(text,)) for query, profile, text in texts]
    logits = torch.cat(score_requests(ranker, tokenizer, requests))
    for row in range(1, len(texts)):
        assert (logits[row] - logits[0]).abs().max() > 0.01, texts[row]


def test_a_packed_batch_repeats_no_prefix_and_pads_nothing(tokenizer: Any) -> None:
    requests = [
        Request(query="nurse", profile="ten years", documents=("ward", "night ward in Köln")),
        Request(query="welder", profile="", documents=("roof",)),
    ]
    encoded = [encode(request, tokenizer, LIMITS) for request in requests]
    batch = pack(encoded)
    assert len(batch.tokens_T) == sum(item.num_tokens for item in encoded)
    assert batch.tokens_T[batch.ends_N].tolist() == [ids[-1] for item in encoded for ids in item.documents]


def test_rows_become_requests_with_their_pair_ids() -> None:
    asked = [("nurse", "a", "1"), ("nurse", "b", "2"), ("nurse", "a", "3"), ("cook", "a", "1")]
    rows = [make_pair(query, profile, document, slice="s") for query, profile, document in asked]
    assert group_requests(rows) == [
        (Request(query="nurse", profile="a", documents=("1", "3")), [rows[0]["pair_id"], rows[2]["pair_id"]]),
        (Request(query="nurse", profile="b", documents=("2",)), [rows[1]["pair_id"]]),
        (Request(query="cook", profile="a", documents=("1",)), [rows[3]["pair_id"]]),
    ]


# text


@given(query=st.text(), profile=st.text(), document=st.text())
def test_tokenising_the_parts_is_tokenising_the_whole(tokenizer: Any, query: str, profile: str, document: str) -> None:
    parts = prompt_token_ids(tokenizer, query, profile, document, max_prefix_tokens=10_000, max_document_tokens=10_000)
    whole = tokenizer(render_pair(query, profile, document), add_special_tokens=False)["input_ids"]
    assert parts == whole


def test_texts_are_cut_at_their_end_and_the_answer_cue_never(tokenizer: Any) -> None:
    long, short = "ward " * 100, "ward"
    full = document_token_ids(tokenizer, [long, short], max_document_tokens=1000)
    cut = document_token_ids(tokenizer, [long, short], max_document_tokens=12)
    cue = tokenizer("\nGrade: ", add_special_tokens=False)["input_ids"]
    assert len(cut[0]) == 12
    assert cut[0] == full[0][: 12 - len(cue)] + cue
    assert cut[1] == full[1]
    assert full[0][-len(cue) :] == cue
    prefix = prefix_token_ids(tokenizer, "nurse", long, max_prefix_tokens=1000)
    assert prefix_token_ids(tokenizer, "nurse", long, max_prefix_tokens=9) == prefix[:9]


# the model


def test_an_untrained_teacher_grades_as_its_language_model_does(backbone: str) -> None:
    from transformers import AutoModelForCausalLM

    ranker, tokenizer = init_ranker(LIMITS, backbone, HEADS)
    language_model = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32).eval()
    digits = [tokenizer.convert_tokens_to_ids(str(grade)) for grade in range(NUM_GRADES)]
    assert tokenizer.decode(digits) == "01234"
    rows = language_model.get_output_embeddings().weight[digits]
    assert torch.equal(ranker.classifier.score.weight[:5], rows)
    assert torch.equal(ranker.classifier.score.weight[5:10], rows)

    ids = prompt_token_ids(tokenizer, "nurse", "ten years", "ward", max_prefix_tokens=24, max_document_tokens=20)
    with torch.no_grad():
        wanted = language_model(input_ids=torch.tensor([ids])).logits[0, -1, digits].softmax(-1)
    request = Request(query="nurse", profile="ten years", documents=("ward",))
    logits = score_requests(ranker.eval(), tokenizer, [request])[0][0]
    torch.testing.assert_close(logits[:5].softmax(-1), wanted, atol=1e-6, rtol=1e-5)
    assert logits[10:].tolist() == [0.0, 0.0]


def test_a_saved_ranker_says_the_same(ranker: Ranker, tokenizer: Any, tmp_path: Path) -> None:
    ranker.save(tmp_path, tokenizer)
    loaded, its_tokenizer = load_ranker(tmp_path)
    requests = [Request(query="nurse", profile="", documents=("ward", "roof " * 30))]
    assert loaded.heads == HEADS
    assert loaded.limits == replace(LIMITS, source=str(tmp_path))
    found, wanted = score_requests(loaded, its_tokenizer, requests), score_requests(ranker, tokenizer, requests)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_a_directory_without_a_ranker_is_refused(backbone: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_ranker(tmp_path)
    with pytest.raises(InputError, match="not made by Preceptor"):
        load_ranker(Path(backbone))


def test_new_heads_start_at_zero_and_kept_ones_keep_their_rows(ranker: Ranker, tokenizer: Any) -> None:
    other = with_heads(ranker, (*action_heads(["apply", "save"]), *grade_heads([OVERALL])), tokenizer)
    rows, before = other.classifier.score.weight, ranker.classifier.score.weight
    assert torch.equal(rows[0], before[11])
    assert not rows[1].any()
    assert torch.equal(rows[2:], before[:5])
    assert list(other.classifier.config.id2label.values()) == ["apply", "save", *(f"{OVERALL}/{n}" for n in range(5))]
    requests = [Request(query="nurse", profile="", documents=("ward", "roof"))]
    found, wanted = (score_requests(model, tokenizer, requests)[0] for model in (other, ranker))
    torch.testing.assert_close(found[:, 2:], wanted[:, :5], atol=1e-6, rtol=0)
    with torch.no_grad():
        rows.zero_()
    assert before[11].any(), "the new ranker shares its rows with the old one"


@pytest.mark.parametrize(
    ("cut", "num_layers", "kept"),
    [
        (lowest_layers, 3, [0, 1, 2]),
        (lowest_layers, 9, [0, 1, 2, 3]),
        (spaced_layers, 4, [0, 1, 2, 3]),
        (spaced_layers, 3, [0, 2, 3]),
        (spaced_layers, 2, [0, 3]),
    ],
)
def test_a_shallower_ranker_has_the_layers_asked(
    cut: Callable[[Ranker, int], Ranker], num_layers: int, kept: list[int], ranker: Ranker
) -> None:
    weights = [layer.mlp.up_proj.weight for layer in ranker.classifier.model.layers]
    shallow = cut(deepcopy(ranker), num_layers)
    found = [layer.mlp.up_proj.weight for layer in shallow.classifier.model.layers]
    assert [[index for index, weight in enumerate(weights) if torch.equal(weight, layer)] for layer in found] == [
        [index] for index in kept
    ]


def test_a_shallower_ranker_survives_the_disk(ranker: Ranker, tokenizer: Any, tmp_path: Path) -> None:
    shallow = spaced_layers(deepcopy(ranker), 3)
    shallow.save(tmp_path, tokenizer)
    loaded, _ = load_ranker(tmp_path)
    requests = [Request(query="nurse", profile="", documents=("ward", "roof"))]
    found, wanted, whole = (score_requests(model, tokenizer, requests)[0] for model in (loaded, shallow, ranker))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert (found - whole).abs().max() > 0.01
