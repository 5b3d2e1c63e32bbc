"""What an endpoint costs: usage that is counted and priced, and settings of a judge that cannot work."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from preceptor.errors import RecipeError
from preceptor.judge.completions import Prices, usage_of
from preceptor.judge.judges import openai_judge
from preceptor.judge.replies import Usage
from tests.unit.endpoints import POLICY, chat, config, endpoint, graded_by, grader_of, pool, send

USED = {"prompt_tokens": 1000, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 800}}
PRICES = Prices(prompt=2e-6, cached=1e-6, generated=8e-6)


def test_usage_is_counted_and_priced() -> None:
    found = usage_of({"usage": USED}, PRICES)
    assert (found.num_prompt_tokens, found.num_cached_tokens, found.num_generated_tokens) == (1000, 800, 1)
    assert found.cost_usd == pytest.approx(0.001208)


@pytest.mark.parametrize(
    "told",
    [None, {}, [], "many", {"prompt_tokens": None}, {"prompt_tokens": "3"}, {"prompt_tokens_details": 4}],
    ids=repr,
)
def test_a_server_that_counts_nothing_costs_nothing(told: Any) -> None:
    assert usage_of({"usage": told}, PRICES) == Usage()


def test_a_block_costs_what_all_its_billed_tries_cost() -> None:
    unreadable = send(json.dumps({"choices": [], "usage": USED}).encode())
    good = send(chat("3", {"3": -0.1}, usage=USED))
    with endpoint(unreadable, send(b"{}", 500), good, prices=PRICES) as (where, seen):
        (answers,) = graded_by(grader_of(where, dimensions=("role", "pay")), pool(1))
    assert len(seen) == 4
    assert answers.usage.num_prompt_tokens == 3000
    assert answers.usage.cost_usd == pytest.approx(3 * 0.001208)


def test_prices_are_per_million_and_cached_tokens_cost_the_same_unless_told() -> None:
    priced = config(usd_per_million_prompt_tokens=2.0, usd_per_million_generated_tokens=8.0)
    assert openai_judge(priced, POLICY).endpoint.prices == Prices(prompt=2e-6, cached=2e-6, generated=8e-6)
    cheaper = replace(priced, usd_per_million_cached_tokens=0.5)
    assert openai_judge(cheaper, POLICY).endpoint.prices.cached == 5e-7


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": "localhost:8000/v1"},
        {"base_url": "http://host:port/v1"},
        {"base_url": "ftp://host/v1"},
        {"base_url": "https://user:secret@host/v1"},
        {"base_url": "//user:secret@host:x/v1"},
        {"max_requests_per_minute": 0},
        {"max_tokens_per_minute": -1},
        {"max_concurrency": 0},
        {"max_attempts": 0},
        {"timeout_s": 0.0},
        {"rationale_tokens": -1},
        {"usd_per_million_prompt_tokens": -1.0},
        {"usd_per_million_cached_tokens": math.nan},
        {"usd_per_million_generated_tokens": math.inf},
        {"batch_price_share": 1.5},
        {"max_cost_usd": 5.0},
        {"max_cost_usd": 0.0, "usd_per_million_prompt_tokens": 1.0},
    ],
    ids=repr,
)
def test_a_judge_that_cannot_work_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        config(**changes)
    assert next(iter(changes)) in str(caught.value) and "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
