"""Signals of a matching teacher: those that its source computes and those of its adapter.

Shapes: Q queries, N postings, H dimensions, S signals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, cast

import numpy as np

from preceptor.recipe import PlainSignal, Signal, TunedSignal
from preceptor.sources.signals import Asked, Collection, Matrix, measure, soft_names
from preceptor.teachers.match_adapter import Adapter


def signals_of(
    asked: Asked, collection: Collection, adapter: Adapter | None, names: Sequence[Signal], *, chunk: int = 128
) -> Matrix:
    """The signals `names` of every query and posting, [Q, N, S]; `adapter` may be None where none is tuned."""
    found = np.empty((len(asked.texts), len(collection.keys), len(names)), dtype=np.float32)
    adapted = None if adapter is None else _Adapted(adapter, collection)
    for start in range(0, len(asked.texts), chunk):
        part = asked.rows(range(start, min(start + chunk, len(asked.texts))))
        for index, name in enumerate(names):
            found[start : start + chunk, :, index] = _signal(name, part, collection, adapted)
    return found


class _Adapted:
    """A collection as an adapter sees it."""

    def __init__(self, adapter: Adapter, collection: Collection) -> None:
        self.adapter = adapter
        self.starts = collection.starts
        self.texts_NH = adapter.postings(collection.texts_NH)
        self.names_KH = adapter.postings(collection.names_KH)


def _signal(name: Signal, asked: Asked, collection: Collection, adapted: _Adapted | None) -> Matrix:
    if name not in _TUNED:
        return measure(cast(PlainSignal, name), asked, collection)
    assert adapted is not None, "a tuned signal needs an adapter"
    return _TUNED[name](asked, adapted)


def _tuned_text(asked: Asked, adapted: _Adapted) -> Matrix:
    return np.asarray(adapted.adapter.queries(asked.texts_QH) @ adapted.texts_NH.T, dtype=np.float32)


def _tuned_names(asked: Asked, adapted: _Adapted) -> Matrix:
    return soft_names(adapted.adapter.queries(asked.titles_QH) @ adapted.names_KH.T, adapted.starts)


_TUNED: Final[dict[TunedSignal, Callable[[Asked, _Adapted], Matrix]]] = {
    "tuned_text": _tuned_text,
    "tuned_names": _tuned_names,
}
