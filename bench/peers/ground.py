"""What students are measured on: a run's own holdouts, or a wider market's, where an interval tells one per cent from
none.

A wider market's pairs, grades and clicks are constructed by the same synthetic market, from seeds of their own. A
query's text has the same split in every market (contracts.split_of), so no held-out one was ever trained on.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from preceptor.errors import InputError
from preceptor.golden.census import refresh
from preceptor.market import market
from preceptor.market.golden import write_golden
from preceptor.policy import load_policy
from preceptor.ranker.score_stage import ScoreConfig, score
from preceptor.recipe import LinearConfig, MarketConfig, PairSet, Recipe, ScoringConfig
from preceptor.record import Record, read_record
from preceptor.teachers.linear_stage import LinearScores, score_linear

SEED: Final = 4052
"""Neither the pool's nor the golden set's of any shipped recipe."""

_HELD_OUT: Final = 0.2
"""Of the queries of a market."""
_DOCUMENTS: Final = 10
_REQUESTS_PER_QUERY: Final = 20
"""Of held-out traffic: clicks are rare, and an AUC needs many."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a finished run has for a student to learn from and to be measured on."""

    recipe: Recipe
    root: Path
    version: str

    def record(self, stage: str) -> Record:
        """The record of a finished stage of the run."""
        found = read_record(self.root / stage / self.version)
        if found is None:
            raise InputError(f"{self.root}: no finished {stage} of version {self.version}. Run its recipe first.")
        return found

    @cached_property
    def corpus(self) -> Record:
        return self.record("corpus")


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A corpus with holdouts, what the teachers say of them, and the folder that sealed its golden."""

    name: str
    corpus: Record
    relevance: Record
    engagement: Record
    policy: Path | None


def own_ground(run: Run) -> Ground:
    """The run's own holdouts, as its gate knows them."""
    return Ground(
        name="",
        corpus=run.corpus,
        relevance=run.record("relevance_scores"),
        engagement=run.record("engagement_scores"),
        policy=run.recipe.policy if isinstance(run.recipe.source, MarketConfig) else None,
    )


def wide_ground(run: Run, *, num_queries: int, work: Path) -> Ground:
    """A market with about `num_queries` held out, and what the run's teachers say of it; Ray must be running."""
    corpus, policy = wide_market(run.recipe, num_queries=num_queries, work=work)
    relevance, engagement = run.recipe.relevance, run.recipe.engagement
    assert relevance is not None and engagement is not None
    golden: tuple[PairSet, ...] = ("golden holdout",)
    shown: tuple[PairSet, ...] = ("shown holdout",)
    place = corpus.path.parent.parent
    scoring = getattr(relevance, "scoring", ScoringConfig())
    graded = ScoreConfig(system="relevance", sets=golden, scoring=scoring)
    teacher = run.record("engagement_teacher")
    out = place / "engagement_scores" / run.version
    if isinstance(engagement, LinearConfig):
        clicked = score_linear(LinearScores(system="engagement", sets=shown), corpus=corpus, model=teacher, out=out)
    else:
        wanted = ScoreConfig(system="engagement", sets=shown, scoring=engagement.scoring)
        clicked = score(wanted, corpus=corpus, model=teacher, out=out)
    return Ground(
        name=place.name,
        corpus=corpus,
        relevance=score(
            graded, corpus=corpus, model=run.record("relevance_teacher"), out=place / "relevance_scores" / run.version
        ),
        engagement=clicked,
        policy=policy,
    )


def wide_market(recipe: Recipe, *, num_queries: int, work: Path) -> tuple[Record, Path]:
    """(corpus, policy): a market with about `num_queries` held out, and the folder that sealed its golden.

    Both lie under `work`; what is finished there is not done again. InputError for a recipe of another source.
    """
    if not isinstance(recipe.source, MarketConfig):
        raise InputError(f"recipe {recipe.name}: only the synthetic market can be made wider. Leave --queries out.")
    place = work / f"wide_{num_queries}"
    corpus, policy = place / "corpus" / "v1", place / "policy"
    drawn = round(num_queries / _HELD_OUT)
    if read_record(corpus) is None:
        shutil.rmtree(policy, ignore_errors=True)
        shutil.copytree(recipe.policy, policy)
        # Only the held-out pairs are read: a document for each query of the other splits will do.
        write_golden(policy, num_queries=drawn, train_documents=1, calibration_documents=1, seed=SEED)
        refresh(load_policy(policy))
    config = MarketConfig(
        num_queries=drawn,
        documents_per_query=_DOCUMENTS,
        num_requests=0,
        num_holdout_requests=num_queries * _REQUESTS_PER_QUERY,
        documents_per_request=_DOCUMENTS,
        seed=SEED,
    )
    return market(config, policy=policy, out=corpus), policy
