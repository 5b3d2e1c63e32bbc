"""A candidate judged on golden pairs: what it answered, how well that agrees, and what it took of the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from preceptor.contracts import NUM_GRADES
from preceptor.errors import RejectCeilingError
from preceptor.judge.completions import Verdict, reply_of
from preceptor.judge.replies import Reply, Usage, with_overall
from preceptor.policy import Policy
from preceptor.recipe import Budget
from preceptor.refine.asking import Asker, tokens_of
from preceptor.refine.candidate import Texts, candidate_id, policy_with
from preceptor.refine.sample import Item

_FARTHEST: Final = NUM_GRADES - 1


class BudgetSpent(Exception):
    """The next step would pass the budget; ends a search and never reaches a user."""


@dataclass(frozen=True, kw_only=True)
class Spend:
    """What something took."""

    num_metric_calls: int = 0
    num_proposals: int = 0
    usage: Usage = field(default_factory=Usage)

    @property
    def num_tokens(self) -> int:
        """Tokens read and written."""
        return tokens_of(self.usage)

    def __add__(self, other: Spend) -> Spend:
        return Spend(
            num_metric_calls=self.num_metric_calls + other.num_metric_calls,
            num_proposals=self.num_proposals + other.num_proposals,
            usage=self.usage + other.usage,
        )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the judge said of an item by dimension, 'overall' included, and how well it agrees with golden, 0 to 1."""

    item: Item
    replies: Mapping[str, Reply]

    @property
    def score(self) -> float:
        """The mean agreement over the dimensions that golden grades; 0 for a reply without a grade."""
        graded = [name for name in self.replies if name in self.item.grades]
        return sum(self.agreement(name) for name in graded) / len(graded) if graded else 0.0

    def agreement(self, dimension: str) -> float:
        """1 less the expected squared distance from golden's grade, over 16."""
        probs = self.replies[dimension].probs
        if probs is None:
            return 0.0
        truth = self.item.grades[dimension]
        return 1 - sum(prob * (grade - truth) ** 2 for grade, prob in enumerate(probs)) / _FARTHEST**2

    def grade(self, dimension: str) -> int:
        """The most probable grade; the one farthest from golden's where there is none, so that silence is no gain."""
        probs = self.replies[dimension].probs
        if probs is None:
            return _FARTHEST if self.item.grades[dimension] < _FARTHEST / 2 else 0
        return max(range(NUM_GRADES), key=probs.__getitem__)


@dataclass(kw_only=True)
class Measurer:
    """Judges items with a candidate's prompts and counts what that takes, by candidate.

    What an earlier run asked counts as if it were asked now: a budget is for the whole search. `reserve` metric calls
    are left for the test at its end. `called` is what all metric calls took, without reflection.
    """

    policy: Policy
    dimensions: tuple[str, ...]
    asker: Asker
    budget: Budget
    reserve: int = 0
    spent_by: dict[str, Spend] = field(default_factory=dict)
    called: Spend = field(default_factory=Spend)
    _known: dict[tuple[str, str], Judged] = field(default_factory=dict)

    @property
    def spent(self) -> Spend:
        """By all candidates together."""
        return sum(self.spent_by.values(), start=Spend())

    def judged(self, texts: Texts, items: Sequence[Item]) -> list[Judged]:
        """Each of `items` judged with the prompts that say `texts`.

        Raises BudgetSpent, before anything is asked, where the items would not fit.
        """
        candidate = candidate_id(texts)
        fresh = list({item.pair_id: item for item in items if (candidate, item.pair_id) not in self._known}.values())
        self.check(len(fresh))
        rows = [(item.pair, name) for item in fresh for name in self.dimensions]
        verdicts = self.asker.verdicts(policy_with(self.policy, texts), rows)
        usage = sum((verdict.usage for verdict in verdicts), start=Usage())
        took = Spend(num_metric_calls=len(fresh), usage=usage)
        self.called += took
        self.charge(candidate, took)
        for number, item in enumerate(fresh):
            told = verdicts[number * len(self.dimensions) : (number + 1) * len(self.dimensions)]
            self._known[candidate, item.pair_id] = self._judged(item, told)
        return [self._known[candidate, item.pair_id] for item in items]

    def check(self, num_calls: int) -> None:
        """Nothing, or BudgetSpent where `num_calls` more metric calls and the reserve pass a limit.

        What they will take in tokens and money is reckoned from what a call has taken so far.
        """
        spent, budget = self.spent, self.budget
        calls, called = num_calls + self.reserve, self.called
        if budget.max_metric_calls is not None and spent.num_metric_calls + calls > budget.max_metric_calls:
            raise BudgetSpent
        share = calls / called.num_metric_calls if called.num_metric_calls else 0.0
        if budget.max_tokens is not None and spent.num_tokens + share * called.num_tokens > budget.max_tokens:
            raise BudgetSpent
        if budget.max_usd is not None and spent.usage.cost_usd + share * called.usage.cost_usd > budget.max_usd:
            raise BudgetSpent

    def charge(self, candidate: str, spend: Spend) -> None:
        """Count `spend` against `candidate`."""
        self.spent_by[candidate] = self.spent_by.get(candidate, Spend()) + spend

    def all_judged(self, texts: Texts) -> list[Judged]:
        """Everything the candidate was judged on so far."""
        candidate = candidate_id(texts)
        return [judged for (known, _), judged in self._known.items() if known == candidate]

    def _judged(self, item: Item, told: Sequence[Verdict]) -> Judged:
        replies = [reply_of(item.pair_id, name, verdict) for name, verdict in zip(self.dimensions, told, strict=True)]
        # Instructions and precedents do not aggregate: one rubric for all candidates is prepared once.
        rubric = replace(self.policy.rubric, instructions="", overall_question="", shown=())
        return Judged(item=item, replies={reply.dimension: reply for reply in with_overall(rubric, replies)})


def refuse_prose(
    judged: Sequence[Judged], dimensions: Sequence[str], *, judge_id: str, max_reject_share: float
) -> None:
    """Nothing, or RejectCeilingError where more answers on `dimensions` than `max_reject_share` hold no grade."""
    replies = [one.replies[name] for one in judged for name in dimensions]
    rejected = [reply for reply in replies if reply.probs is None]
    if len(rejected) <= max_reject_share * len(replies):
        return
    shown = " ".join((rejected[0].raw or rejected[0].reason or "").split())[:80]
    raise RejectCeilingError(
        f"{judge_id}: {len(rejected)} of {len(replies)} answers to the policy as it is hold no grade, at most "
        f"{max_reject_share:.0%} may; the first: '{shown}'. Nothing was changed: name a model that answers with a "
        "digit, or let it give reasons first (--rationale-tokens)."
    )
