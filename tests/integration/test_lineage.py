"""The policy's version and content hash, followed all the way: labels, checkpoints, bundle, HTTP answer, report."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from preceptor.bundle import load_bundle, score_table
from preceptor.contracts import LABELS, OVERALL, PAIRS, make_pair, read_table, rows_to_table
from preceptor.policy import diff, load_policy, staleness
from preceptor.recipe import POLICY_DIR
from preceptor.record import read_record
from preceptor_serve.api import make_api
from preceptor_serve.scorer import ThreadedScorer, load_scorer

pytestmark = pytest.mark.integration

TEXTS = ("welder", "TIG, shipyards", "Welder, days")


def config_of(model: Path) -> dict[str, Any]:
    return json.loads((model / "config.json").read_text())


def answers_of(bundle: Path) -> list[dict[str, Any]]:
    """What the HTTP edge answers for `bundle` to a request and to a health check."""

    async def ask() -> list[dict[str, Any]]:
        transport = httpx.ASGITransport(make_api(ThreadedScorer(load_scorer(bundle))))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            query, profile, document = TEXTS
            body = {"query": query, "profile": profile, "documents": [document]}
            return [(await client.post("/v1/score", json=body)).json(), (await client.get("/healthz")).json()]

    return asyncio.run(ask())


def test_the_policy_behind_a_score_is_known_all_the_way(tiny_run: Path, tiny_bundle: Path) -> None:
    version = load_policy(POLICY_DIR).version
    assert version.split("+")[0] == load_policy(POLICY_DIR).rubric.version and len(version.split("+")[1]) == 8

    for stage in ("calibrate", "label"):
        labels = read_table(tiny_run / stage / "v1" / "labels", LABELS)
        assert set(labels.column("policy_version").to_pylist()) == {version}, stage
    for stage in ("relevance_teacher", "distill"):
        assert config_of(tiny_run / stage / "v1" / "model")["preceptor_policy_version"] == version, stage
    # A teacher of clicks has read no policy.
    assert "preceptor_policy_version" not in config_of(tiny_run / "engagement_teacher" / "v1" / "model")

    assert config_of(tiny_bundle)["preceptor_policy_version"] == version
    assert json.loads((tiny_bundle / "bundle.json").read_text())["policy_version"] == version
    bundled = read_record(tiny_bundle)
    assert bundled is not None and bundled.policy_version == version
    assert version in (tiny_bundle / "README.md").read_text()
    scores = score_table(load_bundle(tiny_bundle), rows_to_table([make_pair(*TEXTS, slice="s")], PAIRS))
    assert scores.column("policy_version").to_pylist() == [version]

    assert [answer["policy_version"] for answer in answers_of(tiny_bundle)] == [version, version]

    page = (tiny_run / "report.html").read_text()
    assert f"Policy <code>{version}</code>" in page
    under_policy = [
        file for file in tiny_run.glob("*/v1/record.json") if json.loads(file.read_text())["policy_version"]
    ]
    assert page.count(f"<td><code>{version}</code></td>") == len(under_policy) >= 6


def test_what_a_reworded_anchor_makes_stale_in_a_run(tiny_run: Path, tmp_path: Path) -> None:
    before = load_policy(POLICY_DIR)
    reworded = tmp_path / "job_match"
    reworded.mkdir()
    anchor = before.rubric.dimension("pay").anchors[0]
    for name in ("rubric.toml", "policy.md", "precedents.jsonl"):
        text = (POLICY_DIR / name).read_text()
        (reworded / name).write_text(text.replace(f'0 = "{anchor}"', f'0 = "{anchor} Reworded."'))
    after = load_policy(reworded)
    found = staleness(tiny_run, before, after, diff(before, after))

    rows = Counter(
        (stage, row["dimension"])
        for stage in ("calibrate", "label")
        for row in read_table(tiny_run / stage / "v1" / "labels", LABELS).select(["dimension"]).to_pylist()
    )
    assert {(count.place, count.dimension): count.by_state["stale"] for count in found.labels} == {
        (f"{stage}/v1", name): num if name in ("pay", OVERALL) else 0 for (stage, name), num in rows.items()
    }
    assert {(model.kind, model.state, model.stale_heads) for model in found.models} == {
        ("teacher", "stale", (OVERALL, "pay")),
        ("student", "stale", (OVERALL,)),
        ("bundle", "stale", (OVERALL,)),
    }
