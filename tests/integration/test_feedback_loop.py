"""The loop closes: the real application over real HTTP, its served log through two deaths, impressions out of it."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from preceptor.contracts import IMPRESSIONS, PAIRS, SERVED, is_sampled, parquet_files, read_table
from preceptor.feedback import FeedbackConfig, feedback
from preceptor.teachers.engagement import click_examples, exposures

SERVER = """
import sys
from pathlib import Path
import uvicorn
from preceptor_serve.api import make_api
from preceptor_serve.scorer import FakeScorer, ThreadedScorer
from preceptor_serve.served_log import LogOptions

folder, texts, rate, part_rows, port = sys.argv[1:]
log = LogOptions(folder=Path(folder), texts=Path(texts), rate=float(rate), part_rows=int(part_rows))
app = make_api(ThreadedScorer(FakeScorer()), log=log)
uvicorn.run(app, host="127.0.0.1", fd=int(port), log_level="error")
"""
NUM_REQUESTS = 100
NUM_LARGE = 120
RATE = 0.5


@dataclass(frozen=True)
class Scorer:
    """A process that serves, with its log under `folder`."""

    process: subprocess.Popen[bytes]
    folder: Path
    session: httpx.Client


@contextmanager
def scorer(folder: Path, *, rate: float, part_rows: int) -> Iterator[Scorer]:
    """A scorer until the body ends. Its socket listens before it starts, so nobody waits for it to be there."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        arguments = [str(folder / "log"), str(folder / "texts"), str(rate), str(part_rows), str(listening.fileno())]
        process = subprocess.Popen([sys.executable, "-c", SERVER, *arguments], pass_fds=[listening.fileno()])
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as session:
            yield Scorer(process, folder, session)
    finally:
        process.kill()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scorer, Scorer]]:
    """One to end and one to kill, which start side by side. The latter writes a part for every request."""
    with (
        scorer(tmp_path_factory.mktemp("ended"), rate=RATE, part_rows=40) as ended,
        scorer(tmp_path_factory.mktemp("killed"), rate=1.0, part_rows=1) as killed,
    ):
        yield ended, killed


def body_of(number: int) -> dict[str, Any]:
    """Request `number`: one of ten queries with three documents, in the caller's words and ids."""
    words = f"role-{number % 10}"
    documents = [{"id": f"{words}-{place}", "text": f"{words} posting {place}"} for place in range(3)]
    return {"request_id": f"request-{number}", "query": words, "profile": "ward", "documents": documents}


def large_documents() -> list[str]:
    """As many and as long documents as a body holds, which do not compress to nothing."""
    rng = random.Random(1)
    return [rng.randbytes(8000).hex() for _ in range(NUM_LARGE)]


def is_unfinished(file: Path) -> bool:
    """Whether `file` is there and lacks the four bytes that end Parquet."""
    try:
        with file.open("rb") as source:
            size = source.seek(0, os.SEEK_END)
            source.seek(max(size - 4, 0))
            return source.read() != b"PAR1"
    except FileNotFoundError:
        return False


def ask(session: httpx.Client, body: dict[str, Any]) -> dict[str, Any] | None:
    """The answer to `body`, None where the server died on it."""
    try:
        response = session.post("/v1/score", json=body)
    except httpx.TransportError:
        return None
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def clicks_on_the_best(answers: Sequence[dict[str, Any]]) -> str:
    """Events as JSON Lines: a click on what each answer scores highest, by the caller's id."""
    best = [(answer["request_id"], max(answer["results"], key=lambda result: result["score"])) for answer in answers]
    rows = [{"request_id": name, "action": "click", "document": result["id"]} for name, result in best]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.mark.integration
def test_after_sigterm_every_sampled_request_is_logged_and_its_clicks_are_impressions(
    scorers: tuple[Scorer, Scorer],
) -> None:
    process, tmp_path, session = scorers[0].process, scorers[0].folder, scorers[0].session
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: ask(session, body_of(number)), range(NUM_REQUESTS)))
    metrics = session.get("/metrics").text
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    given = [answer for answer in answers if answer is not None]
    assert len(given) == NUM_REQUESTS
    assert "preceptor_served_log_dropped_rows_total{" not in metrics
    sampled = {f"request-{number}" for number in range(NUM_REQUESTS) if is_sampled(f"request-{number}", RATE)}
    served = read_table(tmp_path / "log", SERVED)
    assert set(served["request_id"].to_pylist()) == sampled and served.num_rows == 3 * len(sampled)
    assert len(parquet_files(tmp_path / "log")) > 1 and not list((tmp_path / "log").glob(".*"))

    (tmp_path / "clicks.jsonl").write_text(clicks_on_the_best(given))
    (tmp_path / "curve.csv").write_text("position,propensity\n1,1\n2,0.6\n3,0.4\n")
    config = FeedbackConfig(
        served=tmp_path / "log",
        events=tmp_path / "clicks.jsonl",
        propensities=tmp_path / "curve.csv",
        late_after_s=3600,
        texts=(tmp_path / "texts",),
    )
    record = feedback(config, out=tmp_path / "feedback" / "v1")
    events = {reason: num for reason, num in record.metrics["events"].items() if num}
    assert events == {"joined": len(sampled), "request not sampled": NUM_REQUESTS - len(sampled)}
    impressions = read_table(record.path / "impressions", IMPRESSIONS).to_pylist()
    assert {row["position"] for row in impressions if row["click"]} == {1}

    # What the engagement teacher does before it trains.
    shown = [row for row in exposures(record) if row["split"] == "train"]
    examples = list(click_examples(shown))
    pairs = {row["pair_id"] for row in read_table(record.path / "pairs", PAIRS).to_pylist()}
    assert examples and {row["pair_id"] for row in examples} <= pairs
    assert {row["target"][0] for row in examples} == {0.0, 1.0}


@pytest.mark.integration
def test_after_sigkill_every_part_is_whole_and_nothing_else_looks_like_one(
    scorers: tuple[Scorer, Scorer],
) -> None:
    process, tmp_path, session = scorers[1].process, scorers[1].folder, scorers[1].session
    large = {"query": "nurse", "profile": "", "documents": large_documents()}
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(lambda: [ask(session, large | {"request_id": f"r{n}"}) for n in range(200)])
        # Texts of a megabyte take long enough to be written that a part after the first can be caught without its end.
        pause = threading.Event()
        while not list((tmp_path / "log").glob("*.parquet")) and not under_way.done():
            pause.wait(0.001)
        while not any(is_unfinished(file) for file in tmp_path.glob("*/*")) and not under_way.done():
            pause.wait(0.0005)
        os.kill(process.pid, signal.SIGKILL)
        answers = under_way.result()
    process.wait(timeout=30)
    assert answers[0] is not None and answers[-1] is None, "the server was to die between two answers"
    files = [file for folder in ("log", "texts") for file in (tmp_path / folder).iterdir()]
    whole = {file for folder in ("log", "texts") for file in parquet_files(tmp_path / folder)}
    assert whole
    for file in whole:
        pq.ParquetFile(file, page_checksum_verification=True).read()
    assert all(file.name.startswith(".") and file.name.endswith(".partial") for file in set(files) - whole)
    served, texts = read_table(tmp_path / "log", SERVED), read_table(tmp_path / "texts", PAIRS)
    rows = served.group_by("request_id").aggregate([("position", "count")])
    assert set(rows["position_count"].to_pylist()) == {NUM_LARGE}, "a request is logged whole or not at all"
    assert set(served["pair_id"].to_pylist()) <= set(texts["pair_id"].to_pylist())
