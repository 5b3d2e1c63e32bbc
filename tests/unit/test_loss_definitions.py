"""The losses of grades, actions and lists equal their definitions, and are finite where nothing is to be said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from preceptor.contracts import ACTIONS, NUM_GRADES
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
from tests.unit.ranking import softmax


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
