"""Micro-batches on any number of workers add up to the whole, and every pass of training sees every group once."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from preceptor.contracts import ACTIONS, EXAMPLES, NUM_GRADES, OVERALL, PAIRS, make_pair, rows_to_table, write_table
from preceptor.errors import InputError
from preceptor.ranker import fit
from preceptor.ranker.backbones import resolve_backbone
from preceptor.ranker.batches import micro_batches
from preceptor.ranker.examples import (
    Group,
    draw_documents,
    groups_of_step,
    load_groups,
    normalisers_of,
    to_targets,
)
from preceptor.ranker.losses import Normalisers, Objective
from preceptor.ranker.model import Ranker, action_heads
from preceptor.recipe import TrainConfig
from tests.unit.ranking import HEADS, LIMITS, WORDS, sharp_ranker, softmax

TRAIN = TrainConfig(num_steps=10, groups_per_step=4, learning_rate=1e-3, head_learning_rate=1e-3)


@pytest.fixture(scope="module")
def made() -> tuple[Ranker, Any]:
    return sharp_ranker(resolve_backbone("random-tiny"))


@pytest.fixture(scope="module")
def ranker(made: tuple[Ranker, Any]) -> Ranker:
    return made[0]


@pytest.fixture(scope="module")
def tokenizer(made: tuple[Ranker, Any]) -> Any:
    return made[1]


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
