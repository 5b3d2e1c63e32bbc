"""The ranker: packed equals alone, micro-batches equal the whole, losses equal their definitions, heads keep rows.

Weights are random and every text is made up: what is tested is arithmetic, not what a model learnt.
"""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preceptor.contracts import (
    ACTIONS,
    EXAMPLES,
    IMPRESSIONS,
    NUM_GRADES,
    OVERALL,
    PAIRS,
    TEACHER_SCORES,
    make_pair,
    rows_to_table,
    write_table,
)
from preceptor.errors import InputError
from preceptor.ranker import fit
from preceptor.ranker.backbones import resolve_backbone
from preceptor.ranker.batches import Request, encode, group_requests, micro_batches, pack
from preceptor.ranker.examples import (
    Group,
    draw_documents,
    groups_of_step,
    load_groups,
    normalisers_of,
    to_targets,
)
from preceptor.ranker.losses import (
    Normalisers,
    Objective,
    Targets,
    action_bce,
    graded_kl,
    listwise_kl,
    loss_terms,
    total_loss,
)
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
from preceptor.recipe import BackboneConfig, TrainConfig, Voice
from preceptor.record import Record
from preceptor.student.distill import voice_examples
from preceptor.teachers.engagement import MIN_PROPENSITY, click_examples, exposures

LIMITS = BackboneConfig(source="random-tiny", max_prefix_tokens=24, max_document_tokens=20)
HEADS = (*grade_heads([OVERALL, "role"]), *action_heads())
TRAIN = TrainConfig(num_steps=10, groups_per_step=4, learning_rate=1e-3, head_learning_rate=1e-3)


@pytest.fixture(scope="module")
def backbone() -> str:
    return resolve_backbone("random-tiny")


@pytest.fixture(scope="module")
def made(backbone: str) -> tuple[Ranker, Any]:
    """A ranker whose attention is sharp enough for a token out of place to show, and its tokenizer.

    The fresh weights of the tiny backbone attend almost evenly, and fresh action heads say nothing.
    """
    ranker, tokenizer = init_ranker(LIMITS, backbone, HEADS)
    score = ranker.classifier.score.weight
    with torch.no_grad():
        for layer in ranker.classifier.model.layers:
            for weight in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
                weight.mul_(8)
        score[10:] = torch.randn(2, score.shape[1], generator=torch.Generator().manual_seed(5)) * 0.2
    return ranker.eval(), tokenizer


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

WORDS = ("nurse", "welder", "Köln", "night shift,", "5 years", "AAA!!!", "C++", "管理", "")
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


# losses


def drawn_targets(generator: torch.Generator, *, num: int, num_grade_heads: int, num_groups: int) -> Targets:
    """Random targets; about a third of the weights are 0, and a target may give a grade no probability at all."""
    probs = torch.rand(num, num_grade_heads, NUM_GRADES, generator=generator).round(decimals=1) + 1e-9
    probs[0, :, :4] = 0.0
    return Targets(
        grade_probs_NG5=probs / probs.sum(-1, keepdim=True),
        grade_weights_NG=(torch.rand(num, num_grade_heads, generator=generator) - 0.3).clamp(min=0),
        action_probs_NA=torch.rand(num, len(ACTIONS), generator=generator),
        action_weights_NA=(torch.rand(num, len(ACTIONS), generator=generator) - 0.3).clamp(min=0),
        group_N=torch.randint(num_groups, (num,), generator=generator).sort().values,
    )


def softmax(values: Sequence[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def kl(wanted: Sequence[float], given: Sequence[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(wanted, given, strict=True) if p > 0)


def expected(probs: Sequence[float]) -> float:
    return sum(grade * prob for grade, prob in enumerate(probs))


def graded_reference(logits: Tensor, targets: Targets) -> float:
    return sum(
        float(targets.grade_weights_NG[n, g]) * kl(targets.grade_probs_NG5[n, g].tolist(), softmax(row.tolist()))
        for n, rows in enumerate(logits)
        for g, row in enumerate(rows)
    )


def action_reference(logits: Tensor, targets: Targets) -> float:
    total = 0.0
    for n, row in enumerate(logits.tolist()):
        for a, logit in enumerate(row):
            prob, wanted = 1 / (1 + math.exp(-logit)), float(targets.action_probs_NA[n, a])
            loss = -(wanted * math.log(prob) + (1 - wanted) * math.log(1 - prob))
            total += float(targets.action_weights_NA[n, a]) * loss
    return total


def listwise_reference(logits: Tensor, targets: Targets) -> float:
    total = 0.0
    for group in set(targets.group_N.tolist()):
        seen = [
            n for n, owner in enumerate(targets.group_N) if owner == group and float(targets.grade_weights_NG[n, 0]) > 0
        ]
        if seen:
            wanted = softmax([expected(targets.grade_probs_NG5[n, 0].tolist()) for n in seen])
            total += kl(wanted, softmax([expected(softmax(logits[n].tolist())) for n in seen]))
    return total


@pytest.mark.parametrize("seed", range(5))
def test_each_loss_equals_its_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = drawn_targets(generator, num=9, num_grade_heads=2, num_groups=4)
    grades = 3 * torch.randn(9, 2, NUM_GRADES, generator=generator)
    actions = 3 * torch.randn(9, len(ACTIONS), generator=generator)
    assert float(graded_kl(grades, targets)) == pytest.approx(graded_reference(grades, targets), rel=1e-4)
    assert float(action_bce(actions, targets)) == pytest.approx(action_reference(actions, targets), rel=1e-4)
    listwise = listwise_reference(grades[:, 0], targets)
    assert float(listwise_kl(grades[:, 0], targets)) == pytest.approx(listwise, rel=1e-3, abs=1e-5)

    objective = Objective(grade=0.5, action=0.3, listwise=0.2)
    terms = loss_terms(grades, actions, targets, objective, Normalisers(grade=7.0, action=11.0, groups=3.0))
    by_hand = (
        0.5 * graded_reference(grades, targets) / 7 + 0.3 * action_reference(actions, targets) / 11 + 0.2 * listwise / 3
    )
    assert float(total_loss(terms, objective)) == pytest.approx(by_hand, rel=1e-4)


def test_a_model_that_says_the_target_has_no_loss_left_to_lose() -> None:
    targets = drawn_targets(torch.Generator().manual_seed(1), num=6, num_grade_heads=1, num_groups=2)
    logits = targets.grade_probs_NG5.clamp(min=1e-30).log().requires_grad_()
    loss = graded_kl(logits, targets) + listwise_kl(logits[:, 0], targets)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-6


def test_a_request_of_one_document_says_nothing_of_order() -> None:
    targets = drawn_targets(torch.Generator().manual_seed(1), num=3, num_grade_heads=1, num_groups=1)
    targets = replace(targets, group_N=torch.arange(3), grade_weights_NG=torch.ones(3, 1))
    logits = torch.randn(3, NUM_GRADES, generator=torch.Generator().manual_seed(2)).requires_grad_()
    loss = listwise_kl(logits, targets)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_a_step_without_any_target_of_a_kind_has_a_finite_loss() -> None:
    targets = drawn_targets(torch.Generator().manual_seed(1), num=4, num_grade_heads=1, num_groups=2)
    targets = replace(targets, grade_weights_NG=torch.zeros(4, 1))
    grades = torch.randn(4, 1, NUM_GRADES).requires_grad_()
    actions = torch.randn(4, len(ACTIONS)).requires_grad_()
    norm = Normalisers(grade=0.0, action=2.0, groups=0.0)
    objective = Objective(grade=1.0, action=1.0, listwise=1.0, grade_margin=1.0, grade_listnet=1.0)
    terms = loss_terms(grades, actions, targets, objective, norm)
    assert total_loss(terms, objective).item() == pytest.approx(
        action_reference(actions.detach(), targets) / 2, rel=1e-4
    )


# micro-batches


def make_groups(num: int, *, num_documents: int = 5, seed: int = 0) -> list[Group]:
    """Groups with a grade target for most documents and action targets for some."""
    draw = random.Random(seed)
    groups = []
    for number in range(num):
        size = draw.randint(1, num_documents)
        targets: list[dict[str, tuple[list[float], float]]] = []
        for _ in range(size):
            row: dict[str, tuple[list[float], float]] = {}
            if draw.random() < 0.8:
                row[OVERALL] = (softmax([draw.uniform(-2, 2) for _ in range(NUM_GRADES)]), draw.uniform(0.2, 1))
            if draw.random() < 0.5:
                row["click"] = ([draw.random()], draw.uniform(0.2, 3))
            targets.append(row or {"role": ([0.0, 0.0, 1.0, 0.0, 0.0], 1.0)})
        groups.append(
            Group(
                query=f"{draw.choice(WORDS)} {number}",
                profile=draw.choice(WORDS),
                documents=tuple(f"{draw.choice(WORDS)} {number} {index}" for index in range(size)),
                targets=tuple(targets),
            )
        )
    return groups


@pytest.mark.parametrize("max_tokens", [1, 70])
def test_gradients_of_micro_batches_on_any_number_of_workers_add_up_to_the_full_batchs(
    ranker: Ranker, tokenizer: Any, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = deepcopy(ranker)
    groups = make_groups(6)
    norm = normalisers_of(groups, ranker.heads)

    def step(parts: list[list[Group]]) -> tuple[dict[str, float], dict[str, Tensor]]:
        ranker.zero_grad()
        terms: dict[str, float] = {}
        for part in parts:
            objective = Objective(grade=0.5, action=0.3, listwise=0.2)
            found = fit.accumulate_step(ranker, ranker.heads, part, tokenizer, LIMITS, objective, norm)
            terms = {name: terms.get(name, 0.0) + value for name, value in found.items()}
        grads = {name: p.grad.clone() for name, p in ranker.named_parameters() if p.grad is not None}
        return terms, grads

    whole_terms, whole_grads = step([groups])
    assert all(whole_terms.values())
    monkeypatch.setattr(fit, "MICRO_BATCH_TOKENS", max_tokens)
    for num_workers in (1, 2, 3):
        terms, grads = step([groups[rank::num_workers] for rank in range(num_workers)])
        assert terms == pytest.approx(whole_terms, rel=1e-5)
        assert grads.keys() == whole_grads.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(grad, whole_grads[name], atol=1e-6, rtol=1e-4)


@given(lengths=st.lists(st.integers(1, 50), max_size=20), max_tokens=st.integers(1, 80))
def test_micro_batches_hold_every_group_once_and_no_more_than_asked(lengths: list[int], max_tokens: int) -> None:
    batches = list(micro_batches(lengths, max_tokens))
    assert [index for batch in batches for index in batch] == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[index] for index in batch) <= max_tokens for batch in batches)


def test_normalisers_count_what_the_targets_weigh() -> None:
    groups = [*make_groups(5), Group(query="q", profile="", documents=("d",), targets=({"click": ([1.0], 1.0)},))]
    targets = to_targets(groups, HEADS)
    norm = normalisers_of(groups, HEADS)
    assert norm.grade == pytest.approx(float(targets.grade_weights_NG.sum()), rel=1e-5)
    assert norm.action == pytest.approx(float(targets.action_weights_NA.sum()), rel=1e-5)
    ordered = {
        int(group) for group, weight in zip(targets.group_N, targets.grade_weights_NG[:, 0], strict=True) if weight
    }
    assert norm.groups == len(ordered) == 5
    acted = targets.action_weights_NA > 0
    assert norm.orders == sum(len(set(targets.group_N[acted[:, a]].tolist())) for a in range(len(ACTIONS))) > 1
    assert normalisers_of(groups, action_heads(["apply"])) == Normalisers(grade=0.0, action=0.0, groups=0.0)


# what a step sees


@given(num_groups=st.integers(1, 30), groups_per_step=st.integers(1, 8))
def test_every_pass_sees_every_group_once(num_groups: int, groups_per_step: int) -> None:
    config = replace(TRAIN, groups_per_step=groups_per_step, num_workers=1)
    seen = [index for step in range(num_groups * 2) for index in groups_of_step(num_groups, step, config)]
    for start in range(0, len(seen) - num_groups + 1, num_groups):
        assert sorted(seen[start : start + num_groups]) == list(range(num_groups))


def test_the_order_depends_on_seed_and_pass_and_nothing_else() -> None:
    first, again = (groups_of_step(40, 3, TRAIN) for _ in range(2))
    assert first == again
    assert first != groups_of_step(40, 13, TRAIN), "the second pass repeats the first"
    assert first != groups_of_step(40, 3, replace(TRAIN, seed=18))


def test_drawn_documents_keep_their_targets_and_change_with_the_step() -> None:
    targets = tuple({OVERALL: ([float(n == 0), 0.0, 0.0, 0.0, 1.0], float(n))} for n in range(12))
    group = Group(query="q", profile="p", documents=tuple(f"d{n}" for n in range(12)), targets=targets)
    config = replace(TRAIN, documents_per_group=3)
    draws = [draw_documents(group, step, config) for step in range(40)]
    assert draws[7] == draw_documents(group, 7, config)
    assert draws[7] != draw_documents(group, 7, replace(config, seed=18))
    assert {document for draw in draws for document in draw.documents} == set(group.documents)
    for draw in draws:
        assert len(set(draw.documents)) == 3
        assert [f"d{row[OVERALL][1]:.0f}" for row in draw.targets] == list(draw.documents)
    assert draw_documents(group, 0, replace(TRAIN, documents_per_group=12)) == group


def test_groups_hold_the_pairs_that_have_an_example(tmp_path: Path) -> None:
    pairs = [make_pair(f"q{n // 3}", "p", f"d{n}", slice="s") for n in range(6)]
    examples = [
        {"pair_id": pairs[n]["pair_id"], "head": "click", "target": [n / 10], "weight": 1.0 + n} for n in (0, 2, 4)
    ]
    write_table(rows_to_table([*pairs, pairs[0]], PAIRS), tmp_path / "pairs" / "0.parquet", PAIRS)
    write_table(rows_to_table(examples, EXAMPLES), tmp_path / "examples" / "0.parquet", EXAMPLES)
    groups = load_groups(tmp_path / "pairs", tmp_path / "examples")
    found = {
        (group.query, document): row
        for group in groups
        for document, row in zip(group.documents, group.targets, strict=True)
    }
    assert len(groups) == 2 and found.keys() == {("q0", "d0"), ("q0", "d2"), ("q1", "d4")}
    assert found["q1", "d4"] == {"click": ([pytest.approx(0.4)], 5.0)}
    write_table(rows_to_table(examples[:0], EXAMPLES), tmp_path / "none" / "0.parquet", EXAMPLES)
    with pytest.raises(InputError, match="no example matches a pair"):
        load_groups(tmp_path / "pairs", tmp_path / "none")


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


# what the teachers and the student learn from


def test_rates_given_examination_recover_attraction_where_raw_rates_do_not() -> None:
    # The best document was mostly shown at the bottom, as an earlier ranker had it.
    attraction = {"best": 0.6, "good": 0.4, "poor": 0.2}
    shown_at = {"best": 0.2, "good": 0.5, "poor": 0.9}
    draw = random.Random(4)
    rows = []
    for pair_id, rate in attraction.items():
        for _ in range(20_000):
            # A fifth of the time anywhere, as exploration would show it.
            examined = shown_at[pair_id] if draw.random() < 0.8 else draw.choice([0.2, 0.5, 0.9])
            click = float(draw.random() < examined * rate)
            rows.append({"pair_id": pair_id, "examined": examined, "click": click, "apply": None})
    corrected = {row["pair_id"]: row["target"][0] for row in click_examples(rows)}
    raw = {row["pair_id"]: row["target"][0] for row in click_examples([{**row, "examined": 1.0} for row in rows])}
    # 20,000 draws at 0.29 examinations each or more: a standard deviation of at most 0.008.
    assert corrected == pytest.approx(attraction, abs=0.04)
    assert raw["best"] < raw["poor"] < attraction["poor"]


def test_an_action_counts_where_it_was_seen_and_ever_taken() -> None:
    rows = [
        {"pair_id": "a", "examined": 0.25, "click": 1.0, "apply": 0.0},
        {"pair_id": "a", "examined": 0.5, "click": 0.0, "apply": 0.0},
        {"pair_id": "b", "examined": 0.5, "click": 1.0, "apply": 0.0},
        {"pair_id": "c", "examined": 2.0, "click": None, "apply": 0.0},
    ]
    found = {row["pair_id"]: row for row in click_examples(rows)}
    assert found == {
        "a": {"pair_id": "a", "head": "click", "target": [1.0], "weight": 0.75},  # 1 / 0.75, cut
        "b": {"pair_id": "b", "head": "click", "target": [1.0], "weight": 0.5},
    }
    assert rows_to_table(found.values(), EXAMPLES).num_rows == 2
    applied = list(click_examples([*rows, {"pair_id": "c", "examined": 2.0, "click": None, "apply": 1.0}]))
    rates = {row["pair_id"]: row["target"] for row in applied if row["head"] == "apply"}
    assert rates == {"a": [0.0], "b": [0.0], "c": [0.25]}


def test_a_position_that_nobody_examines_cannot_dominate(tmp_path: Path) -> None:
    pair = make_pair("nurse", "", "ward", slice="s")
    ids = {name: pair[name] for name in ("pair_id", "query_id", "profile_id", "document_id", "split")}
    when = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    rows = [
        {**ids, "request_id": "r", "position": 9, "shown_at": when, "click": True, "apply": False, "propensity": given}
        for given in (1e-6, 0.5)
    ]
    write_table(rows_to_table(rows, IMPRESSIONS), tmp_path / "impressions" / "0.parquet", IMPRESSIONS)
    corpus = Record(stage="market", version="v1", fingerprint="c", path=tmp_path, config={})
    assert [row["examined"] for row in exposures(corpus)] == [MIN_PROPENSITY, 0.5]


def test_stored_logits_become_probabilities_at_the_temperature_asked(tmp_path: Path) -> None:
    logits = [4.0, 2.0, 0.0, -2.0, -40.0]
    rows = [
        {"pair_id": "a", "teacher": "relevance_teacher", "head": OVERALL, "logits": logits},
        {"pair_id": "a", "teacher": "relevance_teacher", "head": "role", "logits": logits},
        {"pair_id": "b", "teacher": "engagement_teacher", "head": "click", "logits": [-1.5]},
    ]
    write_table(rows_to_table(rows, TEACHER_SCORES), tmp_path / "0.parquet", TEACHER_SCORES)
    slices = {"a": "s", "b": "s"}
    (graded,) = voice_examples(tmp_path, Voice(teacher="relevance", temperature=2.0, heads=(OVERALL,)), slices)
    (acted,) = voice_examples(tmp_path, Voice(teacher="engagement", heads=("click",)), slices)
    assert graded == {
        "pair_id": "a",
        "head": OVERALL,
        "target": pytest.approx(softmax([2, 1, 0, -1, -20])),
        "weight": 1,
    }
    assert acted == {"pair_id": "b", "head": "click", "target": [pytest.approx(1 / (1 + math.exp(1.5)))], "weight": 1}
    write_table(
        rows_to_table([{**rows[0], "logits": [1.0, 2.0]}], TEACHER_SCORES), tmp_path / "1.parquet", TEACHER_SCORES
    )
    with pytest.raises(InputError, match="expected 5 logits, got 2"):
        list(voice_examples(tmp_path, Voice(teacher="relevance"), slices))
