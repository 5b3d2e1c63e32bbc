"""A batch's layout changes nothing that is learnt: shared, padded, recomputed and transformers' own all agree.

Weights are random and sharp enough for a token out of place to show; groups have unequal numbers of documents of
unequal lengths.
"""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, BertLMHeadModel

from preceptor.contracts import NUM_GRADES, OVERALL
from preceptor.errors import InputError, RecipeError
from preceptor.ranker import fit
from preceptor.ranker.backbones import resolve_backbone
from preceptor.ranker.batches import encode, lay_out, num_tokens, pack
from preceptor.ranker.examples import Group, normalisers_of, to_request
from preceptor.ranker.losses import Objective
from preceptor.ranker.model import Ranker, action_heads, grade_heads, init_ranker
from preceptor.ranker.sharding import recompute_activations
from preceptor.ranker.written_out import make_block, written_out
from preceptor.recipe import BackboneConfig, TrainConfig
from preceptor.recipe.compute import BatchLayout
from preceptor.record import to_jsonable

LIMITS = BackboneConfig(source="random-tiny", max_prefix_tokens=24, max_document_tokens=30)
HEADS = (*grade_heads([OVERALL]), *action_heads(["click"]))
TRAIN = TrainConfig(num_steps=10, groups_per_step=4, learning_rate=1e-3, head_learning_rate=1e-3)
OBJECTIVE = Objective(grade=0.5, action=0.3, listwise=0.2, grade_margin=0.1)
WORDS = ("nurse", "welder", "Köln", "night shift,", "5 years", "AAA!!!")


@pytest.fixture(scope="module")
def made() -> tuple[Ranker, Any]:
    ranker, tokenizer = init_ranker(LIMITS, resolve_backbone(LIMITS.source), HEADS)
    with torch.no_grad():
        for layer in ranker.classifier.model.layers:
            for weight in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
                weight.mul_(8)
        ranker.classifier.score.weight[5:] = torch.randn(1, 128, generator=torch.Generator().manual_seed(5)) * 0.2
    return ranker.train(), tokenizer


def make_groups() -> list[Group]:
    draw = random.Random(11)

    def text(num_words: int) -> str:
        return " ".join(draw.choices(WORDS, k=num_words))

    def target() -> dict[str, tuple[list[float], float]]:
        grade = draw.randrange(NUM_GRADES)
        return {
            OVERALL: ([float(grade == other) for other in range(NUM_GRADES)], draw.uniform(0.2, 1)),
            "click": ([draw.random()], draw.uniform(0.2, 1)),
        }

    return [
        Group(
            query=text(draw.randint(1, 4)),
            profile=text(draw.randint(0, 5)),
            documents=tuple(text(draw.randint(0, 12)) for _ in range(size)),
            targets=tuple(target() for _ in range(size)),
        )
        for size in (5, 1, 3, 4)
    ]


def step(ranker: Ranker, tokenizer: Any, layout: BatchLayout) -> tuple[dict[str, float], dict[str, Tensor]]:
    ranker.zero_grad()
    groups = make_groups()
    norm = normalisers_of(groups, ranker.heads)
    terms = fit.accumulate_step(ranker, ranker.heads, groups, tokenizer, LIMITS, OBJECTIVE, norm, layout=layout)
    return terms, {name: weight.grad.clone() for name, weight in ranker.named_parameters() if weight.grad is not None}


def assert_same(found: tuple[dict[str, float], dict[str, Tensor]], wanted: tuple[dict[str, float], Any]) -> None:
    assert found[0] == pytest.approx(wanted[0], abs=1e-4)
    assert found[1].keys() == wanted[1].keys() and len(wanted[1]) > 30
    for name, gradient in wanted[1].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[1][name], gradient, atol=1e-4, rtol=1e-4, msg=partial("{} {}".format, name))


@pytest.mark.parametrize(("activations", "micro_batch_tokens"), [("kept", 2048), ("recomputed", 100)])
def test_shared_and_padded_batches_have_the_same_loss_and_gradients(
    made: tuple[Ranker, Any], activations: Any, micro_batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = step(deepcopy(made[0]), made[1], "padded")
    monkeypatch.setattr(fit, "MICRO_BATCH_TOKENS", micro_batch_tokens)
    ranker = deepcopy(made[0])
    recompute_activations(ranker, replace(TRAIN, activations=activations))
    assert ranker.classifier.is_gradient_checkpointing == (activations == "recomputed")
    for layout in ("shared", "padded"):
        assert_same(step(ranker, made[1], layout), wanted)


def test_both_layouts_have_the_gradients_of_transformers_own_forward(made: tuple[Ranker, Any]) -> None:
    """The padded path that most trainers take: whole rows, an attention mask, torch's own attention."""
    ranker, tokenizer = deepcopy(made[0]), made[1]
    encoded = [encode(to_request(group), tokenizer, LIMITS) for group in make_groups()]
    rows = [torch.tensor(item.prefix + document) for item in encoded for document in item.documents]
    plain = deepcopy(ranker.classifier)
    plain.set_attn_implementation("eager")
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=plain.config.pad_token_id)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    wanted = plain(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3))
    (wanted * weights).mean().backward()
    for layout in ("shared", "padded"):
        ranker.zero_grad()
        found = ranker(lay_out(encoded, layout))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
        (found * weights).mean().backward()
        for (name, ours), theirs in zip(ranker.classifier.named_parameters(), plain.parameters(), strict=True):
            # The embeddings' row of the padding token is fixed in torch; no text of ours has it.
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4, msg=partial("{} {}".format, name))


@pytest.mark.parametrize(
    ("lengths", "num_heads", "num_keys"),
    [([(3, (2, 5, 1)), (4, (3,))], 4, 2), ([(1, (1,))], 1, 1), ([(2, ()), (5, (4, 4))], 6, 2)],
)
def test_the_written_out_gradient_is_that_of_attention_over_masked_rows(
    lengths: list[tuple[int, tuple[int, ...]]], num_heads: int, num_keys: int
) -> None:
    draw = torch.Generator().manual_seed(1)
    total = sum(prefix + sum(documents) for prefix, documents in lengths)
    sizes = (num_heads, num_keys, num_keys)
    states = [torch.randn(total, count, 4, generator=draw, dtype=torch.float64).requires_grad_() for count in sizes]
    blocks = [make_block(*one, group=num_heads // num_keys, dtype=torch.float64) for one in lengths]
    visible, start = torch.zeros(total, total, dtype=torch.bool), 0
    for prefix, documents in lengths:
        ends = [start + prefix]
        visible[start : ends[0], start : ends[0]] = torch.ones(prefix, prefix, dtype=torch.bool).tril()
        for length in documents:
            span = slice(ends[-1], ends[-1] + length)
            visible[span, start : ends[0]] = True
            visible[span, span] = torch.ones(length, length, dtype=torch.bool).tril()
            ends.append(span.stop)
        start = ends[-1]
    query, key, value = (item.transpose(0, 1) for item in states)
    repeats = num_heads // num_keys
    wanted = scaled_dot_product_attention(
        query, key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0), attn_mask=visible, scale=0.3
    ).transpose(0, 1)
    found = written_out(states[0], states[1], states[2], blocks, 0.3)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn(wanted.shape, generator=draw, dtype=torch.float64)
    theirs = torch.autograd.grad(wanted, states, upstream)
    for ours, other in zip(torch.autograd.grad(found, states, upstream), theirs, strict=True):
        torch.testing.assert_close(ours, other)


def test_a_shared_batch_has_fewer_tokens_than_a_padded_one(made: tuple[Ranker, Any]) -> None:
    encoded = [encode(to_request(group), made[1], LIMITS) for group in make_groups()]
    shared, padded = pack(encoded), lay_out(encoded, "padded")
    assert len(shared.tokens_T) == sum(num_tokens(item, "shared") for item in encoded) < len(padded.tokens_T) / 1.5
    alone = [len(lay_out([item], "padded").tokens_T) for item in encoded]
    assert alone == [num_tokens(item, "padded") for item in encoded]


def test_fields_that_change_nothing_learnt_leave_a_fingerprint_alone() -> None:
    later = {"layout", "activations", "min_workers"}
    assert not later & to_jsonable(TRAIN).keys()
    changed = replace(TRAIN, layout="padded", activations="recomputed", min_workers=1)
    assert later <= to_jsonable(changed).keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "ragged"}, "layout must be shared or padded, got 'ragged'"),
        ({"activations": "lost"}, "activations must be kept or recomputed, got 'lost'"),
        ({"min_workers": 0}, "min_workers lies in 1..num_workers, got 0 of 2"),
        ({"min_workers": 3}, "min_workers lies in 1..num_workers, got 3 of 2"),
    ],
)
def test_choices_that_there_are_not_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        replace(TRAIN, **change)


def test_a_backbone_that_cannot_share_a_prefix_is_refused_in_words(made: tuple[Ranker, Any], tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=len(made[1]), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    BertLMHeadModel(config).save_pretrained(tmp_path)
    made[1].save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"a bert model cannot share a prefix .* like llama, qwen2, qwen3, mistral"):
        init_ranker(LIMITS, str(tmp_path), HEADS)
