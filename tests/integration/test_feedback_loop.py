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
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import pyarrow.parquet as pq
import pytest

from preceptor.contracts import IMPRESSIONS, PAIRS, SERVED, is_sampled, parquet_files, read_table
from preceptor.feedback import FeedbackConfig, feedback
from preceptor.teachers.engagement import click_examples, exposures

SERVERS = """
import json, os, sys
from pathlib import Path
import uvicorn
from preceptor_serve.api import make_api
from preceptor_serve.scorer import FakeScorer, ThreadedScorer
from preceptor_serve.served_log import LogOptions


def serve(folder, rate, part_rows, port):
    log = LogOptions(folder=Path(folder) / "log", texts=Path(folder) / "texts", rate=rate, part_rows=part_rows)
    uvicorn.run(make_api(ThreadedScorer(FakeScorer()), log=log), host="127.0.0.1", fd=port, log_level="error")


wanted = json.loads(sys.argv[1])
for one in wanted:
    pid = os.fork()
    if not pid:
        for other in wanted:
            if other != one:
                os.close(other[3])
        serve(*one)
        sys.exit(0)
    print(pid, flush=True)
for one in wanted:
    os.close(one[3])
for one in wanted:
    print(*os.wait(), flush=True)
"""
"""A process for each server, forked once the imports, which take longest, are done."""
NUM_REQUESTS = 100
NUM_LARGE = 120
RATE = 0.5


@dataclass(frozen=True)
class Scorer:
    """A process that serves, with its log under `folder`; its parent says on `ends` when it has ended."""

    pid: int
    folder: Path
    session: httpx.Client
    ends: IO[str]

    def end(self, number: signal.Signals) -> None:
        """Returns when the process has ended of `number`."""
        os.kill(self.pid, number)
        assert self.ends.readline().startswith(f"{self.pid} ")


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scorer, Scorer]]:
    """One to be ended and one to be killed, which writes a part for every request."""
    with ExitStack() as stack:
        folders = [tmp_path_factory.mktemp(name) for name in ("ended", "killed")]
        # They listen before anyone serves, so that nobody has to wait for that.
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in folders]
        urls = [f"http://127.0.0.1:{one.getsockname()[1]}" for one in sockets]
        ports = [one.fileno() for one in sockets]
        wanted = [(str(folders[0]), RATE, 40, ports[0]), (str(folders[1]), 1.0, 1, ports[1])]
        command = [sys.executable, "-c", SERVERS, json.dumps(wanted)]
        process = subprocess.Popen(command, pass_fds=ports, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        sessions = [stack.enter_context(httpx.Client(base_url=url, trust_env=False, timeout=30)) for url in urls]
        pids = [int(process.stdout.readline()) for _ in wanted]
        # From now on a dead server refuses.
        for one in sockets:
            one.close()
        ended, killed = (Scorer(*parts, process.stdout) for parts in zip(pids, folders, sessions, strict=True))
        try:
            yield ended, killed
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(timeout=30)
            process.stdout.close()


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


def ask_until_dead(session: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any] | None]:
    """The answers to `body` asked again and again, None where the server died; at most 200."""
    answers: list[dict[str, Any] | None] = []
    while len(answers) < 200 and (not answers or answers[-1] is not None):
        answers.append(ask(session, body | {"request_id": f"large-{len(answers)}"}))
    return answers


def clicks_on_the_best(answers: Sequence[dict[str, Any]]) -> str:
    """Events as JSON Lines: a click on what each answer scores highest, by the caller's id."""
    best = [(answer["request_id"], max(answer["results"], key=lambda result: result["score"])) for answer in answers]
    rows = [{"request_id": name, "action": "click", "document": result["id"]} for name, result in best]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.mark.integration
def test_after_sigterm_every_sampled_request_is_logged_and_its_clicks_are_impressions(
    scorers: tuple[Scorer, Scorer],
) -> None:
    tmp_path, session = scorers[0].folder, scorers[0].session
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: ask(session, body_of(number)), range(NUM_REQUESTS)))
    metrics = session.get("/metrics").text
    scorers[0].end(signal.SIGTERM)
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
    tmp_path, session = scorers[1].folder, scorers[1].session
    large = {"query": "nurse", "profile": "", "documents": large_documents()}
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(ask_until_dead, session, large)
        # Texts of a megabyte take long enough to be written that a part after the first can be caught without its end.
        pause = threading.Event()
        while not list((tmp_path / "log").glob("*.parquet")) and not under_way.done():
            pause.wait(0.001)
        while not any(is_unfinished(file) for file in tmp_path.glob("*/*")) and not under_way.done():
            pause.wait(0.0005)
        scorers[1].end(signal.SIGKILL)
        answers = under_way.result()
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
