"""How the overall grade is distributed where each dimension's grade is, by the rubric's own rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from preceptor.contracts import NUM_GRADES

if TYPE_CHECKING:
    from preceptor.policy import Rubric


@dataclass(frozen=True, kw_only=True, eq=False)
class _Walk:
    """The dimensions taken one by one. A state is what the rule still needs to know of those behind: their weighted sum
    and the lowest cap. `steps[d][state, grade]` is the state after dimension d; `overall[state]` the grade at the end.
    """

    steps: tuple[npt.NDArray[np.int64], ...]
    overall: npt.NDArray[np.int64]


def overall_probs(rubric: Rubric, probs: Mapping[str, Sequence[float]]) -> npt.NDArray[np.float64]:
    """The probability of each overall grade, shape (5,), where the dimensions' grades are independent with `probs`.

    Exact: the sum over all 5^D combinations of grades, with those that the rule cannot tell apart taken together. Nine
    dimensions with small whole weights have at most 365 states where they have 1,953,125 combinations.
    """
    walk = _walk(rubric)
    mass: npt.NDArray[Any] = np.ones(1)
    for name, step in zip(rubric.names, walk.steps, strict=True):
        moved = np.multiply.outer(mass, np.asarray(probs[name], dtype=np.float64))
        mass = np.bincount(step.ravel(), weights=moved.ravel())
    found: npt.NDArray[Any] = np.bincount(walk.overall, weights=mass, minlength=NUM_GRADES)
    return found


@lru_cache(maxsize=8)
def _walk(rubric: Rubric) -> _Walk:
    states = [(0, NUM_GRADES - 1)]
    steps = []
    for name in rubric.names:
        found: dict[tuple[int, int], int] = {}
        step = np.empty((len(states), NUM_GRADES), dtype=np.int64)
        for index, (weighted, cap) in enumerate(states):
            for grade in range(NUM_GRADES):
                after = (weighted + rubric.weighted({name: grade}), min(cap, rubric.cap(name, grade)))
                step[index, grade] = found.setdefault(after, len(found))
        steps.append(step)
        states = list(found)
    overall = np.array([min(rubric.rounded(weighted), cap) for weighted, cap in states])
    return _Walk(steps=tuple(steps), overall=overall)
