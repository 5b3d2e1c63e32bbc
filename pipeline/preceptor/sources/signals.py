"""Signals: what is known of a query and every posting before anybody judges them, each one number.

Shapes: Q queries, N postings, K names of all postings one after the other, H dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from preceptor.contracts import whole_file
from preceptor.recipe import PlainSignal
from preceptor.sources.retrieval import Encoder, embed_texts, top_k

Matrix = npt.NDArray[np.float32]

VECTORS_FILE: Final = "vectors.npz"
"""Where a stage keeps the embeddings of the postings."""

_NUM_NEAR: Final = 8
_MINOR_DIGITS: Final = 3
"""Of an ISCO-08 code: four name a unit group, the first three its minor group."""

_SHARPNESS: Final = 0.05
"""How close to the closest name alone ``names`` is: the temperature of a mean of exponentials."""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The postings: their texts, all their names (each posting's first is its title), the embeddings of both, and the
    unit group of each."""

    keys: tuple[str, ...]
    texts: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]
    texts_NH: Matrix
    names_KH: Matrix

    @cached_property
    def starts(self) -> list[int]:
        """For each posting, where its names start in the K."""
        counts = [len(names) for names in self.names]
        return [0, *np.cumsum(counts)[:-1].tolist()]

    @property
    def titles_NH(self) -> Matrix:
        """The embeddings of the postings' titles."""
        return self.names_KH[self.starts]

    @cached_property
    def near_NH(self) -> Matrix:
        """For each posting the mean embedding of the texts closest to its own."""
        closest, _ = top_k(self.texts_NH, self.texts_NH, _NUM_NEAR + 1)
        found = np.empty_like(self.texts_NH)
        for row, near in enumerate(closest):
            found[row] = self.texts_NH[near[near != row][:_NUM_NEAR]].mean(axis=0)
        return found

    @cached_property
    def group_NH(self) -> Matrix:
        """For each posting the mean embedding of the texts of its unit group."""
        return mean_by(self.groups, self.texts_NH)

    @cached_property
    def minor_group_NH(self) -> Matrix:
        """For each posting the mean embedding of the texts of its minor group."""
        return mean_by([group[:_MINOR_DIGITS] for group in self.groups], self.texts_NH)

    @cached_property
    def words(self) -> tuple[Any, Any]:
        """(vectoriser, TF-IDF weights [N, vocabulary]) of names and texts, words and pairs of words."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectoriser = TfidfVectorizer(stop_words="english", sublinear_tf=True, ngram_range=(1, 2))
        whole = [f"{'. '.join(names)}. {text}" for names, text in zip(self.names, self.texts, strict=True)]
        return vectoriser, vectoriser.fit_transform(whole)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Queries: their texts for retrieval (title and, where there is a profile, description), embeddings of these and
    of what was typed, and the mean embedding of the profile's tasks, nought where it has none."""

    texts: tuple[str, ...]
    texts_QH: Matrix
    titles_QH: Matrix
    tasks_QH: Matrix

    def rows(self, chosen: Sequence[int]) -> Asked:
        """The same for the `chosen` queries only."""
        return Asked(
            texts=tuple(self.texts[index] for index in chosen),
            texts_QH=self.texts_QH[list(chosen)],
            titles_QH=self.titles_QH[list(chosen)],
            tasks_QH=self.tasks_QH[list(chosen)],
        )


def measure(name: PlainSignal, asked: Asked, collection: Collection) -> Matrix:
    """The signal `name` of every query and posting, [Q, N]."""
    return _MEASURES[name](asked, collection)


def soft_names(cosines_QK: Matrix, starts: Sequence[int]) -> Matrix:
    """For each posting, [Q, N], the logarithm of the mean exponential of its names' cosines, scaled as a cosine."""
    counts = np.diff([*starts, cosines_QK.shape[1]])
    summed = np.add.reduceat(np.exp((cosines_QK - 1) / _SHARPNESS), starts, axis=1)
    return np.asarray(1 + _SHARPNESS * np.log(summed / counts), dtype=np.float32)


def best_name(cosines_QK: Matrix, starts: Sequence[int]) -> Matrix:
    """For each posting, [Q, N], the largest cosine of its names."""
    return np.asarray(np.maximum.reduceat(cosines_QK, starts, axis=1), dtype=np.float32)


def mean_by(groups: Sequence[str], vectors_NH: Matrix) -> Matrix:
    """For each row the mean of the rows of its group, [N, H]."""
    _, number_N, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), vectors_NH.shape[1]), dtype=np.float32)
    np.add.at(sums, number_N, vectors_NH)
    return np.asarray((sums / counts[:, None])[number_N], dtype=np.float32)


def best_by(groups: Sequence[str], scores_QN: Matrix) -> Matrix:
    """For each column the largest of the columns of its group, [Q, N]."""
    _, number_N, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    starts = [0, *np.cumsum(counts)[:-1].tolist()]
    ordered = scores_QN[:, np.argsort(number_N, kind="stable")]
    return np.asarray(np.maximum.reduceat(ordered, starts, axis=1)[:, number_N], dtype=np.float32)


def mean_tasks(tasks: Iterable[Sequence[str]], row_of: Mapping[str, int], vectors: Matrix) -> Matrix:
    """For each query the mean embedding of its tasks, [Q, H], nought where it has none; `row_of` maps a text to its
    row in `vectors`."""
    found = [
        vectors[[row_of[task] for task in several]].mean(axis=0) if several else np.zeros(vectors.shape[1])
        for several in tasks
    ]
    return np.asarray(found, dtype=np.float32).reshape(-1, vectors.shape[1])


def embed_collection(
    documents: Sequence[Mapping[str, Any]], encode: Encoder, *, texts_NH: Matrix | None = None
) -> Collection:
    """The DOCUMENTS rows with embeddings of their names, and of their texts where these are not given."""
    row_of, vectors = embed_texts([name for document in documents for name in document["names"]], encode)
    names_KH = vectors[[row_of[name] for document in documents for name in document["names"]]]
    found = encode([document["text"] for document in documents]) if texts_NH is None else texts_NH
    return _collection(documents, texts_NH=found, names_KH=names_KH)


def save_collection(collection: Collection, file: Path) -> None:
    """Write the embeddings of the postings, in half precision: they are computed once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as sink:
        np.savez(sink, texts=collection.texts_NH.astype(np.float16), names=collection.names_KH.astype(np.float16))


def load_collection(documents: Sequence[Mapping[str, Any]], file: Path) -> Collection:
    """The DOCUMENTS rows with the embeddings that `save_collection` wrote of them."""
    with np.load(file) as vectors:
        texts_NH, names_KH = vectors["texts"].astype(np.float32), vectors["names"].astype(np.float32)
    return _collection(documents, texts_NH=texts_NH, names_KH=names_KH)


def _collection(documents: Sequence[Mapping[str, Any]], *, texts_NH: Matrix, names_KH: Matrix) -> Collection:
    return Collection(
        keys=tuple(document["document_key"] for document in documents),
        texts=tuple(document["text"] for document in documents),
        names=tuple(tuple(document["names"]) for document in documents),
        groups=tuple(document["group"] for document in documents),
        texts_NH=texts_NH,
        names_KH=names_KH,
    )


def _words(asked: Asked, collection: Collection) -> Matrix:
    vectoriser, weights = collection.words
    return np.asarray((vectoriser.transform(asked.texts) @ weights.T).toarray(), dtype=np.float32)


_MEASURES: Final[dict[PlainSignal, Callable[[Asked, Collection], Matrix]]] = {
    "text": lambda asked, all_: asked.texts_QH @ all_.texts_NH.T,
    "names": lambda asked, all_: soft_names(asked.texts_QH @ all_.names_KH.T, all_.starts),
    "best_name": lambda asked, all_: best_name(asked.texts_QH @ all_.names_KH.T, all_.starts),
    "title_text": lambda asked, all_: asked.titles_QH @ all_.texts_NH.T,
    "title_names": lambda asked, all_: soft_names(asked.titles_QH @ all_.names_KH.T, all_.starts),
    "words": _words,
    "tasks": lambda asked, all_: asked.tasks_QH @ all_.texts_NH.T,
    "near": lambda asked, all_: asked.texts_QH @ all_.near_NH.T,
    "group": lambda asked, all_: asked.texts_QH @ all_.group_NH.T,
    "best_of_group": lambda asked, all_: best_by(all_.groups, asked.texts_QH @ all_.texts_NH.T),
    "minor_group": lambda asked, all_: asked.texts_QH @ all_.minor_group_NH.T,
}
