"""How much a step works on, in words."""

from __future__ import annotations

from preceptor.contracts import parquet_files
from preceptor.recipe import CorporaConfig, MarketConfig, MatchConfig, Recipe, TrainConfig


def corpus_rows(recipe: Recipe) -> str:
    """What the recipe's source holds, or is made to hold."""
    source = recipe.source
    if isinstance(source, MarketConfig):
        num_pairs = source.num_queries * source.documents_per_query
        num_shown = (source.num_requests + source.num_holdout_requests) * source.documents_per_request
        return f"{num_pairs:,} pairs, {num_shown:,} impressions (synthetic)"
    if isinstance(source, CorporaConfig):
        files = [file.source for file in (source.postings, source.profiles) if file is not None]
        return f"{source.num_queries:,} queries of {source.candidates_per_query} candidates from {' and '.join(files)}"
    if not source.data.exists():
        return f"files in {source.data} (not found)"
    import pyarrow.parquet as pq

    num_rows = sum(pq.read_metadata(file).num_rows for file in parquet_files(source.data))
    return f"{num_rows:,} rows in {source.data} (real)"


def training_rows(train: TrainConfig | MatchConfig) -> str:
    """How long a training takes, and on how much at most."""
    if isinstance(train, MatchConfig):
        if not train.tunes:
            return f"a sum of {len(train.signals)} signals"
        num_steps, num_titles = train.rounds * train.num_steps, train.pairs_per_step
        return f"{train.num_folds + 1} adapters of {num_steps:,} steps, {num_titles:,} titles each"
    num_pairs = train.num_steps * train.groups_per_step * train.documents_per_group
    return f"{train.num_steps:,} steps, at most {num_pairs:,} pairs, {train.num_workers} workers"
