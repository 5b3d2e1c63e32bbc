"""An adapter of frozen sentence embeddings, trained on titles against a whole collection of postings.

The encoder is never run again: a step costs matrix products over embeddings that were computed once, so that every
posting stands against every title. Shapes: B titles of a step, N postings, H dimensions.

A posting that no title asks for has no part in training, not even as a negative: to push it down would be to learn
that nobody looks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from preceptor.errors import InputError
from preceptor.recipe import MatchConfig
from preceptor.sources.signals import Matrix

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One title: the row of its embedding, the gain of each posting it asks for by that posting's row, its source."""

    row: int
    gains: Mapping[int, float]
    source: str


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Two residual maps [H, H] of embeddings: x becomes x + x M, at unit length."""

    query_HH: Matrix
    posting_HH: Matrix

    def queries(self, embeddings: Matrix) -> Matrix:
        """Adapted embeddings of queries, at unit length."""
        return _unit(embeddings + embeddings @ self.query_HH)

    def postings(self, embeddings: Matrix) -> Matrix:
        """Adapted embeddings of postings or of their names, at unit length."""
        return _unit(embeddings + embeddings @ self.posting_HH)


def train_adapter(
    lessons: Sequence[Lesson], *, titles_XH: Matrix, texts_NH: Matrix, names_NH: Matrix, config: MatchConfig
) -> tuple[Adapter, list[float]]:
    """(adapter, loss of every step) of `lessons`, in `config.rounds` rounds.

    `titles_XH` are the embeddings that lessons point into, `texts_NH` those of the postings' title and description,
    `names_NH` those of their titles. The loss of a title is the cross-entropy between the gains of the postings it asks
    for, as shares, and the softmax of its cosines / temperature over all asked-for postings: once with their texts and
    once with their names. Raises InputError where there is nothing to learn from.
    """
    import torch
    from torch.nn.functional import normalize

    if not any(lesson.gains for lesson in lessons):
        raise InputError("the adapter has no title to learn from. Give the corpus weak sources or train occupations.")
    chances = lesson_chances(lessons, config)
    # What is never drawn asks for nothing: its postings would be negatives alone.
    lessons, chances = [lesson for lesson, chance in zip(lessons, chances, strict=True) if chance], chances[chances > 0]
    asked = sorted({posting for lesson in lessons for posting in lesson.gains})
    column = {posting: index for index, posting in enumerate(asked)}
    views = [torch.from_numpy(matrix[asked]) for matrix in (texts_NH, names_NH)]
    titles = torch.from_numpy(titles_XH)
    generator = np.random.default_rng(config.seed)
    query_HH, posting_HH = (torch.zeros(titles.shape[1], titles.shape[1], requires_grad=True) for _ in range(2))
    losses: list[float] = []
    for number in range(config.rounds):
        if number:
            adapter = Adapter(query_HH=query_HH.detach().numpy(), posting_HH=posting_HH.detach().numpy())
            hard = misplaced(adapter, lessons, titles_XH=titles_XH, texts_NH=texts_NH[asked], column=column)
            chances = chances * hard
            chances /= chances.sum()
        optimizer = torch.optim.AdamW([query_HH, posting_HH], lr=config.learning_rate, weight_decay=config.weight_decay)
        for step in range(config.num_steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (1 - step / config.num_steps)
            drawn = [lessons[index] for index in generator.choice(len(lessons), size=config.pairs_per_step, p=chances)]
            rows = titles[[lesson.row for lesson in drawn]]
            queries = normalize(rows + rows @ query_HH, dim=-1)
            wanted = torch.from_numpy(_shares(drawn, column))
            loss = torch.stack([_loss(queries, view, posting_HH, wanted, config.temperature) for view in views]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(round(loss.item(), 4))
    return Adapter(query_HH=query_HH.detach().numpy(), posting_HH=posting_HH.detach().numpy()), losses


def lesson_chances(lessons: Sequence[Lesson], config: MatchConfig) -> npt.NDArray[np.float64]:
    """The chance of each lesson to be drawn: its source's share over the lessons of that source; they sum to 1."""
    counts: dict[str, int] = {}
    for lesson in lessons:
        counts[lesson.source] = counts.get(lesson.source, 0) + 1
    shares = {str(source): share for source, share in config.shares.items()}
    chances = np.array([shares.get(lesson.source, 0.0) / counts[lesson.source] for lesson in lessons])
    if not chances.sum():
        known = ", ".join(f"{source} {share}" for source, share in shares.items())
        raise InputError(
            f"no title has a share above 0 (shares: {known}; titles: {counts}). Name a source that is there."
        )
    return chances / chances.sum()


def misplaced(
    adapter: Adapter,
    lessons: Sequence[Lesson],
    *,
    titles_XH: Matrix,
    texts_NH: Matrix,
    column: Mapping[int, int],
) -> npt.NDArray[np.float64]:
    """For each lesson log2(1 + place of its best posting) among all: 1 where it stands first, 11 where about 2000th."""
    postings = adapter.postings(texts_NH)
    weights = np.empty(len(lessons))
    for start in range(0, len(lessons), 512):
        chunk = lessons[start : start + 512]
        cosines = adapter.queries(titles_XH[[lesson.row for lesson in chunk]]) @ postings.T
        for offset, lesson in enumerate(chunk):
            best = max(lesson.gains, key=lambda posting: lesson.gains[posting])
            place = 1 + int((cosines[offset] > cosines[offset, column[best]]).sum())
            weights[start + offset] = np.log2(1 + place)
    return weights


def _loss(queries: Tensor, view: Tensor, posting_HH: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    from torch.nn.functional import log_softmax, normalize

    postings = normalize(view + view @ posting_HH, dim=-1)
    return -(wanted * log_softmax(queries @ postings.T / temperature, dim=-1)).sum(-1).mean()


def _shares(lessons: Sequence[Lesson], column: Mapping[int, int]) -> Matrix:
    wanted = np.zeros((len(lessons), len(column)), dtype=np.float32)
    for row, lesson in enumerate(lessons):
        total = sum(lesson.gains.values())
        for posting, gain in lesson.gains.items():
            wanted[row, column[posting]] = gain / total
    return wanted


def _unit(matrix: Matrix) -> Matrix:
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
