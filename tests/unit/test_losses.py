"""Losses of order equal plain loops and sentence-transformers' losses, and their parts add up to the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from preceptor.contracts import NUM_GRADES
from preceptor.ranker.losses import (
    SMALLEST_SHARE,
    TERMS,
    Normalisers,
    Objective,
    Targets,
    grade_log_odds,
    list_net,
    listwise_kl,
    loss_terms,
    margin_mse,
    score_mse,
    total_loss,
)
from preceptor.ranker.mixing import measured
from preceptor.recipe import GradientMixing
from tests.unit.ranking import drawn_targets, softmax

Columns = tuple[Tensor, Tensor, Tensor, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


# losses of order


def drawn_columns(seed: int, *, num: int = 11, num_columns: int = 2, num_groups: int = 4) -> Columns:
    """Scores, wanted scores, what is seen (about two thirds) and groups, one of them of a single document."""
    generator = torch.Generator().manual_seed(seed)
    group_N = torch.cat(
        [torch.randint(num_groups - 1, (num - 1,), generator=generator), torch.tensor([num_groups - 1])]
    )
    return (
        2 * torch.randn(num, num_columns, generator=generator),
        2 * torch.randn(num, num_columns, generator=generator),
        torch.rand(num, num_columns, generator=generator) < 0.7,
        group_N,
    )


def lists_of(columns: Columns) -> list[tuple[list[float], list[float]]]:
    """The seen scores and wanted scores of each request and column."""
    scores, wanted, seen, groups = columns
    return [
        ([float(scores[n, k]) for n in rows], [float(wanted[n, k]) for n in rows])
        for k in range(scores.shape[1])
        for group in sorted(set(groups.tolist()))
        if (rows := [n for n in range(len(groups)) if groups[n] == group and seen[n, k]])
    ]


def margin_reference(columns: Columns) -> float:
    total = 0.0
    for scores, wanted in lists_of(columns):
        squares = [
            ((scores[i] - scores[j]) - (wanted[i] - wanted[j])) ** 2 for i in range(len(scores)) for j in range(i)
        ]
        total += sum(squares) / len(squares) if squares else 0.0
    return total


def listnet_reference(columns: Columns) -> float:
    total = 0.0
    for scores, wanted in lists_of(columns):
        total -= sum(p * math.log(q) for p, q in zip(softmax(wanted), softmax(scores), strict=True))
    return total


def mse_reference(columns: Columns) -> float:
    return sum(
        sum((score - other) ** 2 for score, other in zip(scores, wanted, strict=True)) / len(scores)
        for scores, wanted in lists_of(columns)
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("loss", "reference"),
    [(margin_mse, margin_reference), (list_net, listnet_reference), (score_mse, mse_reference)],
)
def test_a_loss_of_scores_equals_its_loops(loss: Loss, reference: Callable[[Columns], float], seed: int) -> None:
    columns = drawn_columns(seed)
    assert any(len(scores) > 2 for scores, _ in lists_of(columns))
    assert float(loss(*columns)) == pytest.approx(reference(columns), rel=1e-4)


@pytest.mark.parametrize("loss", [margin_mse, list_net])
def test_a_constant_for_each_request_and_the_unseen_cost_nothing(loss: Loss) -> None:
    scores, wanted, seen, groups = drawn_columns(3)
    moved = wanted + 5.0 * groups.unsqueeze(1)
    right = torch.where(seen, moved, 99.0).requires_grad_()
    value = loss(right, wanted, seen, groups)
    value.backward()
    assert right.grad is not None and float(right.grad.abs().max()) < 1e-5
    assert value.item() == pytest.approx(float(loss(wanted, wanted, seen, groups)), abs=1e-4)
    assert value.item() < float(loss(scores, wanted, seen, groups))


def test_the_squared_error_of_scores_forgives_no_constant_and_no_request_of_one_document() -> None:
    """What margin_mse lets be: half of it and the square of each request's mean error make the squared error."""
    scores, wanted, _, groups = drawn_columns(5)
    seen = torch.ones_like(scores, dtype=torch.bool)
    sizes = groups.bincount(minlength=4).unsqueeze(1)
    means = torch.zeros(4, 2).index_add(0, groups, scores - wanted) / sizes
    apart = scores + 3.0 * groups.unsqueeze(1)
    assert float(margin_mse(apart, wanted, seen, groups)) == pytest.approx(
        float(margin_mse(scores, wanted, seen, groups)), rel=1e-4
    )
    centred = scores - means[groups]
    assert float(score_mse(scores, wanted, seen, groups)) == pytest.approx(
        float(score_mse(centred, wanted, seen, groups)) + float(means.square().sum()), rel=1e-4
    )
    assert float(score_mse(apart, wanted, seen, groups)) > float(score_mse(scores, wanted, seen, groups)) + 9
    alone = torch.tensor([[2.0]]), torch.tensor([[-1.0]]), torch.tensor([[True]]), torch.tensor([0])
    assert float(score_mse(*alone)) == 9 and float(margin_mse(*alone)) == 0


@pytest.mark.parametrize("loss", [margin_mse, list_net])
def test_requests_of_one_seen_document_or_none_have_no_gradient(loss: Loss) -> None:
    scores, wanted, _, _ = drawn_columns(4, num=3)
    scores.requires_grad_()
    seen = torch.tensor([[True, True], [True, False], [True, True]])
    value = loss(scores, wanted, seen, torch.arange(3))
    value.backward()
    assert value.item() == 0 and scores.grad is not None and not scores.grad.any()


def test_listnet_of_expected_grades_has_the_gradient_of_the_listwise_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = drawn_targets(generator, num=8)
    logits = torch.randn(8, NUM_GRADES, generator=generator).requires_grad_()
    grades = torch.arange(NUM_GRADES, dtype=torch.float32)
    expected_N1 = (logits.softmax(-1) @ grades).unsqueeze(1)
    columns = (expected_N1, targets.grade_probs_NG5[:, :1] @ grades, targets.grade_weights_NG > 0, targets.group_N)
    (of_listnet,) = torch.autograd.grad(list_net(*columns), logits)
    (of_kl,) = torch.autograd.grad(listwise_kl(logits, targets), logits)
    torch.testing.assert_close(of_listnet, of_kl, atol=1e-6, rtol=1e-4)


def test_log_odds_of_grades_are_theirs_and_stay_finite() -> None:
    logits = torch.tensor([[0.0, 0, 0, 0, 0], [3.0, 1, -1, 0, 2], [-90, -90, -90, -90, 90], [200, 0, 0, 0, 0]])
    logits.requires_grad_()
    found = grade_log_odds(logits.log_softmax(-1))
    found.sum().backward()
    shares = [sum(g * p for g, p in enumerate(softmax(row))) / 4 for row in logits[:2].tolist()]
    assert found[:2, 0].tolist() == pytest.approx([math.log(share / (1 - share)) for share in shares], abs=1e-6)
    assert found[2] > 100 and found[3] < -100
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad.any()


def test_terms_take_the_log_odds_of_their_heads_over_the_normaliser_given() -> None:
    generator = torch.Generator().manual_seed(8)
    targets = drawn_targets(generator, num=9)
    grades, actions = torch.randn(9, 1, NUM_GRADES, generator=generator), torch.randn(9, 2, generator=generator)
    shares = {"grade_margin": 0.1, "grade_listnet": 0.2, "action_margin": 0.3, "action_listnet": 0.4, "action_mse": 0.6}
    objective = Objective(grade=0.5, action=0.5, listwise=0.0, **shares)
    norm = Normalisers(grade=2.0, action=3.0, groups=5.0, orders=7.0)
    terms = loss_terms(grades, actions, targets, objective, norm)

    def share_of(probs: Sequence[float]) -> float:
        share = sum(g * p for g, p in enumerate(probs)) / 4
        return min(max(share, SMALLEST_SHARE), 1 - SMALLEST_SHARE)

    def odds(share: float) -> float:
        return math.log(share / (1 - share))

    graded = (
        torch.tensor([[odds(share_of(softmax(row)))] for row in grades[:, 0].tolist()]),
        torch.tensor([[odds(share_of(row))] for row in targets.grade_probs_NG5[:, 0].tolist()]),
        targets.grade_weights_NG > 0,
        targets.group_N,
    )
    wanted = torch.tensor([[odds(share) for share in row] for row in targets.action_probs_NA.tolist()])
    acted = (actions, wanted, targets.action_weights_NA > 0, targets.group_N)
    for kind, columns, num in (("grade", graded, 5), ("action", acted, 7)):
        assert float(terms[f"{kind}_margin"]) == pytest.approx(margin_reference(columns) / num, rel=1e-3)
        assert float(terms[f"{kind}_listnet"]) == pytest.approx(listnet_reference(columns) / num, rel=1e-3)
    assert float(terms["action_mse"]) == pytest.approx(mse_reference(acted) / 7, rel=1e-3)
    by_hand = sum(share * float(terms[name]) for name, share in asdict(objective).items() if share)
    assert float(total_loss(terms, objective)) == pytest.approx(by_hand, rel=1e-6)


EVERY_TERM = Objective(
    grade=0.5,
    action=0.3,
    listwise=0.2,
    grade_margin=0.1,
    grade_listnet=0.4,
    action_margin=0.6,
    action_listnet=0.7,
    action_within=0.35,
    action_mse=0.45,
)


@pytest.mark.parametrize("num_parts", [2, 3])
def test_terms_and_gradients_of_parts_of_a_step_add_up_to_the_whole(num_parts: int) -> None:
    generator = torch.Generator().manual_seed(6)
    drawn = drawn_targets(generator, num=16, num_groups=5)
    targets = Targets(**{name: value.double() for name, value in vars(drawn).items()} | {"group_N": drawn.group_N})
    grades = torch.randn(16, 1, NUM_GRADES, generator=generator, dtype=torch.float64).requires_grad_()
    actions = torch.randn(16, 2, generator=generator, dtype=torch.float64).requires_grad_()
    norm = Normalisers(grade=2.0, action=3.0, groups=5.0, orders=7.0, taken=6.0)
    rule = GradientMixing()

    def step(parts: Sequence[Tensor]) -> tuple[dict[str, float], list[Tensor]]:
        grades.grad = actions.grad = None
        totals: dict[str, float] = {}
        for rows in parts:
            part = Targets(**{name: value[rows] for name, value in vars(targets).items()})
            part = replace(part, group_N=part.group_N.unique(return_inverse=True)[1])
            logits = grades[rows], actions[rows]
            terms = loss_terms(*logits, part, EVERY_TERM, norm)
            wanted = measured(rule, terms, *logits)
            total_loss(terms, EVERY_TERM).backward()
            for name, value in {**{name: term.item() for name, term in terms.items()}, **wanted}.items():
                totals[name] = totals.get(name, 0.0) + value
        assert grades.grad is not None and actions.grad is not None
        return totals, [grades.grad, actions.grad]

    whole, whole_gradients = step([torch.arange(16)])
    assert set(TERMS) < whole.keys() and all(whole.values())
    # A worker's share is whole requests; a request is never split.
    terms, gradients = step([(targets.group_N % num_parts == part).nonzero()[:, 0] for part in range(num_parts)])
    assert terms == pytest.approx(whole, rel=1e-9)
    for found, wanted in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-9)


def test_terms_without_a_share_are_left_out_and_change_no_bit() -> None:
    targets = drawn_targets(torch.Generator().manual_seed(8), num=9)
    logits = torch.randn(9, 1, NUM_GRADES), torch.randn(9, 2)
    objective = Objective(grade=0.6, action=0.4, listwise=0.3)
    norm = Normalisers(grade=2.0, action=3.0, groups=5.0, orders=7.0)
    terms = loss_terms(*logits, targets, objective, norm)
    assert list(terms) == ["grade", "action", "listwise"]
    assert torch.equal(
        total_loss(terms, objective), 0.6 * terms["grade"] + 0.4 * terms["action"] + 0.3 * terms["listwise"]
    )


# sentence-transformers' losses


@pytest.fixture(scope="module")
def peer() -> Any:
    """Its losses of a cross-encoder, on a model whose logits are given: the document's text is its score."""
    losses = pytest.importorskip("sentence_transformers.cross_encoder.losses")
    cross_encoder: Any = pytest.importorskip("sentence_transformers.cross_encoder").CrossEncoder

    class Given(cross_encoder):
        num_labels = 1
        device = torch.device("cpu")

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def preprocess(self, pairs: Sequence[tuple[str, str]], **_: object) -> dict[str, Tensor]:
            return {"scores": torch.tensor([float(document) for _, document in pairs])}

        def forward(self, inputs: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
            return inputs

    return losses, Given()


def test_margins_are_those_of_sentence_transformers(peer: Any) -> None:
    losses, model = peer
    columns = drawn_columns(1, num=12, num_columns=1)
    seen = torch.ones(12, 1, dtype=torch.bool)
    groups = torch.arange(12) // 4
    scores, wanted = columns[0], columns[1]
    pairs = [(i, j) for i in range(12) for j in range(12) if i < j and groups[i] == groups[j]]
    texts = [["q"] * len(pairs), *([repr(float(scores[pair[side]])) for pair in pairs] for side in (0, 1))]
    labels = torch.tensor([float(wanted[i] - wanted[j]) for i, j in pairs])
    # Requests of equal size: its mean over all triplets is the mean of ours over requests.
    assert float(margin_mse(scores, wanted, seen, groups)) / 3 == pytest.approx(
        float(losses.MarginMSELoss(model)(texts, labels)), rel=1e-5
    )


def test_listnet_is_that_of_sentence_transformers(peer: Any) -> None:
    losses, model = peer
    scores, wanted, _, groups = drawn_columns(2, num_columns=1)
    seen = torch.ones_like(scores, dtype=torch.bool)
    lists = lists_of((scores, wanted, seen, groups))
    documents = [[repr(score) for score in found] for found, _ in lists]
    labels = [torch.tensor(found) for _, found in lists]
    theirs = losses.ListNetLoss(model)((["q"] * len(lists), documents), labels)
    assert float(list_net(scores, wanted, seen, groups)) / len(lists) == pytest.approx(float(theirs), rel=1e-5)
