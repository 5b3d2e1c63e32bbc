"""The ranker's losses: pure functions, sums divided by a normaliser that the caller passes.

Shapes: N documents, G grade heads, A action heads, K score columns, Q requests; 5 grades. Because the normaliser is the
whole step's, the loss of micro-batches, on any number of workers, adds up to the loss of the full batch.

Every loss reads stored logits alone. Transfer of hidden states is left out for that reason: a teacher's hidden states
are some hundred times the size of its logits, and a teacher that runs beside the student would tie the two together.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import reduce
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

from preceptor.contracts import NUM_GRADES

TERMS: Final = (
    "grade",
    "action",
    "listwise",
    "grade_margin",
    "grade_listnet",
    "action_margin",
    "action_listnet",
    "action_within",
    "action_mse",
)
"""The loss terms, in the order they are added up."""

ALWAYS: Final = TERMS[:3]
"""Terms that every step reports, whatever their share."""

SMALLEST_SHARE: Final = 1e-4
"""Targets are held this far from 0 and 1 before their log-odds are taken."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What every head should say of N documents. A weight of 0 masks the head for that document."""

    grade_probs_NG5: Tensor
    grade_weights_NG: Tensor
    action_probs_NA: Tensor
    action_weights_NA: Tensor
    group_N: Tensor
    """The request of each document, counted from 0 in this batch."""

    def to(self, device: torch.device) -> Targets:
        """The same targets on `device`."""
        return Targets(**{item.name: getattr(self, item.name).to(device) for item in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Normalisers:
    """Total weights of the whole step, over all micro-batches and workers."""

    grade: float
    action: float
    groups: float
    """Requests with a target of the first grade head."""
    orders: float = 0.0
    """Requests with a target of an action head, summed over these heads."""
    taken: float = 0.0
    """Actions taken: target times weight, summed over documents and action heads."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Shares of the loss terms, named as in TERMS. Those of order are on the first grade head and on every action."""

    grade: float
    action: float
    listwise: float
    grade_margin: float = 0.0
    grade_listnet: float = 0.0
    action_margin: float = 0.0
    action_listnet: float = 0.0
    action_within: float = 0.0
    action_mse: float = 0.0


def graded_kl(logits_NG5: Tensor, targets: Targets) -> Tensor:
    """Weighted sum of KL(target || prediction) over documents and grade heads, in nats.

    With one-hot targets this is cross-entropy; with a teacher's distribution it is the graded distillation loss of
    Hinton et al. 2015 (temperature is applied to the logits by the caller).
    """
    target = targets.grade_probs_NG5
    negative_entropy = torch.xlogy(target, target).sum(-1)
    cross_entropy = -(target * log_softmax(logits_NG5, dim=-1)).sum(-1)
    return (targets.grade_weights_NG * (negative_entropy + cross_entropy)).sum()


def action_bce(logits_NA: Tensor, targets: Targets) -> Tensor:
    """Weighted sum of binary cross-entropy over documents and action heads, in nats."""
    losses = binary_cross_entropy_with_logits(logits_NA, targets.action_probs_NA, reduction="none")
    return (targets.action_weights_NA * losses).sum()


def listwise_kl(logits_N5: Tensor, targets: Targets) -> Tensor:
    """Sum over requests of KL between the target's and the prediction's order of the request's documents, in nats.

    Each side is a softmax over the request's documents of the expected grade (0 to 4), the top-one probabilities of
    ListNet (Cao et al. 2007). Documents whose first grade head is masked take no part; a request with fewer than two
    documents adds 0.
    """
    grades = torch.arange(NUM_GRADES, dtype=logits_N5.dtype, device=logits_N5.device)
    predicted_N = log_softmax(logits_N5, dim=-1).exp() @ grades
    wanted_N = targets.grade_probs_NG5[:, 0] @ grades
    seen_N = targets.grade_weights_NG[:, 0] > 0
    num_groups = int(targets.group_N.max()) + 1 if len(targets.group_N) else 0
    member_GN = (targets.group_N.unsqueeze(0) == torch.arange(num_groups, device=seen_N.device).unsqueeze(1)) & seen_N
    lowest = torch.finfo(predicted_N.dtype).min
    log_predicted_GN = log_softmax(predicted_N.expand(num_groups, -1).masked_fill(~member_GN, lowest), dim=-1)
    log_wanted_GN = log_softmax(wanted_N.expand(num_groups, -1).masked_fill(~member_GN, lowest), dim=-1)
    terms_GN = log_wanted_GN.exp() * (log_wanted_GN - log_predicted_GN)
    return terms_GN.masked_fill(~member_GN, 0.0).sum()


def margin_mse(scores_NK: Tensor, wanted_NK: Tensor, seen_NK: Tensor, group_N: Tensor) -> Tensor:
    """Sum over requests and columns of the mean squared error of all score differences between two documents.

    MarginMSE (Hofstätter et al. 2020) over every pair of a request's seen documents instead of one positive and one
    negative: a student may be off by a constant for each request. The mean over pairs is twice the sample variance of
    the scores' errors, so it costs no pairs. A request with fewer than two seen documents adds 0.
    """
    num_groups = int(group_N.max()) + 1 if len(group_N) else 0
    errors_NK = torch.where(seen_NK, scores_NK - wanted_NK, 0.0)
    empty_QK = scores_NK.new_zeros(num_groups, scores_NK.shape[1])
    counts_QK = empty_QK.index_add(0, group_N, seen_NK.to(scores_NK.dtype))
    means_QK = empty_QK.index_add(0, group_N, errors_NK) / counts_QK.clamp(min=1)
    centred_NK = torch.where(seen_NK, errors_NK - means_QK[group_N], 0.0)
    squares_QK = empty_QK.index_add(0, group_N, centred_NK.square())
    return (2 * squares_QK / (counts_QK - 1).clamp(min=1)).sum()


def score_mse(scores_NK: Tensor, wanted_NK: Tensor, seen_NK: Tensor, group_N: Tensor) -> Tensor:
    """Sum over requests and columns of the mean squared error of the seen documents' scores.

    Regression on a teacher's logits (Ba and Caruana 2014). `margin_mse` forgives a constant for each request, and this
    does not: it is for scores that are compared across requests.
    """
    num_groups = int(group_N.max()) + 1 if len(group_N) else 0
    squares_NK = torch.where(seen_NK, scores_NK - wanted_NK, 0.0).square()
    empty_QK = scores_NK.new_zeros(num_groups, scores_NK.shape[1])
    counts_QK = empty_QK.index_add(0, group_N, seen_NK.to(scores_NK.dtype))
    return (empty_QK.index_add(0, group_N, squares_NK) / counts_QK.clamp(min=1)).sum()


def list_net(scores_NK: Tensor, wanted_NK: Tensor, seen_NK: Tensor, group_N: Tensor) -> Tensor:
    """Sum over requests and columns of the cross-entropy of top-one probabilities, in nats: ListNet (Cao et al. 2007).

    Each side is a softmax of scores over the request's seen documents. `listwise_kl` is the same of expected grades,
    less the entropy of the target, which has no gradient. What differs is the score: an expected grade lies within 0
    to 4, so that no document can be wanted more than e^4 times as much as another, and actions have none; log-odds
    have no bounds, and every head has them. A request with fewer than two seen documents adds 0.
    """
    num_groups = int(group_N.max()) + 1 if len(group_N) else 0
    groups_Q1 = torch.arange(num_groups, device=group_N.device).unsqueeze(1)
    member_QNK = (group_N.unsqueeze(0) == groups_Q1).unsqueeze(-1) & seen_NK
    lowest = torch.finfo(scores_NK.dtype).min
    predicted_QNK = log_softmax(scores_NK.expand(num_groups, -1, -1).masked_fill(~member_QNK, lowest), dim=1)
    wanted_QNK = log_softmax(wanted_NK.expand(num_groups, -1, -1).masked_fill(~member_QNK, lowest), dim=1).exp()
    return -(wanted_QNK * predicted_QNK).masked_fill(~member_QNK, 0.0).sum()


def action_within(logits_NA: Tensor, targets: Targets) -> Tensor:
    """Negative log-likelihood of which of a request's documents its actions went to, given how many, in nats.

    A weight is an expected number of examinations and a target a rate, so their product counts actions. If these are
    Poisson with mean weight * exp(logit + request), then, given their sum, a document has the share
    weight exp(logit) / sum over the request: McFadden's conditional logit (1974), listwise with clicks as soft targets
    and exposure as an offset. What a request's documents share, as the topic or the day, drops out. The share's own
    constant, target * weight * log(weight), is left out. A request with one document adds 0.
    """
    num_groups = int(targets.group_N.max()) + 1 if len(targets.group_N) else 0
    groups_Q1 = torch.arange(num_groups, device=targets.group_N.device).unsqueeze(1)
    seen_NA = targets.action_weights_NA > 0
    member_QNA = (targets.group_N.unsqueeze(0) == groups_Q1).unsqueeze(-1) & seen_NA
    offset_NA = torch.where(seen_NA, targets.action_weights_NA, 1.0).log()
    lowest = torch.finfo(logits_NA.dtype).min
    raised_QNA = (logits_NA + offset_NA).expand(num_groups, -1, -1).masked_fill(~member_QNA, lowest)
    share_QNA = log_softmax(raised_QNA, dim=1).masked_fill(~member_QNA, 0.0)
    taken_NA = targets.action_probs_NA * targets.action_weights_NA
    return -(taken_NA * (share_QNA.sum(0) - offset_NA * seen_NA)).sum()


def grade_log_odds(log_probs_N5: Tensor) -> Tensor:
    """Log-odds [N, 1] of the expected grade as a share of the highest: the same ranking as its own, without bounds."""
    # log(0) of the grade that adds nothing to one side would leave a gradient that is not a number.
    grades = torch.arange(1, NUM_GRADES, dtype=log_probs_N5.dtype, device=log_probs_N5.device).log()
    towards_N = (log_probs_N5[:, 1:] + grades).logsumexp(-1)
    against_N = (log_probs_N5[:, :-1] + grades.flip(0)).logsumexp(-1)
    return (towards_N - against_N).unsqueeze(1)


def loss_terms(
    grade_logits_NG5: Tensor, action_logits_NA: Tensor, targets: Targets, objective: Objective, norm: Normalisers
) -> dict[str, Tensor]:
    """The terms of ALWAYS and all others with a share, each over the whole step's normaliser.

    A term is 0 where there is nothing to learn: no head of its kind, or no target in the whole step.
    """
    terms = dict.fromkeys(
        (name for name in TERMS if name in ALWAYS or getattr(objective, name)), grade_logits_NG5.new_zeros(())
    )
    group_N = targets.group_N
    if grade_logits_NG5.shape[1] and norm.grade:
        terms["grade"] = graded_kl(grade_logits_NG5, targets) / norm.grade
    if action_logits_NA.shape[1] and norm.action:
        terms["action"] = action_bce(action_logits_NA, targets) / norm.action
    if grade_logits_NG5.shape[1] and norm.groups:
        if objective.listwise:
            terms["listwise"] = listwise_kl(grade_logits_NG5[:, 0], targets) / norm.groups
        if objective.grade_margin or objective.grade_listnet:
            grades = torch.arange(NUM_GRADES, dtype=grade_logits_NG5.dtype, device=grade_logits_NG5.device)
            wanted_N1 = (targets.grade_probs_NG5[:, :1] @ grades) / (NUM_GRADES - 1)
            wanted_N1 = torch.logit(wanted_N1, eps=SMALLEST_SHARE)
            scores_N1 = grade_log_odds(log_softmax(grade_logits_NG5[:, 0], dim=-1))
            columns = (scores_N1, wanted_N1, targets.grade_weights_NG[:, :1] > 0, group_N)
            terms |= _order_terms("grade", columns, objective, norm.groups)
    if action_logits_NA.shape[1] and norm.taken and objective.action_within:
        terms["action_within"] = action_within(action_logits_NA, targets) / norm.taken
    action_scored = objective.action_margin or objective.action_listnet or objective.action_mse
    if action_logits_NA.shape[1] and norm.orders and action_scored:
        wanted_NA = torch.logit(targets.action_probs_NA, eps=SMALLEST_SHARE)
        columns = (action_logits_NA, wanted_NA, targets.action_weights_NA > 0, group_N)
        terms |= _order_terms("action", columns, objective, norm.orders)
        if objective.action_mse:
            terms["action_mse"] = score_mse(*columns) / norm.orders
    return terms


def _order_terms(
    kind: str, columns: tuple[Tensor, Tensor, Tensor, Tensor], objective: Objective, num: float
) -> dict[str, Tensor]:
    losses = {f"{kind}_margin": margin_mse, f"{kind}_listnet": list_net}
    return {name: loss(*columns) / num for name, loss in losses.items() if getattr(objective, name)}


def total_loss(terms: dict[str, Tensor], objective: Objective) -> Tensor:
    """The sum of the terms, each times its share."""
    # In order, so that a term of share 0 changes no bit of the others' sum.
    parts = [getattr(objective, name) * term for name, term in terms.items()]
    return reduce(torch.add, parts)
