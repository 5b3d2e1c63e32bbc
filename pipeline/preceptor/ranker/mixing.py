"""How the shares of the loss terms move while a model learns: rules that see whole steps alone.

A rule's state is one number for each term. It is a function of the terms of whole steps, added up over micro-batches
and workers, so that every worker has the same state, any number of workers gives the same, and a checkpoint that holds
it resumes exactly. During a step the shares stand still: its loss still adds up over micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Final

import torch
from torch import Tensor

from preceptor.ranker.losses import Objective
from preceptor.recipe import FixedMixing, GradientMixing, Mixing, UncertaintyMixing

State = Mapping[str, float]
"""Of uncertainty mixing each term's log variance, of gradient mixing the running mean of its gradient's length."""

START: Final[State] = {}
_SQUARE: Final = "_gradient_squared"


def mixed(objective: Objective, mixing: Mixing, state: State) -> Objective:
    """The shares for the next step: the objective's own, times what the rule makes of its state."""
    if isinstance(mixing, FixedMixing):
        return objective
    if isinstance(mixing, UncertaintyMixing):
        factors = {name: math.exp(-variance) for name, variance in state.items()}
    else:
        shares = {name: share for name, share in asdict(objective).items() if name in state}
        total = sum(shares.values())
        mean = sum(share * state[name] for name, share in shares.items()) / total if total else 0.0
        factors = {name: _within(mean / state[name], mixing.bound) for name in shares}
    return replace(objective, **{name: getattr(objective, name) * factor for name, factor in factors.items()})


def measured(mixing: Mixing, terms: Mapping[str, Tensor], *logits: Tensor) -> dict[str, float]:
    """What the rule needs of one micro-batch beside its terms; the values of all micro-batches add up to the step's.

    Gradient mixing needs each term's squared gradient at the logits. Documents of different micro-batches have no
    logit in common, hence the squares add up, and no pass through the model is needed.
    """
    if not isinstance(mixing, GradientMixing):
        return {}
    # A model without heads of a kind has logits of no width, made of nothing.
    learnt = tuple(item for item in logits if item.requires_grad)
    return {f"{name}{_SQUARE}": _gradient_squared(term, learnt) for name, term in terms.items()}


def advanced(mixing: Mixing, state: State, objective: Objective, terms: Mapping[str, float]) -> State:
    """The rule's state after a whole step whose terms, and what was measured, are in `terms`."""
    # A term of exactly 0 had no target in this step, which says nothing of it.
    used = [name for name, share in asdict(objective).items() if share > 0 and terms.get(name)]
    if isinstance(mixing, FixedMixing):
        return state
    if isinstance(mixing, UncertaintyMixing):
        limit = math.log(mixing.bound)
        moved = {name: _descended(state.get(name, 0.0), terms[name], mixing.rate) for name in used}
        return {**state, **{name: min(max(variance, -limit), limit) for name, variance in moved.items()}}
    lengths = {name: math.sqrt(terms[f"{name}{_SQUARE}"]) for name in used}
    # The first length seen is the mean so far.
    means = {
        name: mixing.memory * state.get(name, length) + (1 - mixing.memory) * length
        for name, length in lengths.items()
        if length > 0
    }
    return {**state, **means}


def _descended(variance: float, loss: float, rate: float) -> float:
    """One step down the gradient of exp(-s) loss + s / 2, s the log variance (Kendall et al. 2018, section 3.2)."""
    return variance - rate * (0.5 - math.exp(-variance) * loss)


def _within(factor: float, bound: float) -> float:
    return min(max(factor, 1 / bound), bound)


def _gradient_squared(term: Tensor, logits: tuple[Tensor, ...]) -> float:
    if not term.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(term, logits, retain_graph=True, allow_unused=True)
    return sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None)
