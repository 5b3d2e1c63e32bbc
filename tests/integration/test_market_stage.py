"""The market stage on a local Ray: what it writes, that block counts do not matter, and that it resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from preceptor.contracts import GOLDEN, IMPRESSIONS, PAIRS, parquet_files, read_table
from preceptor.errors import RecipeError
from preceptor.market import generate_pairs, market
from preceptor.market import stage as market_stage
from preceptor.policy import load_policy
from preceptor.recipe import POLICY_DIR, MarketConfig
from preceptor.record import read_record

pytestmark = pytest.mark.integration

CONFIG = MarketConfig(num_queries=300, documents_per_query=6, num_requests=600, num_holdout_requests=120)


def _bytes_below(directory: Path, *names: str) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for name in names for f in parquet_files(directory / name)}


@pytest.mark.usefixtures("local_ray")
def test_stage_writes_the_corpus_and_is_independent_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = market(CONFIG, policy=POLICY_DIR, out=tmp_path / "market" / "v1")

    pairs = read_table(record.path / "pairs", PAIRS)
    rubric = load_policy(POLICY_DIR).rubric
    expected = {item.pair["pair_id"] for group in generate_pairs(CONFIG, rubric) for item in group.candidates}
    assert set(pairs["pair_id"].to_pylist()) == expected
    assert record.num_rows_kept == pairs.num_rows
    truth = read_table(record.path / "truth", GOLDEN)
    assert truth.num_rows == (len(rubric.names) + 1) * pairs.num_rows
    impressions = read_table(record.path / "impressions", IMPRESSIONS)
    assert set(impressions["pair_id"].to_pylist()) <= expected
    assert len(set(impressions["request_id"].to_pylist())) == 720
    golden = read_table(record.path / "golden", GOLDEN)
    shared = set(golden["query_id"].to_pylist()) & set(pairs["query_id"].to_pylist())
    splits = {**dict(zip(golden["query_id"].to_pylist(), golden["split"].to_pylist(), strict=True))}
    pool = dict(zip(pairs["query_id"].to_pylist(), pairs["split"].to_pylist(), strict=True))
    assert all(splits[query] == pool[query] for query in shared)

    monkeypatch.setattr(market_stage, "_MAX_BLOCKS", 1)
    other = market(CONFIG, policy=POLICY_DIR, out=tmp_path / "market" / "v2")
    names = ("pairs", "truth", "impressions", "golden")
    assert _bytes_below(record.path, *names) == _bytes_below(other.path, *names)
    assert record.metrics == other.metrics


@pytest.mark.usefixtures("local_ray")
def test_a_failing_task_ends_in_one_line_and_leaves_no_record(tmp_path: Path) -> None:
    no_holdout = replace(CONFIG, num_queries=2, num_requests=0, num_holdout_requests=5)
    rubric = load_policy(POLICY_DIR).rubric
    seeds = (replace(no_holdout, seed=seed) for seed in range(50))
    config = next(c for c in seeds if all(g.ask.split != "holdout" for g in generate_pairs(c, rubric)))

    with pytest.raises(RecipeError, match="no holdout query") as failure:
        market(config, policy=POLICY_DIR, out=tmp_path / "market" / "v1")

    assert "\n" not in str(failure.value)
    assert read_record(tmp_path / "market" / "v1") is None


@pytest.mark.usefixtures("local_ray")
def test_interrupted_stage_resumes_to_the_same_output(tmp_path: Path) -> None:
    out = tmp_path / "market" / "v1"
    first = market(CONFIG, policy=POLICY_DIR, out=out)
    before = _bytes_below(out, "pairs", "truth", "impressions")
    pending = {"stage": "market", "fingerprint": first.fingerprint}
    (out / "record.json").unlink()
    (out / "pending.json").write_text(json.dumps(pending))
    (out / "chunks" / "pairs_chunk-000001.json").unlink()
    (out / "pairs" / "part-000001.parquet").unlink()
    kept = (out / "pairs" / "part-000000.parquet").stat().st_mtime_ns

    again = market(CONFIG, policy=POLICY_DIR, out=out)

    assert _bytes_below(out, "pairs", "truth", "impressions") == before
    assert (out / "pairs" / "part-000000.parquet").stat().st_mtime_ns == kept
    assert again.metrics == first.metrics
