"""Training groups: the pairs of one request with what every head should say of each of them.

The order of groups and the documents drawn from each are functions of (seed, step) alone, so that a run resumed at a
step sees exactly what it would have seen.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import torch

from preceptor.contracts import EXAMPLES, NUM_GRADES, PAIRS, read_table
from preceptor.errors import InputError
from preceptor.ranker.batches import Request
from preceptor.ranker.losses import Normalisers, Targets
from preceptor.ranker.model import Head
from preceptor.recipe import TrainConfig

HeadTargets = dict[str, tuple[list[float], float]]
"""For each head name: its target probabilities and weight."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One request's documents and their targets, in the same order."""

    query: str
    profile: str
    documents: tuple[str, ...]
    targets: tuple[HeadTargets, ...]


def load_groups(pairs: Path, examples: Path) -> list[Group]:
    """All groups that have at least one example, ordered by query and profile id; InputError where there is none."""
    targets: dict[str, HeadTargets] = {}
    for row in read_table(examples, EXAMPLES).to_pylist():
        targets.setdefault(row["pair_id"], {})[row["head"]] = (row["target"], row["weight"])
    members: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in unique_pairs(read_table(pairs, PAIRS)):
        if row["pair_id"] in targets:
            members.setdefault((row["query_id"], row["profile_id"]), []).append(row)
    if not members:
        raise InputError(f"{examples}: no example matches a pair in {pairs}. Both must come from the same corpus.")
    return [
        Group(
            query=rows[0]["query"],
            profile=rows[0]["profile"],
            documents=tuple(row["document"] for row in rows),
            targets=tuple(targets[row["pair_id"]] for row in rows),
        )
        for _, rows in sorted(members.items())
    ]


def unique_pairs(pairs: pa.Table) -> Iterable[dict[str, str]]:
    """The rows of `pairs`, each pair_id once, in order."""
    seen: set[str] = set()
    for row in pairs.to_pylist():
        if row["pair_id"] not in seen:
            seen.add(row["pair_id"])
            yield row


def groups_of_step(num_groups: int, step: int, config: TrainConfig) -> list[int]:
    """Indices of the groups that step `step` (from 0) trains on: shuffled anew in every pass over the data."""
    start = step * config.groups_per_step
    picked = []
    for position in range(start, start + config.groups_per_step):
        epoch, offset = divmod(position, num_groups)
        picked.append(_order(num_groups, config.seed, epoch)[offset])
    return picked


@lru_cache(maxsize=2)
def _order(num_groups: int, seed: int, epoch: int) -> array[int]:
    # Eight bytes a group: 80 MB for ten million.
    order = array("q", range(num_groups))
    random.Random(f"{seed}/order/{epoch}").shuffle(order)
    return order


def draw_documents(group: Group, step: int, config: TrainConfig) -> Group:
    """The group with at most `documents_per_group` of its documents, drawn by (seed, step)."""
    if len(group.documents) <= config.documents_per_group:
        return group
    draw = random.Random(f"{config.seed}/documents/{step}/{group.query}/{group.profile}")
    kept = sorted(draw.sample(range(len(group.documents)), config.documents_per_group))
    return Group(
        query=group.query,
        profile=group.profile,
        documents=tuple(group.documents[index] for index in kept),
        targets=tuple(group.targets[index] for index in kept),
    )


def to_request(group: Group) -> Request:
    """The group's text."""
    return Request(query=group.query, profile=group.profile, documents=group.documents)


def normalisers_of(groups: Sequence[Group], heads: Sequence[Head]) -> Normalisers:
    """Total weights of a whole step; a term without any weight gets 0 and is left out."""
    first_grade = next((head.name for head in heads if head.kind == "grade"), None)
    kinds = {head.name: head.kind for head in heads}
    totals = {"grade": 0.0, "action": 0.0}
    actions = [head.name for head in heads if head.kind == "action"]
    num_ordered = num_orders = 0
    taken = 0.0
    for group in groups:
        for targets in group.targets:
            for name, (target, weight) in targets.items():
                if name in kinds:
                    totals[kinds[name]] += weight
                    taken += target[0] * weight if kinds[name] == "action" else 0.0
        num_ordered += any(first_grade in targets for targets in group.targets)
        num_orders += sum(any(action in targets for targets in group.targets) for action in actions)
    return Normalisers(
        grade=totals["grade"],
        action=totals["action"],
        groups=float(num_ordered),
        orders=float(num_orders),
        taken=taken,
    )


def to_targets(groups: Sequence[Group], heads: Sequence[Head]) -> Targets:
    """The groups' targets as tensors over their N documents, in packed order."""
    grades = [head.name for head in heads if head.kind == "grade"]
    actions = [head.name for head in heads if head.kind == "action"]
    rows = [targets for group in groups for targets in group.targets]
    masked: tuple[list[float], float] = ([1.0] + [0.0] * (NUM_GRADES - 1), 0.0)
    grade = [[row.get(name, masked) for name in grades] for row in rows]
    action = [[row.get(name, ([0.0], 0.0)) for name in actions] for row in rows]
    return Targets(
        grade_probs_NG5=torch.tensor([[cell[0] for cell in row] for row in grade]).view(len(rows), len(grades), -1)
        if grades
        else torch.zeros(len(rows), 0, NUM_GRADES),
        grade_weights_NG=torch.tensor([[cell[1] for cell in row] for row in grade]).view(len(rows), len(grades)),
        action_probs_NA=torch.tensor([[cell[0][0] for cell in row] for row in action]).view(len(rows), len(actions)),
        action_weights_NA=torch.tensor([[cell[1] for cell in row] for row in action]).view(len(rows), len(actions)),
        group_N=torch.tensor([index for index, group in enumerate(groups) for _ in group.documents], dtype=torch.long),
    )
