"""What a student is told: losses of order equal plain loops, rules their formulas, voices keep to their masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from preceptor.contracts import NUM_GRADES, OVERALL, TEACHER_SCORES, rows_to_table, split_of, write_table
from preceptor.errors import InputError, RecipeError
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
from preceptor.ranker.mixing import START, advanced, measured, mixed
from preceptor.recipe import DistillConfig, FixedMixing, GradientMixing, Mix, UncertaintyMixing, Voice
from preceptor.recipes import SHIPPED
from preceptor.record import fingerprint_of, to_jsonable
from preceptor.student.distill import hardened, is_drawn, learnable, merged, objective_of, stored_scores, voice_examples

Columns = tuple[Tensor, Tensor, Tensor, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

FINGERPRINTS = {
    "tiny": "3261f06a8c12fa80",
    "demo": "3a5aee684f2c91d1",
    "jobmatch": "aa29687c94d5bd29",
    "cluster": "23578eea4e2ec1f8",
}
"""Of the shipped recipes' distillation, without inputs, before there were voices, mixing rules or losses of order.

That of jobmatch since its student learns differences.
"""


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


def softmax(values: Sequence[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


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


def drawn_targets(generator: torch.Generator, *, num: int, num_groups: int = 3) -> Targets:
    probs = torch.rand(num, 1, NUM_GRADES, generator=generator)
    probs[0, 0, :4] = 0.0
    return Targets(
        grade_probs_NG5=probs / probs.sum(-1, keepdim=True),
        grade_weights_NG=(torch.rand(num, 1, generator=generator) - 0.3).clamp(min=0),
        action_probs_NA=torch.rand(num, 2, generator=generator),
        action_weights_NA=(torch.rand(num, 2, generator=generator) - 0.3).clamp(min=0),
        group_N=torch.randint(num_groups, (num,), generator=generator).sort().values,
    )


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


# mixing

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


# voices


def score_rows(scores: dict[str, list[float]], head: str) -> list[dict[str, Any]]:
    return [{"pair_id": pair_id, "teacher": "t", "head": head, "logits": logits} for pair_id, logits in scores.items()]


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Grades of pairs a and b, clicks and applies of a, b and c; c is in no slice that may be learnt."""
    rows = [
        *score_rows({"a": [0.0, 0, 0, 0, 2], "b": [2.0, 0, 0, 0, 0], "c": [0.0] * 5}, OVERALL),
        *score_rows({"a": [0.0, 0, 0, 0, 2]}, "role"),
        *score_rows({"a": [-4.0], "b": [1.0], "c": [0.0]}, "click"),
        *score_rows({"a": [-6.0], "b": [-1.0]}, "apply"),
    ]
    write_table(rows_to_table(rows, TEACHER_SCORES), tmp_path / "scores" / "0.parquet", TEACHER_SCORES)
    return tmp_path / "scores"


SLICES = {"a": "plain", "b": "vague"}


@pytest.mark.parametrize(
    ("voice", "heard"),
    [
        (Voice(teacher="relevance"), ["a overall", "b overall", "a click", "b click", "a apply", "b apply"]),
        (Voice(teacher="relevance", heads=(OVERALL,)), ["a overall", "b overall"]),
        (Voice(teacher="engagement", heads=("apply",)), ["a apply", "b apply"]),
        (Voice(teacher="engagement", heads=("click", "apply"), least=0.05), ["b click", "b apply"]),
        (Voice(teacher="relevance", slices=("vague",)), ["b overall", "b click", "b apply"]),
        (Voice(teacher="relevance", slices=("nowhere",)), []),
    ],
)
def test_a_voice_is_heard_where_no_mask_leaves_it_out(voice: Voice, heard: list[str], scores: Path) -> None:
    found = voice_examples(scores, voice, SLICES)
    assert [f"{row['pair_id']} {row['head']}" for row in found] == heard


def test_a_voice_has_a_weight_and_a_temperature_of_its_own(scores: Path) -> None:
    voice = Voice(teacher="engagement", heads=("click",), weight=3.0, temperature=2.0)
    found = {row["pair_id"]: row for row in voice_examples(scores, voice, SLICES)}
    assert found["a"]["weight"] == 3.0
    assert found["a"]["target"] == [pytest.approx(1 / (1 + math.exp(2)))]


def test_hard_targets_are_the_top_grade_and_whether_an_action_is_likely(scores: Path) -> None:
    voice = Voice(teacher="relevance", targets="hard", temperature=3.0)
    found = {(row["pair_id"], row["head"]): row["target"] for row in voice_examples(scores, voice, SLICES)}
    assert found == {
        ("a", OVERALL): [0.0, 0.0, 0.0, 0.0, 1.0],
        ("b", OVERALL): [1.0, 0.0, 0.0, 0.0, 0.0],
        ("a", "click"): [0.0],
        ("b", "click"): [1.0],
        ("a", "apply"): [0.0],
        ("b", "apply"): [0.0],
    }
    assert hardened([0.2, 0.3, 0.3, 0.1, 0.1]) == [0.0, 1.0, 0.0, 0.0, 0.0], "the lower of equals"


def test_masks_look_at_probabilities_where_targets_are_hard(scores: Path) -> None:
    voice = Voice(teacher="engagement", heads=("click", "apply"), least=0.2, targets="hard")
    found = [(row["pair_id"], row["head"], row["target"]) for row in voice_examples(scores, voice, SLICES)]
    assert found == [("b", "click", [1.0]), ("b", "apply", [0.0])]


def test_a_share_draws_whole_queries_and_a_larger_one_holds_it() -> None:
    queries = [f"query {number}" for number in range(4000)]
    drawn = {share: {query for query in queries if is_drawn(query, share)} for share in (0.125, 0.25, 0.5, 1.0)}
    assert drawn[0.125] < drawn[0.25] < drawn[0.5] < drawn[1.0] == set(queries)
    for share, found in drawn.items():
        assert len(found) == pytest.approx(share * len(queries), rel=0.15)
    rows = [
        {"pair_id": f"{query}/{number}", "query_id": query, "slice": "plain", "split": split}
        for query in queries[:40]
        for number, split in enumerate(("train", "train", "holdout"))
    ]
    halved = learnable(rows, share=0.5)
    assert halved == {
        f"{query}/{number}": "plain" for query in queries[:40] if query in drawn[0.5] for number in (0, 1)
    }
    # Not the hash of the splits: that would draw train queries unevenly.
    train = [query for query in queries if split_of(query) == "train"]
    assert len(drawn[0.5].intersection(train)) == pytest.approx(len(train) / 2, rel=0.1)


def test_voices_of_one_head_pull_as_a_term_for_each_would(scores: Path) -> None:
    other = scores.parent / "other"
    rows = [*score_rows({"a": [3.0, 0, 0, 0, 0]}, OVERALL), *score_rows({"a": [2.0]}, "click")]
    write_table(rows_to_table(rows, TEACHER_SCORES), other / "0.parquet", TEACHER_SCORES)
    first = list(voice_examples(scores, Voice(teacher="relevance", temperature=2.0), SLICES))
    second = list(voice_examples(other, Voice(teacher="second", scores=other, weight=0.5), SLICES))
    together = {(row["pair_id"], row["head"]): row for row in merged([*first, *second])}
    assert len(together) == len(first), "one row for each pair and head"
    assert together["b", OVERALL] in first, "what one voice says alone is not touched"
    assert together["a", OVERALL]["weight"] == 1.5

    def gradient(rows: Sequence[dict[str, Any]]) -> Tensor:
        logits = torch.tensor([0.3, -1.0, 0.2, 0.8, 0.0, 0.4], requires_grad=True)
        loss = torch.zeros(())
        for row in rows:
            target, weight = torch.tensor(row["target"]), row["weight"]
            if row["pair_id"] == "a" and row["head"] == OVERALL:
                loss = loss + weight * (torch.xlogy(target, target) - target * logits[:5].log_softmax(-1)).sum()
            if row["pair_id"] == "a" and row["head"] == "click":
                loss = loss + weight * torch.nn.functional.binary_cross_entropy_with_logits(logits[5:], target)
        loss.backward()
        assert logits.grad is not None
        return logits.grad

    torch.testing.assert_close(gradient(list(together.values())), gradient([*first, *second]), atol=1e-6, rtol=1e-5)


def test_scores_of_another_run_must_be_finished(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no finished scores stage for voice 'second'.*record\.json"):
        stored_scores(Voice(teacher="second", scores=tmp_path / "nowhere"))


# recipes


def shipped(name: str) -> DistillConfig:
    config = SHIPPED[name]().distill
    assert config is not None
    return config


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_recipes_from_before_keep_their_fingerprint(name: str) -> None:
    assert fingerprint_of("distill", to_jsonable(shipped(name)), {}, None) == FINGERPRINTS[name]


@pytest.mark.parametrize(
    "change",
    [
        {"margin": 0.1},
        {"listnet": 0.1},
        {"action_margin": 0.1},
        {"action_mse": 0.1},
        {"mixing": UncertaintyMixing()},
        {"mixing": GradientMixing()},
        {"voices": (Voice(teacher="relevance"),)},
        {"share": 0.5},
    ],
)
def test_what_a_recipe_chooses_is_in_its_fingerprint(change: dict[str, Any]) -> None:
    config = to_jsonable(replace(shipped("tiny"), **change))
    assert fingerprint_of("distill", config, {}, None) != FINGERPRINTS["tiny"]
    assert change.keys() <= config.keys()


def test_actions_may_weigh_their_differences_more_than_grades_do() -> None:
    config = replace(shipped("tiny"), mix=Mix(relevance=0.75, engagement=0.25), margin=0.5, action_margin=1.5)
    objective = objective_of(replace(config, action_mse=3.0))
    assert (objective.grade_margin, objective.action_margin) == (0.75 * 0.5, 0.25 * 2.0)
    assert objective.action_mse == 0.25 * 3.0 and objective_of(config).action_mse == 0


def test_how_groups_are_read_is_in_no_fingerprint() -> None:
    config = shipped("tiny")
    assert to_jsonable(replace(config, train=replace(config.train, feed="ray_data"))) == to_jsonable(config)


def test_voices_from_before_keep_their_fingerprint() -> None:
    voice = to_jsonable(Voice(teacher="relevance"))
    assert "targets" not in voice
    assert to_jsonable(Voice(teacher="relevance", targets="hard")) == {**voice, "targets": "hard"}


def test_without_voices_both_teachers_are_heard() -> None:
    config = replace(shipped("tiny"), temperature=2.0)
    assert config.heard == (Voice(teacher="relevance", temperature=2.0), Voice(teacher="engagement"))


@pytest.mark.parametrize(
    ("build", "seen"),
    [
        (lambda: Voice(teacher="second"), "give `scores`"),
        (lambda: Voice(teacher="relevance", scores=Path("x")), "give `scores`"),
        (lambda: Voice(teacher="relevance", heads=("role",)), "'role'"),
        (lambda: Voice(teacher="relevance", weight=0.0), "leave the voice out"),
        (lambda: Voice(teacher="relevance", temperature=-1.0), "-1.0"),
        (lambda: Voice(teacher="engagement", least=1.0), "least"),
        (lambda: Voice(teacher="engagement", targets=cast(Any, "sharp")), "'sharp'"),
        (lambda: replace(shipped("tiny"), margin=-0.5), "-0.5"),
        (lambda: replace(shipped("tiny"), share=0.0), "share"),
        (lambda: replace(shipped("tiny"), share=1.5), "1.5"),
        (lambda: replace(shipped("tiny"), voices=(Voice(teacher="relevance"),) * 2), "relevance, relevance"),
        (lambda: replace(shipped("tiny"), temperature=2.0, voices=(Voice(teacher="relevance"),)), "2.0"),
        (lambda: UncertaintyMixing(rate=0.0), "rate"),
        (lambda: UncertaintyMixing(bound=1.0), "bound"),
        (lambda: GradientMixing(memory=1.0), "memory"),
        (lambda: GradientMixing(bound=0.5), "bound"),
    ],
)
def test_a_lesson_that_cannot_work_is_refused(build: Callable[[], object], seen: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build()
    assert seen in str(caught.value) and "\n" not in str(caught.value)
