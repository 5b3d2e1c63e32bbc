"""The ranker's losses: pure functions, sums divided by a normaliser that the caller passes.

Shapes: N documents, G grade heads, A action heads; 5 grades. Because the normaliser is the whole step's, the loss of
micro-batches, on any number of workers, adds up to the loss of the full batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

from preceptor.contracts import NUM_GRADES


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


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Shares of the loss terms. The listwise term is on the first grade head."""

    grade: float
    action: float
    listwise: float


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


def total_loss(
    grade_logits_NG5: Tensor, action_logits_NA: Tensor, targets: Targets, objective: Objective, norm: Normalisers
) -> dict[str, Tensor]:
    """The terms ``grade``, ``action``, ``listwise`` (each normalised) and their weighted sum ``loss``."""
    zero = grade_logits_NG5.new_zeros(())
    has_grades, has_actions = grade_logits_NG5.shape[1] > 0, action_logits_NA.shape[1] > 0
    grade = graded_kl(grade_logits_NG5, targets) / norm.grade if has_grades and norm.grade else zero
    action = action_bce(action_logits_NA, targets) / norm.action if has_actions and norm.action else zero
    wants_order = has_grades and norm.groups and objective.listwise
    listwise = listwise_kl(grade_logits_NG5[:, 0], targets) / norm.groups if wants_order else zero
    loss = objective.grade * grade + objective.action * action + objective.listwise * listwise
    return {"loss": loss, "grade": grade.detach(), "action": action.detach(), "listwise": listwise.detach()}
