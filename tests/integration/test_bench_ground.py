"""The wider market that benches measure on: as many held-out queries as asked for, none of them a query of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.peers.ground import wide_market
from preceptor.contracts import GOLDEN, IMPRESSIONS, read_table
from preceptor.errors import InputError
from preceptor.golden.opener import open_holdout
from preceptor.market import generate_pairs
from preceptor.policy import load_golden, load_policy
from preceptor.recipe import HeadlinesConfig, MarketConfig
from preceptor.recipes import demo

pytestmark = pytest.mark.integration


@pytest.mark.usefixtures("local_ray")
def test_a_wide_market_holds_out_what_no_run_was_trained_on(tmp_path: Path) -> None:
    recipe = demo()
    assert isinstance(recipe.source, MarketConfig)

    corpus, policy = wide_market(recipe, num_queries=60, work=tmp_path)

    sealed = open_holdout(corpus.path / "golden", policy=policy, log=tmp_path / "openings.jsonl", why="a test")
    golden = set(sealed["query_id"].to_pylist())
    assert 40 < len(golden) < 80
    shown = read_table(corpus.path / "impressions", IMPRESSIONS)
    assert set(shown["split"].to_pylist()) == {"holdout"}
    assert len(set(shown["request_id"].to_pylist())) == 60 * 20
    loaded = load_policy(recipe.policy)
    pool = generate_pairs(recipe.source, loaded.rubric)
    trained = {item.pair["query_id"] for group in pool for item in group.candidates if item.pair["split"] != "holdout"}
    shipped = load_golden(recipe.policy / "golden", loaded)
    trained |= {row["query_id"] for row in shipped.to_pylist() if row["split"] != "holdout"}
    assert trained and not trained & (golden | set(shown["query_id"].to_pylist()))

    again, _ = wide_market(recipe, num_queries=60, work=tmp_path)
    assert again.finished_at == corpus.finished_at
    assert read_table(again.path / "golden", GOLDEN).num_rows > sealed.num_rows


def test_only_the_synthetic_market_is_made_wider(tmp_path: Path) -> None:
    real = replace(demo(), source=HeadlinesConfig(data=tmp_path), relevance=None, judge=None, distill=None)
    with pytest.raises(InputError, match="only the synthetic market can be made wider"):
        wide_market(real, num_queries=60, work=tmp_path)
