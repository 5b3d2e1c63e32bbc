"""What students learn from and are measured on: a run's own pool and holdouts, or those of wider markets, where a
student has more to learn from and an interval tells one per cent from none.

A wider market's pairs, grades and clicks are constructed by the same synthetic market, from seeds of their own. A
query's text has the same split in every market (contracts.split_of), so no held-out one was ever trained on.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from bench.peers.held_out import sealed_by
from preceptor.errors import InputError
from preceptor.golden.census import refresh
from preceptor.market import market
from preceptor.market.golden import write_golden
from preceptor.policy import load_policy
from preceptor.ranker.score_stage import ScoreConfig, score
from preceptor.recipe import LinearConfig, MarketConfig, PairSet, Recipe, TeacherConfig
from preceptor.record import Record, read_record
from preceptor.teachers.linear_stage import LinearScores, score_linear

SEED: Final = 4052
POOL_SEED: Final = 4053
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


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A corpus with train pairs, and what each teacher says of them."""

    name: str
    corpus: Record
    scores: Mapping[str, Record]


def own_pool(run: Run) -> Pool:
    """The run's own pool."""
    scores = {teacher: run.record(f"{teacher}_scores") for teacher in ("relevance", "engagement")}
    return Pool(name="", corpus=run.corpus, scores=scores)


def wide_pool(run: Run, *, num_queries: int, work: Path) -> Pool:
    """The pool of a market of `num_queries`, and what the run's teachers say of it; Ray must be running."""
    source = require_market(run.recipe)
    place = _place(work, "pool", run.recipe, num_queries=num_queries)
    config = replace(source, num_queries=num_queries, num_requests=0, num_holdout_requests=0, seed=POOL_SEED)
    corpus = market(config, policy=run.recipe.policy, out=place / "corpus" / "v1")
    relevance, engagement = said_by_teachers(run, corpus, graded="pool", clicked="pool", place=place)
    return Pool(name=place.name, corpus=corpus, scores={"relevance": relevance, "engagement": engagement})


def own_ground(run: Run) -> Ground:
    """The run's own holdouts, as its gate knows them."""
    return Ground(
        name="",
        corpus=run.corpus,
        relevance=run.record("relevance_scores"),
        engagement=run.record("engagement_scores"),
        policy=sealed_by(run.recipe),
    )


def wide_ground(run: Run, *, num_queries: int, work: Path) -> Ground:
    """A market with about `num_queries` held out, and what the run's teachers say of it; Ray must be running."""
    corpus, policy = wide_market(run.recipe, num_queries=num_queries, work=work)
    place = corpus.path.parent.parent
    relevance, engagement = said_by_teachers(run, corpus, graded="golden holdout", clicked="shown holdout", place=place)
    return Ground(name=place.name, corpus=corpus, relevance=relevance, engagement=engagement, policy=policy)


def said_by_teachers(
    run: Run, corpus: Record, *, graded: PairSet, clicked: PairSet, place: Path
) -> tuple[Record, Record]:
    """(relevance, engagement): the logits of the run's teachers, each on a set of `corpus`' pairs."""
    relevance, engagement = run.recipe.relevance, run.recipe.engagement
    assert isinstance(relevance, TeacherConfig) and engagement is not None
    teacher = run.record("engagement_teacher")
    out = place / "engagement_scores" / run.version
    if isinstance(engagement, LinearConfig):
        of_clicks = LinearScores(system="engagement", sets=(clicked,))
        clicks = score_linear(of_clicks, corpus=corpus, model=teacher, out=out)
    else:
        of_pairs = ScoreConfig(system="engagement", sets=(clicked,), scoring=engagement.scoring)
        clicks = score(of_pairs, corpus=corpus, model=teacher, out=out)
    of_grades = ScoreConfig(system="relevance", sets=(graded,), scoring=relevance.scoring)
    out = place / "relevance_scores" / run.version
    return score(of_grades, corpus=corpus, model=run.record("relevance_teacher"), out=out), clicks


def wide_market(recipe: Recipe, *, num_queries: int, work: Path) -> tuple[Record, Path]:
    """(corpus, policy): a market with about `num_queries` held out, and the folder that sealed its golden.

    Both lie under `work`; what is finished there is not done again. InputError for a recipe of another source.
    """
    require_market(recipe)
    place = _place(work, "wide", recipe, num_queries=num_queries)
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


def _place(work: Path, kind: str, recipe: Recipe, *, num_queries: int) -> Path:
    """The folder of a wider market: another under another policy, which grades it otherwise."""
    return work / f"{kind}_{num_queries}_{load_policy(recipe.policy).version.rpartition('+')[2]}"


def require_market(recipe: Recipe) -> MarketConfig:
    """The recipe's market; InputError for a recipe of another source."""
    if not isinstance(recipe.source, MarketConfig):
        raise InputError(f"recipe {recipe.name}: only the synthetic market can be made wider. Leave --queries out.")
    return recipe.source
