"""The served log: what it holds, what it never holds, and what happens where there is no room or no disk."""

from __future__ import annotations

import asyncio
import datetime
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from preceptor.bundle import Blend
from preceptor.cli import main
from preceptor.contracts import PAIRS, SERVED, content_id, is_sampled, make_pair, parquet_files, read_table
from preceptor.errors import InputError
from preceptor_serve.api import make_api
from preceptor_serve.blending import blended
from preceptor_serve.metrics import Metrics
from preceptor_serve.reading import Ask
from preceptor_serve.scorer import Answer, FakeScorer, Identity, ThreadedScorer, hashed_score
from preceptor_serve.served_log import LogOptions, Part, ServedLog, log_of, rows_of
from tests.unit.serving import SECRET

NOW = datetime.datetime(2025, 1, 6, tzinfo=datetime.UTC)
DOCUMENTS = ("Staff Nurse", "Baker", "Night Porter")


def part(query: str = "nurse", *, documents: Sequence[str] = DOCUMENTS, blend: Blend | None = None, **options) -> Part:
    scores = tuple(hashed_score(query, "ward", text) for text in documents)
    return Part(
        ask=Ask(query=query, profile="ward", documents=tuple(documents), blend=blend),
        names=[f"id-{number}" for number in range(len(documents))],
        answer=Answer(identity=Identity(bundle_id="b", policy_version="p"), scores=scores),
        **options,
    )


def opened(folder: Path, **options: Any) -> tuple[ServedLog, Metrics]:
    metrics = Metrics(replica="r/1")
    return ServedLog(LogOptions(**{"folder": folder, "rate": 1.0, **options}), metrics=metrics, replica="r/1"), metrics


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"preceptor_served_log_{name}", {"replica": "r/1", **labels}) or 0.0


def ask_all(app: FastAPI, bodies: Sequence[tuple[str, dict[str, Any]]]) -> list[httpx.Response]:
    """The answers to `bodies`, between the application's start and its end."""

    async def run() -> list[httpx.Response]:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", trust_env=False) as session:
                return [await session.post(path, json=body) for path, body in bodies]

    return asyncio.run(run())


# What a row says


def test_positions_follow_the_score_and_ties_the_requests_order() -> None:
    twice = part(documents=("Baker", "Staff Nurse", "Baker"))
    rows = list(rows_of("r", NOW, [twice], rate=0.5))
    scores = [score.score for score in twice.answer.scores]
    order = sorted(range(3), key=lambda index: (-scores[index], index))
    assert [row["document_name"] for row in rows] == [f"id-{index}" for index in order]
    assert [row["position"] for row in rows] == [1, 2, 3]


def test_a_requests_own_blend_ranks_and_is_what_is_logged() -> None:
    blend = Blend(relevance=0.0, click=1.0, apply=0.0)
    found = part(blend=blend)
    rows = list(rows_of("r", NOW, [found], rate=1.0))
    assert [row["score"] for row in rows] == sorted(
        (blended(score, blend) for score in found.answer.scores), reverse=True
    )


def test_documents_that_the_answer_leaves_out_are_no_rows() -> None:
    assert len(list(rows_of("r", NOW, [part(top_n=2)], rate=1.0))) == 2


def test_a_rows_ids_are_those_of_the_pair(tmp_path: Path) -> None:
    for row in rows_of("r", NOW, [part()], rate=1.0):
        pair = make_pair("nurse", "ward", DOCUMENTS[int(row["document_name"][3:])], slice="x")
        assert {name: row[name] for name in ("pair_id", "query_id", "profile_id", "document_id")} == {
            name: pair[name] for name in ("pair_id", "query_id", "profile_id", "document_id")
        }


# Sampling


def test_sampling_is_a_function_of_the_id_near_its_rate_and_nested() -> None:
    ids = [content_id("request", str(number)) for number in range(4000)]
    tenth, half = ({name for name in ids if is_sampled(name, rate)} for rate in (0.1, 0.5))
    assert tenth < half
    # Five standard deviations of a binomial.
    assert abs(len(tenth) - 400) < 95 and abs(len(half) - 2000) < 160
    assert all(is_sampled(name, 1.0) for name in ids)


def test_the_log_holds_exactly_the_sampled_requests(tmp_path: Path) -> None:
    app = make_api(ThreadedScorer(FakeScorer()), log=LogOptions(folder=tmp_path / "log", rate=0.5))
    ids = [f"request-{number}" for number in range(40)]
    body = {"query": "nurse", "profile": "", "documents": ["a", "b"]}
    assert all(
        answer.status_code == 200 for answer in ask_all(app, [("/v1/score", body | {"request_id": i}) for i in ids])
    )
    served = read_table(tmp_path / "log", SERVED)
    assert set(served["request_id"].to_pylist()) == {name for name in ids if is_sampled(name, 0.5)}
    assert set(served["rate"].to_pylist()) == {0.5}


# Through the API


def test_every_scoring_path_is_logged_with_the_callers_ids(tmp_path: Path) -> None:
    app = make_api(ThreadedScorer(FakeScorer()), log=LogOptions(folder=tmp_path / "log", rate=1.0))
    named = [{"id": "a", "text": "Staff Nurse"}, "Baker"]
    one: dict[str, Any] = {"query": "nurse", "profile": "ward", "documents": named}
    answers = ask_all(
        app,
        [
            ("/v1/score", one | {"request_id": "one"}),
            (
                "/v1/score",
                {"request_id": "batch", "requests": [one, {"query": "baker", "profile": "", "documents": ["x"]}]},
            ),
            ("/v2/rerank", one | {"request_id": "rerank", "top_n": 1}),
            ("/v1/score", {"query": "", "profile": "", "documents": ["x"], "request_id": "refused"}),
        ],
    )
    assert [answer.status_code for answer in answers] == [200, 200, 200, 422]
    rows = read_table(tmp_path / "log", SERVED).to_pylist()
    found = sorted((row["request_id"], row["part"], row["position"]) for row in rows)
    assert found == [("batch", 0, 1), ("batch", 0, 2), ("batch", 1, 1), ("one", 0, 1), ("one", 0, 2), ("rerank", 0, 1)]
    scores = {result["index"]: result for result in answers[0].json()["results"]}
    logged = {row["document_name"]: row for row in rows if row["request_id"] == "one"}
    assert logged["a"]["score"] == pytest.approx(scores[0]["score"])
    assert dict(logged["a"]["actions"]) == pytest.approx(scores[0]["actions"])
    assert logged[None]["expected_grade"] == pytest.approx(scores[1]["expected_grade"])
    best = answers[2].json()["results"][0]["index"]
    (reranked,) = [row for row in rows if row["request_id"] == "rerank"]
    assert reranked["document_name"] == ("a", None)[best]


def test_without_log_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ask_all(make_api(ThreadedScorer(FakeScorer())), [("/v1/score", {"query": "q", "profile": "", "documents": ["x"]})])
    assert not list(tmp_path.iterdir())
    assert "served-log" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("texts", [False, True])
def test_members_words_are_in_no_file_but_the_folder_for_texts(tmp_path: Path, texts: bool) -> None:
    log = LogOptions(folder=tmp_path / "log", rate=1.0, texts=tmp_path / "texts" if texts else None)
    body = {"query": SECRET, "profile": f"{SECRET} profile", "documents": [f"{SECRET} document"]}
    ask_all(make_api(ThreadedScorer(FakeScorer()), log=log), [("/v1/score", body), ("/v1/score", body)])
    served = read_table(tmp_path / "log", SERVED)
    assert served.num_rows == 2
    words = {
        cell
        for column in served.select([f.name for f in SERVED if f.name != "actions"]).columns
        for cell in map(str, column.to_pylist())
    }
    assert not any(SECRET in cell for cell in words)
    assert (tmp_path / "texts").exists() == texts
    if texts:
        # The pair was served twice; its text is kept once.
        (pair,) = read_table(tmp_path / "texts", PAIRS).to_pylist()
        assert pair["profile"] == f"{SECRET} profile" and pair["pair_id"] == served["pair_id"][0].as_py()


def test_new_folders_are_their_owners_alone(tmp_path: Path) -> None:
    log, _ = opened(tmp_path / "log", texts=tmp_path / "texts")
    log.close()
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("log", "texts")] == [0o700, 0o700]


# Rotation


def test_parts_are_closed_by_rows(tmp_path: Path) -> None:
    log, metrics = opened(tmp_path, part_rows=6)
    for number in range(5):
        log.offer(f"r{number}", (part(),))
    log.close()
    sizes = [read_table(file, SERVED).num_rows for file in parquet_files(tmp_path)]
    assert sizes == [6, 6, 3]
    assert value(metrics, "rows_total") == 15 and value(metrics, "waiting_rows") == 0


def test_an_old_part_is_closed_without_another_request(tmp_path: Path) -> None:
    log, _ = opened(tmp_path, part_s=0.01)
    log.offer("r", (part(),))
    # Polled, not slept: the part appears while the log is open.
    while not list(tmp_path.glob("*.parquet")):
        threading.Event().wait(0.002)
    assert read_table(tmp_path, SERVED).num_rows == 3
    log.close()


# No room, no disk, no rows


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[tuple[ServedLog, Metrics, Path]]:
    """A log whose disk refuses: its first part's hidden name is taken by a folder."""
    folder = tmp_path / "log"
    log, metrics = opened(folder, part_rows=3, max_waiting_rows=9)
    blocked = folder / f".{log._name}-000000.parquet.partial"
    blocked.mkdir()
    yield log, metrics, blocked
    log.close()


def test_a_full_queue_drops_and_counts_and_never_waits(stuck: tuple[ServedLog, Metrics, Path]) -> None:
    log, metrics, _ = stuck
    for number in range(10):
        log.offer(f"r{number}", (part(),))
    assert value(metrics, "dropped_rows_total", reason="full") == 21
    assert value(metrics, "waiting_rows") == 9


def test_what_waited_for_a_disk_is_written_when_it_is_back(stuck: tuple[ServedLog, Metrics, Path]) -> None:
    log, metrics, blocked = stuck
    for number in range(3):
        log.offer(f"r{number}", (part(),))
    blocked.rmdir()
    log.close()
    assert read_table(blocked.parent, SERVED).num_rows == 9
    assert value(metrics, "rows_total") == 9


def test_what_no_disk_took_at_the_end_is_counted(stuck: tuple[ServedLog, Metrics, Path]) -> None:
    log, metrics, blocked = stuck
    log.offer("r", (part(),))
    log.close()
    assert value(metrics, "dropped_rows_total", reason="disk") == 3
    assert not list(blocked.parent.glob("*.parquet"))


def test_characters_bound_the_queue_too(tmp_path: Path) -> None:
    log, metrics = opened(tmp_path, max_waiting_chars=50)
    log.offer("long", (part(documents=("x" * 60,)),))
    log.close()
    assert value(metrics, "dropped_rows_total", reason="full") == 1


def test_what_comes_after_the_end_is_counted(tmp_path: Path) -> None:
    log, metrics = opened(tmp_path)
    log.close()
    log.close()
    log.offer("r", (part(),))
    assert value(metrics, "dropped_rows_total", reason="closed") == 3


def test_a_row_that_cannot_be_made_ends_nothing_and_is_not_quoted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log, metrics = opened(tmp_path)
    bad = part(query=SECRET)
    log.offer("bad", (replace(bad, names=[]),))
    log.offer("good", (part(),))
    log.close()
    assert set(read_table(tmp_path, SERVED)["request_id"].to_pylist()) == {"good"}
    assert value(metrics, "dropped_rows_total", reason="defect") == 3
    assert "IndexError" in caplog.text and SECRET not in caplog.text


# Options


@pytest.mark.parametrize(
    ("folder", "rate", "texts", "words"),
    [
        (None, 0.1, None, "go with --log"),
        (None, None, Path("t"), "go with --log"),
        (Path("log"), None, None, "--log-rate"),
        (Path("log"), 0.0, None, "above 0"),
        (Path("log"), 1.5, None, "got 1.5"),
        (Path("log"), 0.1, Path("log"), "folder of their own"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    folder: Path | None, rate: float | None, texts: Path | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        log_of(folder, rate=rate, texts=texts)


def test_the_log_is_off_unless_told() -> None:
    assert log_of(None, rate=None, texts=None) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=str(tmp_path)):
        opened(tmp_path / "log")


def test_a_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        opened(tmp_path / "log")


def test_the_command_refuses_a_log_without_a_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--bundle", str(tmp_path), "--log", str(tmp_path / "log")]) == 2
    assert "--log needs --log-rate" in capsys.readouterr().err and not (tmp_path / "log").exists()
