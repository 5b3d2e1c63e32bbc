"""Simulated clicks: they follow the stated model, and what a posting knows of earlier ones is no leak."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from preceptor.contracts import make_pair
from preceptor.sources.simulated_clicks import Shown, appeal, apply_prob, click_prob, past_clicks, simulate


def test_impressions_follow_the_stated_click_model() -> None:
    pairs = [
        make_pair(f"q{query}", "", f"d{query} {number}", slice="s", split=split)
        for split in ("train", "holdout")
        for query in (f"{split}1", f"{split}2")
        for number in range(12)
    ]
    shown = [
        Shown(pair=pair, grade=index % 4, prominence=-index, appeal_key="one", topic="t")
        for index, pair in enumerate(pairs)
    ]
    rows = list(simulate(shown, num_requests=2000, num_holdout_requests=2000, seed=1))
    grades = {item.pair["pair_id"]: item.grade for item in shown}
    assert all(row["click"] or not row["apply"] for row in rows)
    for grade in range(4):
        mine = [row for row in rows if grades[row["pair_id"]] == grade]
        clicks = [row for row in mine if row["click"]]
        corrected = len(clicks) / sum(row["propensity"] for row in mine)
        assert corrected == pytest.approx(click_prob(grade, appeal("one")), abs=0.03)
        applied = sum(row["apply"] for row in clicks) / len(clicks)
        assert applied == pytest.approx(apply_prob(grade, appeal("one")), abs=0.05)
    requests = defaultdict(list)
    for row in rows:
        requests[row["request_id"]].append(row)
        assert row["propensity"] == pytest.approx(row["position"] ** -0.7)
    assert len(requests) == 4000
    for listed in requests.values():
        assert [row["position"] for row in listed] == list(range(1, 11))
        assert len({row["document_id"] for row in listed}) == 10
        assert len({(row["query_id"], row["profile_id"], row["split"]) for row in listed}) == 1


def test_past_clicks_are_rates_of_other_topics_corrected_for_the_position() -> None:
    pairs = [
        make_pair(f"{topic} {query}", "", f"d{number}", slice="s", split="train")
        for topic in ("nurse", "cook")
        for query in range(2)
        for number in range(12)
    ]
    # Prominence falls with the number, so that posting 11 is always shown low; only cooks find posting 0 suitable.
    shown = [
        Shown(
            pair=pair,
            grade=3 if pair["query"].startswith("cook") and pair["document"] == "d0" else 0,
            prominence=-float(pair["document"][1:]),
            appeal_key=pair["document"],
            topic=pair["query"].split()[0],
        )
        for pair in pairs
    ]
    unseen = replace(shown[0], pair={**shown[0].pair, "split": "holdout"}, appeal_key="d99")
    past = past_clicks([*shown, unseen], num_requests=8000, seed=1)
    for number in (1, 5, 11):
        key = f"d{number}"
        assert past.rate(key, topic="nurse") == pytest.approx(click_prob(0, appeal(key)), abs=0.03)
    assert past.rate("d0", topic="nurse") == pytest.approx(click_prob(3, appeal("d0")), abs=0.03)
    assert past.rate("d0", topic="cook") == pytest.approx(click_prob(0, appeal("d0")), abs=0.03)
    assert past.rate("d99", topic="nurse") == pytest.approx(past.mean_rate)
    assert past_clicks([unseen], num_requests=100, seed=1).rate("d0", topic="nurse") == 0.0


def test_temptation_and_suitability_partly_disagree() -> None:
    assert click_prob(0, 2.5) > click_prob(1, 0) and apply_prob(0, 2.5) < apply_prob(1, 0)
    draws = np.array([appeal(str(key)) for key in range(2000)])
    assert abs(draws.mean()) < 0.1 and abs(draws.std() - 1) < 0.1
