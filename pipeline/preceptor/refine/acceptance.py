"""Whether a candidate gains more than the noise: the same pairs judged before and after, resampled by query.

A gain must show on two sets of queries, neither of which the search has seen, with the lower end of each 95 % interval
above 0. A candidate that changes nothing passes one such test about once in 40, both about once in 1,600.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from preceptor.contracts import NUM_GRADES, OVERALL
from preceptor.evaluation.metrics import Interval, bootstrap, kappa_of
from preceptor.refine.measuring import Judged

Statistic = Literal["kappa", "agreement"]

_GRADES: Final = np.arange(NUM_GRADES)
_COST: Final = (_GRADES[:, None] - _GRADES[None, :]) ** 2

Group = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""One query's counts before and after; what is counted depends on the statistic."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A statistic of one dimension before and after, and the interval of the difference."""

    dimension: str
    before: float
    after: float
    gain: Interval

    def __str__(self) -> str:
        return (
            f"{self.before:.3f} to {self.after:.3f}, gain {self.gain.value:+.3f} "
            f"[{self.gain.low:+.3f}, {self.gain.high:+.3f}]"
        )


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A candidate against the policy as it is, on queries it was not made from: overall, and each dimension."""

    overall: Gain
    dimensions: tuple[Gain, ...]

    @property
    def is_gain(self) -> bool:
        """Whether overall gains more than the noise."""
        return self.overall.gain.low > 0

    @property
    def harmed(self) -> tuple[Gain, ...]:
        """Overall or dimensions that lose more than the noise."""
        return tuple(gain for gain in (self.overall, *self.dimensions) if gain.gain.high < 0)


def measure(
    before: Sequence[Judged], after: Sequence[Judged], *, statistic: Statistic, num: int, seed: int
) -> Measurement:
    """`after` against `before`, the same items in the same order, with paired intervals over `num` resamples."""
    names = [name for name in before[0].replies if any(name in one.item.grades for one in before)]
    gains = {name: _gain(before, after, name, statistic=statistic, num=num, seed=seed) for name in names}
    return Measurement(overall=gains[OVERALL], dimensions=tuple(gains[name] for name in names if name != OVERALL))


def _gain(
    before: Sequence[Judged], after: Sequence[Judged], dimension: str, *, statistic: Statistic, num: int, seed: int
) -> Gain:
    counts, value = _STATISTICS[statistic]
    groups: dict[str, Group] = {}
    for old, new in zip(before, after, strict=True):
        if dimension in old.item.grades:
            zero = np.zeros_like(counts(old, dimension))
            left, right = groups.get(old.item.query_id, (zero, zero))
            groups[old.item.query_id] = (left + counts(old, dimension), right + counts(new, dimension))

    def difference(drawn: Sequence[Group]) -> float:
        left, right = (np.sum([group[side] for group in drawn], axis=0) for side in (0, 1))
        return value(right) - value(left)

    whole = [np.sum([group[side] for group in groups.values()], axis=0) for side in (0, 1)]
    return Gain(
        dimension=dimension,
        before=value(whole[0]),
        after=value(whole[1]),
        gain=bootstrap(difference, list(groups.values()), num=num, seed=seed),
    )


def _confusion(judged: Judged, dimension: str) -> npt.NDArray[np.float64]:
    counts = np.zeros((NUM_GRADES, NUM_GRADES))
    counts[judged.item.grades[dimension], judged.grade(dimension)] = 1
    return counts


def _kappa(counts: npt.NDArray[np.float64]) -> float:
    return float(kappa_of(counts, _COST))


def _agreed(judged: Judged, dimension: str) -> npt.NDArray[np.float64]:
    return np.array([judged.agreement(dimension), 1.0])


def _mean(counts: npt.NDArray[np.float64]) -> float:
    return float(counts[0] / counts[1])


_STATISTICS: Final[
    dict[
        Statistic,
        tuple[Callable[[Judged, str], npt.NDArray[np.float64]], Callable[[npt.NDArray[np.float64]], float]],
    ]
] = {"kappa": (_confusion, _kappa), "agreement": (_agreed, _mean)}
