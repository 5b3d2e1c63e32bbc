"""What labelling takes on paper: every formula by hand, what must grow with what, and constants measured again."""

from __future__ import annotations

import io
import math
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preceptor import capacity
from preceptor.capacity import Endpoint, Sizing, sizing_of
from preceptor.cli import main
from preceptor.contracts import LABELS, OVERALL, PAIRS, REJECTS, content_id, rows_to_table
from preceptor.errors import RecipeError
from preceptor.market.groups import generate_pairs
from preceptor.policy import load_policy
from preceptor.policy.prompts import num_tokens_about
from preceptor.recipe import POLICY_DIR, MarketConfig
from preceptor.recipes import cluster, demo, headlines, tiny

REPOSITORY = Path(__file__).resolve().parents[2]
SCALE_PAGE = REPOSITORY / "docs" / "scale.md"

# 1,000 pairs, 4 dimensions, 5 labels a pair; prompts of 100 + 50 + 10 tokens; 2 replicas of 3 GPUs.
SMALL = Sizing(
    num_pairs=1000,
    num_dimensions=4,
    num_labels_per_pair=5,
    num_prompts=4,
    policy_tokens=100,
    pair_tokens=50,
    question_tokens=10,
    generated_tokens=3,
    num_replicas=2,
    gpus_per_replica=3,
    prompt_tokens_per_s=1000.0,
    generated_tokens_per_s=400.0,
    cache_block_tokens=1,
    usd_per_gpu_hour=2.0,
    engine_start_s=60.0,
    deadline_hours=1.0,
    pairs_per_block=10,
    blocks_in_flight=2,
    reject_share=0.1,
)
HOSTED = replace(SMALL, num_prompts=1, policy_tokens=0, question_tokens=0, generated_tokens=0)

sizings = st.builds(
    Sizing,
    num_pairs=st.integers(1, 10**9),
    num_dimensions=st.integers(1, 10),
    num_labels_per_pair=st.integers(1, 11),
    num_prompts=st.integers(1, 10),
    policy_tokens=st.integers(0, 3000),
    pair_tokens=st.integers(1, 3000),
    question_tokens=st.integers(0, 200),
    generated_tokens=st.integers(0, 300),
    num_replicas=st.integers(1, 500),
    gpus_per_replica=st.integers(0, 8),
    prompt_tokens_per_s=st.floats(1, 1e6),
    generated_tokens_per_s=st.floats(1, 1e5),
    cached_share=st.none() | st.floats(0, 1),
    evicted_share=st.floats(0, 1),
    cache_block_tokens=st.integers(1, 256),
    pairs_per_block=st.integers(1, 9000),
    blocks_in_flight=st.integers(1, 16),
)


def test_tokens_by_hand() -> None:
    assert capacity.num_rows(SMALL) == 4000
    assert capacity.num_prompts(SMALL) == 4000
    assert capacity.asked_tokens(SMALL) == 4000 * 160
    # The policy on each of 2 replicas, 1,000 pairs, 4,000 questions.
    assert capacity.computed_tokens(SMALL) == 2 * 100 + 1000 * 50 + 4000 * 10
    # Blocks of 17 tokens: 8 more of each prompt are computed again.
    assert capacity.computed_tokens(replace(SMALL, cache_block_tokens=17)) == 90_200 + 4000 * 8
    assert capacity.computed_tokens(replace(SMALL, evicted_share=1.0)) == 640_000
    assert capacity.computed_tokens(replace(SMALL, evicted_share=0.5)) == (640_000 + 90_200) / 2
    assert capacity.computed_tokens(replace(SMALL, cached_share=0.75)) == 160_000
    assert capacity.generated_tokens(SMALL) == 12_000


def test_time_and_money_by_hand() -> None:
    # 90.2 s of prompts, and two more tokens for each of 4,000 answers at 400 a second: 20 s.
    assert capacity.busy_seconds(SMALL) == pytest.approx(110.2)
    assert capacity.rows_per_second(SMALL) == pytest.approx(4000 / 110.2)
    assert capacity.wall_hours(SMALL) == pytest.approx((60 + 55.1) / 3600)
    assert capacity.gpu_hours(SMALL) == pytest.approx((60 + 55.1) / 3600 * 6)
    assert capacity.cost_usd(SMALL) == pytest.approx((60 + 55.1) / 3600 * 12)
    assert capacity.replicas_for_deadline(SMALL) == 1
    assert capacity.replicas_for_deadline(replace(SMALL, deadline_hours=80 / 3600)) == 6
    assert capacity.rows_lost(SMALL) == 2 * 10 * 4
    assert capacity.seconds_lost(SMALL) == pytest.approx(60 + 80 / (4000 / 110.2))


def test_the_endpoint_by_hand() -> None:
    endpoint = Endpoint(
        usd_per_million_prompt_tokens=0.5,
        usd_per_million_generated_tokens=2.0,
        tokens_per_minute=652_000 / 120,
        requests_per_minute=100.0,
    )
    assert capacity.endpoint_usd(SMALL, endpoint) == pytest.approx(0.64 * 0.5 + 0.012 * 2)
    assert capacity.endpoint_hours(SMALL, endpoint) == pytest.approx(2.0)
    assert capacity.endpoint_hours(SMALL, replace(endpoint, requests_per_minute=10.0)) == pytest.approx(4000 / 600)


def test_a_hosted_teacher_reads_each_pair_once() -> None:
    assert capacity.asked_tokens(HOSTED) == capacity.computed_tokens(HOSTED) == 50_000
    assert capacity.rows_per_second(HOSTED) == pytest.approx(4000 / 50)


@pytest.mark.parametrize(
    ("num_pairs", "num_shards"),
    [(1, 1), (8192, 1), (8193, 2), (16_384, 2), (16_385, 4), (10**6, 128), (10**8, 16_384), (10**9, 131_072)],
)
def test_shards_are_a_power_of_two_of_at_most_8192_pairs(num_pairs: int, num_shards: int) -> None:
    assert capacity.num_shards(num_pairs) == num_shards


@given(st.integers(1, 10**12))
def test_no_fewer_shards_would_do(num_pairs: int) -> None:
    shards = capacity.num_shards(num_pairs)
    assert shards & (shards - 1) == 0
    assert num_pairs / shards <= capacity.PAIRS_PER_SHARD
    assert shards == 1 or num_pairs / (shards / 2) > capacity.PAIRS_PER_SHARD


def test_blocks_and_files_by_hand() -> None:
    sizing = replace(SMALL, num_pairs=20_000, pairs_per_block=64)
    assert capacity.num_shards(20_000) == 4
    assert capacity.blocks_per_shard(sizing) == 79  # 5,000 / 64 = 78.1
    assert capacity.num_blocks(sizing) == 316
    assert capacity.num_files(sizing) == 16
    alone = replace(sizing, num_replicas=1, blocks_in_flight=1)
    assert capacity.num_open_shards(alone) == 3
    assert capacity.num_open_parts(alone) == 2 * 3 * 79
    assert capacity.num_open_shards(replace(sizing, num_replicas=300)) == 4
    assert capacity.traffic_bytes(sizing) == 316 * 600
    assert capacity.traffic_bytes_per_pair(sizing) == 9.375


def test_bytes_by_hand() -> None:
    assert capacity.pool_bytes(SMALL) == pytest.approx(1000 * 50 * 0.78 + 100 * 5300)
    assert capacity.label_bytes(SMALL) == 1000 * 5 * 34
    assert capacity.reject_bytes(SMALL) == pytest.approx(1000 * 5 * 0.1 * 55)
    # One shard of 100 blocks, its labels twice in memory, its entry.
    assert capacity.driver_bytes(SMALL) == pytest.approx(100 * 600 + 2 * 1000 * 5 * 125 + 200)


def test_hashing_groups_into_shards_gives_about_as_many_blocks() -> None:
    sizing = replace(SMALL, num_pairs=400_000, pairs_per_block=64)
    shards = capacity.num_shards(sizing.num_pairs)
    groups = (int(content_id("query", str(group)), 16) % shards for group in range(sizing.num_pairs // 20))
    sizes = Counter(groups)
    num_blocks = sum(math.ceil(20 * num_groups / 64) for num_groups in sizes.values())
    assert num_blocks == pytest.approx(capacity.num_blocks(sizing), rel=0.01)
    assert max(sizes.values()) * 20 < 1.2 * capacity.PAIRS_PER_SHARD


@given(sizings)
def test_caching_never_computes_more_than_is_asked(sizing: Sizing) -> None:
    computed = capacity.computed_tokens(sizing)
    assert 0 <= computed <= capacity.asked_tokens(sizing) * (1 + 1e-9)
    ideal = replace(sizing, cached_share=None, evicted_share=0.0)
    worse = replace(sizing, cached_share=None)
    assert capacity.computed_tokens(ideal) <= capacity.computed_tokens(worse) * (1 + 1e-9)


@given(sizings, st.integers(1, 10**9))
def test_more_pairs_never_take_less(sizing: Sizing, more: int) -> None:
    larger = replace(sizing, num_pairs=sizing.num_pairs + more)
    for figure in (
        capacity.computed_tokens,
        capacity.wall_hours,
        capacity.gpu_hours,
        capacity.cost_usd,
        capacity.label_bytes,
        capacity.num_files,
        capacity.replicas_for_deadline,
    ):
        assert figure(sizing) <= figure(larger) * (1 + 1e-9)


@given(sizings)
def test_one_more_replica_never_takes_longer_where_it_has_a_policys_worth_of_work(sizing: Sizing) -> None:
    more = replace(sizing, num_replicas=sizing.num_replicas + 1)
    # A replica that reads the policy costs its tokens once: more replicas are more tokens, never more than asked.
    assert capacity.computed_tokens(more) >= capacity.computed_tokens(sizing) * (1 - 1e-9)
    enough = capacity.busy_seconds(sizing) > sizing.num_replicas**2 * sizing.policy_tokens / sizing.prompt_tokens_per_s
    assert not enough or capacity.wall_hours(more) <= capacity.wall_hours(sizing) * (1 + 1e-9)


@given(sizings)
def test_the_replicas_for_a_deadline_keep_it_and_one_less_does_not(sizing: Sizing) -> None:
    # Without a policy to read once more, so that the tokens are the same however many replicas there are.
    sizing = replace(sizing, policy_tokens=0)
    needed = capacity.replicas_for_deadline(sizing)
    assert capacity.wall_hours(replace(sizing, num_replicas=needed)) <= sizing.deadline_hours * (1 + 1e-9)
    if needed > 1:
        fewer = replace(sizing, num_replicas=needed - 1)
        assert capacity.wall_hours(fewer) >= sizing.deadline_hours * (1 - 1e-9)


@given(sizings, st.integers(1, 5000))
def test_longer_texts_leave_traffic_and_driver_alone(sizing: Sizing, more: int) -> None:
    longer = replace(sizing, pair_tokens=sizing.pair_tokens + more)
    assert capacity.traffic_bytes(longer) == capacity.traffic_bytes(sizing)
    assert capacity.driver_bytes(longer) == capacity.driver_bytes(sizing)
    assert capacity.pool_bytes(longer) > capacity.pool_bytes(sizing)


@given(sizings)
def test_the_driver_holds_open_shards_and_names_alone(sizing: Sizing) -> None:
    named = capacity.num_shards(sizing.num_pairs) * capacity.SHARD_ENTRY_BYTES
    opened = capacity.num_open_parts(sizing) / 2 * (capacity.TICKET_BYTES + capacity.RESULT_BYTES)
    one_shard = 2 * capacity.PAIRS_PER_SHARD * sizing.num_labels_per_pair * capacity.LABEL_MEMORY_BYTES
    assert capacity.driver_bytes(sizing) <= named + opened + one_shard


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"num_pairs": 0}, "num_pairs must be above 0"),
        ({"cached_share": 1.5}, r"cached_share lies in 0\.\.1"),
        ({"prompt_tokens_per_s": 0.0}, "prompt_tokens_per_s must be above 0"),
        ({"pair_tokens": -1}, "pair_tokens must be 0 or above"),
    ],
)
def test_a_sizing_that_cannot_be_is_refused(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(RecipeError, match=rule):
        replace(SMALL, **change)


def test_a_deadline_shorter_than_an_engines_start_is_refused() -> None:
    with pytest.raises(RecipeError, match="deadline_hours must leave time"):
        capacity.replicas_for_deadline(replace(SMALL, deadline_hours=0.01))


def test_a_recipe_gives_its_prompts_and_engines() -> None:
    policy = load_policy(POLICY_DIR)
    sizing = sizing_of(cluster(), num_pairs=1000, labeller="judge")
    assert (sizing.num_dimensions, sizing.num_labels_per_pair, sizing.num_prompts) == (9, 10, 9)
    assert (sizing.num_replicas, sizing.gpus_per_replica) == (8, 2)
    whole = sum(num_tokens_about(policy, name) for name in policy.rubric.names) / 9
    # The prompt without a pair still names the pair's three parts: "Query: (none)" and so on, 6 words.
    assert sizing.policy_tokens + sizing.question_tokens == pytest.approx(whole - 6 * 1.6, abs=1.5)
    hosted = sizing_of(cluster(), num_pairs=1000, labeller="teacher")
    assert (hosted.num_prompts, hosted.policy_tokens, hosted.num_labels_per_pair) == (1, 0, 10)


def test_the_assumed_rate_follows_from_the_models_size() -> None:
    assert capacity.billions_in("Qwen/Qwen2.5-7B-Instruct") == 7
    assert capacity.billions_in("smollm2-135m") == 0.135
    # 2 x 362e12 x 0.4 / 64e9 = 4,525.
    assert capacity.assumed_tokens_per_s(32, gpus_per_replica=2) == 4500
    assert sizing_of(cluster(), num_pairs=1, labeller="judge").prompt_tokens_per_s == 4500
    assert sizing_of(cluster(), num_pairs=1, labeller="judge", prompt_tokens_per_s=7.0).prompt_tokens_per_s == 7


def test_what_cannot_be_assumed_is_said_with_the_way_out() -> None:
    with pytest.raises(RecipeError, match=r"'fake' does not say .* --model-billions"):
        sizing_of(tiny(), num_pairs=1, labeller="judge")
    with pytest.raises(RecipeError, match=r"without a GPU: add --gpus-per-replica 1"):
        sizing_of(demo(), num_pairs=1, labeller="judge")
    with pytest.raises(RecipeError, match="recipe headlines labels nothing"):
        sizing_of(headlines(), num_pairs=1, labeller="judge")


def test_the_command_takes_every_figure_from_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    command = "plan demo --pairs 1e6 2e6 --labeller judge --gpus-per-replica 1 --prompt-tokens-per-s 1e4 --replicas 5"
    assert main([*command.split(), "--cached-share", "0.5", "--usd-per-gpu-hour", "3"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("|  | 1 million pairs | 2 million pairs |")
    assert "5 replicas of 1 GPUs at 10,000 prompt tokens/s each, $3 a GPU hour" in shown
    assert "a measured cached share of 0.5" in shown


def test_the_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "demo", "--pairs", "1e6"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["plan", "cluster", "--pairs", "1.5"])


@pytest.mark.parametrize("help_needs", ["bench/label_throughput.py", "--cached-share", "examples:", "assumed"])
def test_the_help_says_what_to_replace(help_needs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    assert help_needs in capsys.readouterr().out


def test_the_pages_tables_are_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    sections = re.findall(r"```\npreceptor (plan [^\n]+)\n```\n\n(\|.+?\.)\n\n", SCALE_PAGE.read_text(), re.DOTALL)
    assert len(sections) == 5
    for command, table in sections:
        assert main(shlex.split(command)) == 0
        shown = capsys.readouterr().out
        assert table == shown.rstrip("\n"), f"docs/scale.md is stale: paste what `preceptor {command}` prints"


def parquet_bytes(table: pa.Table, *, rows_per_group: int) -> int:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, row_group_size=rows_per_group)
    return len(sink.getvalue())


@pytest.fixture(scope="module")
def shard() -> pa.Table:
    """A shard's worth of market pairs, groups next to each other as they are judged."""
    config = MarketConfig(num_queries=409, documents_per_query=20, num_requests=0, num_holdout_requests=0)
    groups = generate_pairs(config, load_policy(POLICY_DIR).rubric, start=0, stop=config.num_queries)
    table = rows_to_table((item.pair for group in groups for item in group.candidates), PAIRS)
    return table.sort_by([(name, "ascending") for name in ("query_id", "profile_id", "pair_id")])


@pytest.mark.parametrize("pairs_per_block", [64, 256, 1024, 8192])
def test_the_constants_of_the_pool_were_measured(shard: pa.Table, pairs_per_block: int) -> None:
    num_blocks = math.ceil(shard.num_rows / pairs_per_block)
    expected = (
        shard.num_rows * capacity.PAIR_TOKENS * capacity.POOL_BYTES_PER_TOKEN + num_blocks * capacity.ROW_GROUP_BYTES
    )
    assert parquet_bytes(shard, rows_per_group=pairs_per_block) == pytest.approx(expected, rel=0.1)


def test_the_tokens_of_a_pair_were_measured(shard: pa.Table) -> None:
    texts = [f"Query: {row['query']} Member: {row['profile']} Posting: {row['document']}" for row in shard.to_pylist()]
    mean = sum(len(text.split()) for text in texts) / len(texts)
    assert mean * 1.6 == pytest.approx(capacity.PAIR_TOKENS, rel=0.05)


def test_the_constants_of_labels_were_measured(shard: pa.Table) -> None:
    policy = load_policy(POLICY_DIR)
    rng = np.random.default_rng(0)
    names = [*policy.rubric.names, OVERALL]
    rows = [
        {
            "pair_id": pair_id,
            "dimension": name,
            "grade": int(probs.argmax()),
            "probs": probs.tolist(),
            "label_mass": float(rng.beta(50, 1)),
            "rationale": None,
            "judge_id": "vllm:Qwen3-32B@01234567",
            "policy_version": policy.version,
            "prompt_hash": content_id(name),
        }
        for pair_id in shard.column("pair_id").to_pylist()[:2000]
        for name, probs in zip(names, rng.dirichlet([0.5] * 5, size=len(names)), strict=True)
    ]
    table = rows_to_table(rows, LABELS)
    written = parquet_bytes(table, rows_per_group=table.num_rows) / table.num_rows
    assert written == pytest.approx(capacity.LABEL_BYTES, rel=0.1)
    assert table.nbytes / table.num_rows == pytest.approx(capacity.LABEL_MEMORY_BYTES, rel=0.1)


def test_the_constant_of_rejects_was_measured(shard: pa.Table) -> None:
    rng = np.random.default_rng(0)
    pair_ids = shard.column("pair_id").to_pylist()[:500]
    made = {"stage": "label", "reason": "not a grade", "attempt": 1}
    rows = [{"id": f"{pair_id}/role", "raw": str(rng.random(8)), **made} for pair_id in pair_ids]
    table = rows_to_table(rows, REJECTS)
    assert parquet_bytes(table, rows_per_group=500) / 500 == pytest.approx(capacity.REJECT_BYTES, rel=0.15)
