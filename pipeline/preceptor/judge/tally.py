"""What labelling came to, of a block, a shard or a stage: counts that add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from preceptor.contracts import NUM_GRADES, OVERALL
from preceptor.judge.replies import Usage, is_passing


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Rows by outcome. `label_mass` is a sum over labels; `num_asked` are the rows put to the judge, retries apart.

    `asked` and `reused` are the rows put to the judge and those taken over, by dimension.
    """

    num_pairs: int = 0
    num_asked: int = 0
    num_reused: int = 0
    num_labels: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    label_mass: float = 0.0
    num_one_hot: int = 0
    overall_grades: tuple[int, ...] = (0,) * NUM_GRADES
    usage: Usage = field(default_factory=Usage)
    asked: Mapping[str, int] = field(default_factory=dict)
    reused: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            num_pairs=self.num_pairs + other.num_pairs,
            num_asked=self.num_asked + other.num_asked,
            num_reused=self.num_reused + other.num_reused,
            num_labels=self.num_labels + other.num_labels,
            rejected=dict(Counter(self.rejected) + Counter(other.rejected)),
            label_mass=self.label_mass + other.label_mass,
            num_one_hot=self.num_one_hot + other.num_one_hot,
            overall_grades=tuple(a + b for a, b in zip(self.overall_grades, other.overall_grades, strict=True)),
            usage=self.usage + other.usage,
            asked=dict(Counter(self.asked) + Counter(other.asked)),
            reused=dict(Counter(self.reused) + Counter(other.reused)),
        )

    @property
    def num_rejected(self) -> int:
        """Rows that hold no grade."""
        return sum(self.rejected.values())

    @property
    def may_improve(self) -> bool:
        """Whether some row was rejected for a reason that another try may cure."""
        return any(is_passing(reason) for reason in self.rejected)

    def to_json(self) -> dict[str, Any]:
        """The tally as plain JSON types."""
        return asdict(self)


def tally_of(content: Mapping[str, Any]) -> Tally:
    """The tally that `content`, made by `Tally.to_json`, stands for."""
    usage, grades = Usage(**content["usage"]), tuple(content["overall_grades"])
    return Tally(**{**content, "usage": usage, "overall_grades": grades})


def usage_metrics(tally: Tally) -> dict[str, float]:
    """What the answers took, for a record's metrics; nothing where no token was read."""
    usage = tally.usage
    if not usage.num_prompt_tokens:
        return {}
    return {
        "num_prompt_tokens": usage.num_prompt_tokens,
        "num_cached_tokens": usage.num_cached_tokens,
        "num_generated_tokens": usage.num_generated_tokens,
        "prefix_cache_hit_rate": usage.num_cached_tokens / usage.num_prompt_tokens,
        "engine_busy_s": usage.busy_s,
        "cost_usd": usage.cost_usd,
    }


def tally_rows(
    labels: Sequence[Mapping[str, Any]],
    rejects: Iterable[Mapping[str, Any]],
    *,
    num_pairs: int,
    asked: Mapping[str, int],
    reused: Mapping[str, int],
    usage: Usage,
) -> Tally:
    """The tally of LABELS and REJECTS rows; by dimension, `asked` were put to the judge and `reused` taken over."""
    overall = Counter(row["grade"] for row in labels if row["dimension"] == OVERALL)
    return Tally(
        num_pairs=num_pairs,
        num_asked=sum(asked.values()),
        num_reused=sum(reused.values()),
        num_labels=len(labels),
        rejected=dict(Counter(row["reason"] for row in rejects)),
        label_mass=sum(row["label_mass"] for row in labels),
        num_one_hot=sum(max(row["probs"]) == 1.0 for row in labels),
        overall_grades=tuple(overall.get(grade, 0) for grade in range(NUM_GRADES)),
        usage=usage,
        asked=dict(asked),
        reused=dict(reused),
    )
