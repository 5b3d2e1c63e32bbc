"""Mixing rules equal their formulas: fixed shares, shares by uncertainty, shares by gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from preceptor.contracts import NUM_GRADES
from preceptor.ranker.losses import Normalisers, Objective, loss_terms
from preceptor.ranker.mixing import START, advanced, measured, mixed
from preceptor.recipe import FixedMixing, GradientMixing, UncertaintyMixing
from tests.unit.ranking import drawn_targets

SHARES = Objective(grade=0.6, action=0.4, listwise=0.3)


def test_fixed_shares_stay_what_the_recipe_says() -> None:
    state = advanced(FixedMixing(), START, SHARES, {"grade": 9.0, "action": 0.1, "listwise": 3.0})
    assert mixed(SHARES, FixedMixing(), state) is SHARES
    assert measured(FixedMixing(), {"grade": torch.tensor(1.0)}) == {}


def test_uncertainty_settles_where_a_term_weighs_half_of_one_over_its_loss() -> None:
    rule = UncertaintyMixing(rate=0.2)
    losses = {"grade": 0.8, "action": 0.25, "listwise": 1e-4}
    assert mixed(SHARES, rule, START) == SHARES, "the first step has the recipe's shares"
    first = advanced(rule, START, SHARES, losses)
    assert first["grade"] == pytest.approx(-0.2 * (0.5 - 0.8))
    state = START
    for _ in range(500):
        state = advanced(rule, state, SHARES, losses)
    found = mixed(SHARES, rule, state)
    assert found.grade == pytest.approx(0.6 / (2 * 0.8))
    assert found.action == pytest.approx(0.4 / (2 * 0.25))
    assert found.listwise == pytest.approx(0.3 * rule.bound), "held back where the loss vanishes"


def test_uncertainty_follows_the_gradient_that_autograd_finds() -> None:
    variance = torch.tensor(0.7, requires_grad=True)
    (torch.exp(-variance) * 1.3 + variance / 2).backward()
    found = advanced(UncertaintyMixing(rate=0.1), {"grade": 0.7}, SHARES, {"grade": 1.3, "action": 0.0})
    assert variance.grad is not None
    assert found == {"grade": pytest.approx(0.7 - 0.1 * float(variance.grad))}


def test_gradient_mixing_makes_shares_of_loss_shares_of_gradient() -> None:
    generator = torch.Generator().manual_seed(4)
    targets = drawn_targets(generator, num=9)
    grades = torch.randn(9, 1, NUM_GRADES, generator=generator).requires_grad_()
    actions = torch.randn(9, 2, generator=generator).requires_grad_()
    rule, norm = GradientMixing(memory=0.0, bound=1e6), Normalisers(grade=2.0, action=30.0, groups=5.0, orders=7.0)
    objective = replace(SHARES, action_margin=0.2)
    terms = loss_terms(grades, actions, targets, objective, norm)
    seen = {name: term.item() for name, term in terms.items()} | measured(rule, terms, grades, actions)
    moved = mixed(objective, rule, advanced(rule, START, objective, seen))

    lengths = {}
    for name, term in terms.items():
        parts = torch.autograd.grad(
            getattr(moved, name) * term, (grades, actions), retain_graph=True, allow_unused=True
        )
        lengths[name] = math.sqrt(sum(float(part.square().sum()) for part in parts if part is not None))
    start = {name: getattr(objective, name) for name in terms}
    assert {name: length / lengths["grade"] for name, length in lengths.items()} == pytest.approx(
        {name: share / start["grade"] for name, share in start.items()}, rel=1e-4
    )
    assert sum(lengths.values()) == pytest.approx(
        sum(share * math.sqrt(seen[f"{name}_gradient_squared"]) for name, share in start.items()), rel=1e-4
    )


def test_a_model_of_grades_alone_can_be_mixed_by_gradient() -> None:
    targets = drawn_targets(torch.Generator().manual_seed(4), num=6)
    targets = replace(targets, action_probs_NA=torch.zeros(6, 0), action_weights_NA=torch.zeros(6, 0))
    grades = torch.randn(6, 1, NUM_GRADES).requires_grad_()
    norm = Normalisers(grade=2.0, action=0.0, groups=3.0)
    terms = loss_terms(grades, torch.zeros(6, 0), targets, SHARES, norm)
    found = measured(GradientMixing(), terms, grades, torch.zeros(6, 0))
    assert found["grade_gradient_squared"] > 0 and found["action_gradient_squared"] == 0


def test_gradient_mixing_remembers_and_keeps_its_bounds() -> None:
    rule = GradientMixing(memory=0.75, bound=2.0)
    seen = {"grade": 1.0, "grade_gradient_squared": 16.0, "action": 1.0, "action_gradient_squared": 0.01}
    state = advanced(rule, START, SHARES, seen)
    assert state == {"grade": 4.0, "action": pytest.approx(0.1)}
    assert mixed(SHARES, rule, state).action == 0.4 * 2.0
    later = advanced(rule, state, SHARES, {"grade": 1.0, "grade_gradient_squared": 0.0, "action": 0.0})
    assert later == state, "a step without a target of a term says nothing of it"
    assert advanced(rule, state, SHARES, {**seen, "grade_gradient_squared": 0.0 + 64.0})["grade"] == 0.75 * 4 + 0.25 * 8
