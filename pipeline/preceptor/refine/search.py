"""GEPA over a policy's prompt texts: it proposes, tries on a few pairs, and keeps what is good on some query.

The library's state is not kept. Everything it draws comes from the seed and the number of the iteration, so that a
search that is run again takes the same way, through answers that are in the ledger, to where it was killed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import gepa
from gepa.core.adapter import EvaluationBatch
from gepa.strategies.acceptance import StrictImprovementAcceptance
from gepa.strategies.candidate_selector import ParetoCandidateSelector
from gepa.strategies.instruction_proposal import InstructionProposalSignature

from preceptor.errors import PreceptorError, StageFailed
from preceptor.recipe import RefineConfig
from preceptor.refine.candidate import Texts, candidate_id, cleaned, problem_of
from preceptor.refine.candidates import Candidate, Journal, Verdict
from preceptor.refine.feedback import cases, template_of
from preceptor.refine.measuring import BudgetSpent, Judged, Measurer, Spend
from preceptor.refine.sample import Item

MAX_UNUSABLE: Final = 5
"""So many proposals in a row without a new text to try end a search: the reflection model has no more to say."""

_IDLE_SHARE: Final = 4
"""Iterations for each proposal allowed: some show no disagreement and cost nothing, and must not go on for ever."""

_FENCE: Final = "```"

Batch = EvaluationBatch[Judged, None]


@dataclass(kw_only=True)
class Searcher:
    """GEPA's adapter, its acceptance criterion and its stop condition: one search's view of judge and journal."""

    measurer: Measurer
    journal: Journal
    items: Sequence[Item]
    max_proposals: int
    fault: PreceptorError | None = None
    is_spent: bool = False
    num_unusable: int = 0
    _parent: dict[str, int] = field(default_factory=dict)

    def evaluate(self, batch: list[Item], candidate: dict[str, str], capture_traces: bool = False) -> Batch:
        """The agreement of each item; raises BudgetSpent or StageFailed, which end the search."""
        judged = self.measurer.judged(candidate, batch)
        scores = [one.score for one in judged]
        return EvaluationBatch(
            outputs=[None] * len(judged), scores=scores, trajectories=judged if capture_traces else None
        )

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Batch, components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The cases that golden and the judge differ on, for each component."""
        found = self._cases(eval_batch.trajectories or [])
        return {component: found for component in components_to_update}

    def propose_new_texts(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        """A new text for the component; nothing where the model gave none that could be used.

        GEPA would only log an error here: it is kept, and the stop condition ends the search.
        """
        if self.fault is not None or self.is_spent:
            return {}
        component = components_to_update[0]
        if not reflective_dataset.get(component):
            return {}
        try:
            return self._proposed(candidate, reflective_dataset[component], component)
        except PreceptorError as error:
            self.fault = error
        except BudgetSpent:
            self.is_spent = True
        return {}

    def should_accept(self, proposal: Any, state: Any) -> bool:
        """Whether a proposal gains on its minibatch, as GEPA has it, after writing down what it scored there."""
        before, after = proposal.subsample_scores_before, proposal.subsample_scores_after
        accepted = StrictImprovementAcceptance().should_accept(proposal, state)
        row = self.journal.of(proposal.candidate)
        if row is not None:
            self.journal.update(
                row.number,
                minibatch=(sum(before) / len(before), sum(after) / len(after)),
                verdict=Verdict.OPEN if accepted else Verdict.MINIBATCH,
                spend=self.spend(row),
            )
        return accepted

    def on_valset_evaluated(self, event: Mapping[str, Any]) -> None:
        """Writes down what a candidate scored on all that it may be optimised on."""
        row = self.journal.of(event["candidate"])
        if row is not None:
            self.journal.update(row.number, score=event["average_score"], spend=self.spend(row))

    def is_over(self, gepa_state: Any) -> bool:
        """Whether the search is over."""
        num_proposals = self.measurer.spent.num_proposals
        is_done = num_proposals >= self.max_proposals or gepa_state.i >= _IDLE_SHARE * self.max_proposals
        return self.fault is not None or self.is_spent or is_done

    def has_cases(self, texts: Texts) -> bool:
        """Whether golden and a candidate judged on all items differ on one of them."""
        return bool(self._cases(self.measurer.judged(texts, self.items)))

    def spend(self, row: Candidate) -> Spend:
        """What the candidate of `row` took so far."""
        return self.measurer.spent_by.get(row.id, Spend())

    def _cases(self, judged: Sequence[Judged]) -> list[dict[str, Any]]:
        return cases(self.measurer.policy, judged, dimensions=self.measurer.dimensions)

    def _proposed(self, texts: Texts, records: Sequence[Mapping[str, Any]], component: str) -> dict[str, str]:
        self.measurer.check(0)
        prompt = InstructionProposalSignature.prompt_renderer(
            {
                "current_instruction_doc": texts[component],
                "dataset_with_feedback": records,
                "prompt_template": template_of(component, self.measurer.policy),
            }
        )
        answer = self.measurer.asker.reflection_on(str(prompt))
        said = answer.raw or ""
        text = cleaned(component, InstructionProposalSignature.output_extractor(said.strip())["new_instruction"])
        proposed = {**texts, component: text}
        before = self.journal.of(proposed)
        if said.count(_FENCE) < 2:
            problem: str | None = f"no text between backticks: '{' '.join(said.split())[:80]}'"
        elif before is not None:
            problem = f"the same as candidate {before.number}"
        else:
            problem = problem_of(self.measurer.policy, proposed, component, seen=self.items)
        took = Spend(num_proposals=1, usage=answer.usage)
        # What says the same as another candidate is a row of its own, and so is its cost.
        self.measurer.charge(f"unusable {len(self.journal.rows)}" if problem else candidate_id(proposed), took)
        parent = self.journal.of(texts)
        self.journal.add(
            parent=None if parent is None else parent.number,
            component=component,
            texts=proposed,
            verdict=Verdict.UNUSABLE if problem else Verdict.OPEN,
            reason=problem or "",
            spend=took,
        )
        self._count(problem)
        return {} if problem else {component: text}

    def _count(self, problem: str | None) -> None:
        self.num_unusable = self.num_unusable + 1 if problem else 0
        if self.num_unusable < MAX_UNUSABLE:
            return
        if any(row.component and row.verdict is not Verdict.UNUSABLE for row in self.journal.rows):
            self.is_spent = True
            return
        raise StageFailed(
            f"{self.measurer.asker.reflection.name}: its first {MAX_UNUSABLE} proposals could not be used; the last "
            f"{problem}. The policy is as it was: name another --reflect-model."
        )


@dataclass(frozen=True, kw_only=True)
class Draws:
    """GEPA's choices of parent and minibatch, from the seed and the iteration alone.

    `has_cases` says whether golden and a candidate still differ on some pair.
    """

    seed: int
    num: int
    has_cases: Callable[[Texts], bool]

    def select_candidate_idx(self, state: Any) -> int:
        """A candidate of the Pareto front, by how many pairs it is the best on.

        One that differs from golden nowhere gives reflection nothing to see, and where it is overfitted it would keep
        all others from being tried: then the best of the others.
        """
        rng = random.Random(f"{self.seed}/{state.i}")
        chosen = ParetoCandidateSelector(rng=rng).select_candidate_idx(state)
        if self.has_cases(state.program_candidates[chosen]):
            return chosen
        scores = state.program_full_scores_val_set
        others = [number for number, texts in enumerate(state.program_candidates) if self.has_cases(texts)]
        return max(others, key=lambda number: (scores[number], -number), default=chosen)

    def next_minibatch_ids(self, loader: Any, state: Any) -> list[int]:
        """Half of the pairs from those that the parent agrees least on, the others from all."""
        rng = random.Random(f"{self.seed}/pairs/{state.i}")
        scores = state.prog_candidate_val_subscores[self.select_candidate_idx(state)]
        ids = sorted(loader.all_ids(), key=lambda number: (scores.get(number, 0.0), number))
        worst = rng.sample(ids[: max(len(ids) // 3, 1)], min((self.num + 1) // 2, max(len(ids) // 3, 1)))
        others = [number for number in ids if number not in worst]
        return [*worst, *rng.sample(others, min(self.num - len(worst), len(others)))]


@dataclass(frozen=True, kw_only=True)
class Log:
    """GEPA's log, in a file."""

    sink: IO[str]

    def log(self, message: str) -> None:
        """Writes `message`."""
        self.sink.write(f"{message}\n")
        self.sink.flush()


def search(config: RefineConfig, seed: Texts, items: Sequence[Item], *, searcher: Searcher, log: Path) -> None:
    """Fills the searcher's journal with candidates made from `seed` until the budget is spent.

    Raises StageFailed where a model cannot be asked or does not propose.
    """
    draws = Draws(seed=config.seed, num=min(config.minibatch, len(items)), has_cases=searcher.has_cases)
    with log.open("w", encoding="utf-8") as sink:
        try:
            gepa.optimize(
                seed_candidate=dict(seed),
                trainset=list(items),
                valset=list(items),
                adapter=searcher,  # type: ignore[arg-type]
                candidate_selection_strategy=draws,
                batch_sampler=draws,
                acceptance_criterion=searcher,
                stop_callbacks=[searcher.is_over],
                callbacks=[searcher],  # type: ignore[list-item]
                logger=Log(sink=sink),
                track_best_outputs=False,
                seed=config.seed,
            )
        except BudgetSpent:
            searcher.is_spent = True
    if searcher.fault is not None:
        raise searcher.fault
