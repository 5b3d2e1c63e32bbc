"""`preceptor serve` as a user starts it: HAProxy takes requests in and is replaced when dead; SIGTERM ends it all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from preceptor.running import free_port

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).resolve().parents[2]
ASKED = {"query": "night nurse", "profile": "Registered nurse, Leeds.", "documents": ["Staff Nurse", "Baker"]}
UP_WITHIN_S = 120.0
NUM_LAST = 4


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a client, the operating system and the folder of temporary files showed."""

    num_scored: int
    listening: dict[str, set[str]]
    """Addresses that HAProxy listens on, by port."""
    port: str
    while_replaced: list[int]
    """Statuses of answers after HAProxy was killed, up to the first score; 0 where nobody took the call."""
    num_under_way: int
    """Requests not answered yet when SIGTERM was sent."""
    last_statuses: list[int]
    """Statuses of those, and of others sent with them."""
    exit_code: int
    left_running: list[str]
    left_files: list[str]


@pytest.fixture(scope="module")
def seen(random_bundle: Path) -> Iterator[Seen]:
    port = free_port()
    # Not pytest's folder: the path of a Unix socket holds 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="srv") as folder:
        command = [sys.executable, "-m", "preceptor", "serve", "--bundle", str(random_bundle), "--port", str(port)]
        paths = ("pipeline", "serve", ".")
        environment = os.environ | {
            "TMPDIR": folder,
            "PYTHONPATH": os.pathsep.join(str(REPOSITORY / path) for path in paths),
        }
        server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith(b"serving ")
            yield seen_of(server, port, Path(folder))
        finally:
            server.kill()
            server.wait()


def seen_of(server: subprocess.Popen[bytes], port: int, folder: Path) -> Seen:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
        answer = client.post("/v1/score", json=ASKED).json()
        started = psutil.Process(server.pid).children(recursive=True)
        (haproxy,) = [process for process in started if process.name() == "haproxy"]
        listening: dict[str, set[str]] = {}
        for connection in haproxy.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                listening.setdefault(str(connection.laddr.port), set()).add(connection.laddr.ip)
        haproxy.kill()
        while_replaced = statuses_until_scored(client, server)
    started = psutil.Process(server.pid).children(recursive=True)
    with ThreadPoolExecutor(NUM_LAST) as callers:
        calls = [callers.submit(status_of_long_request, port, number) for number in range(NUM_LAST)]
        wait(calls, return_when=FIRST_COMPLETED)
        num_under_way = sum(not call.done() for call in calls)
        server.send_signal(signal.SIGTERM)
        last_statuses = [call.result() for call in calls]
    exit_code = server.wait(timeout=60)
    _, alive = psutil.wait_procs(started, timeout=20)
    return Seen(
        num_scored=len(answer["results"]),
        listening=listening,
        port=str(port),
        while_replaced=while_replaced,
        num_under_way=num_under_way,
        last_statuses=last_statuses,
        exit_code=exit_code,
        left_running=[process.name() for process in alive],
        left_files=sorted(file.name for file in folder.iterdir()),
    )


def status_of_long_request(port: int, number: int) -> int:
    """The status of a request that computes for a while; 0 where the connection was cut."""
    documents = [f"Posting {number} {place}: " + "ward, permanent, days and nights; " * 30 for place in range(100)]
    try:
        url = f"http://127.0.0.1:{port}/v1/score"
        return httpx.post(url, json={**ASKED, "documents": documents}, trust_env=False, timeout=60).status_code
    except httpx.TransportError:
        return 0


def statuses_until_scored(client: httpx.Client, server: subprocess.Popen[bytes]) -> list[int]:
    """The status of each answer up to the first 200; 0 where there was none."""
    statuses: list[int] = []
    end_s = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < end_s and server.poll() is None:
        status = 0
        with suppress(httpx.TransportError):
            status = client.post("/v1/score", json=ASKED).status_code
        if status == 200:
            return statuses
        statuses.append(status)
        time.sleep(0.05)
    raise AssertionError(f"no score within {UP_WITHIN_S:g} s, exit code {server.poll()}, statuses {set(statuses)}")


def test_a_request_is_scored(seen: Seen) -> None:
    assert seen.num_scored == 2


def test_haproxy_takes_requests_in_on_the_loopback_alone(seen: Seen) -> None:
    assert seen.port in seen.listening
    assert set.union(*seen.listening.values()) == {"127.0.0.1"}


def test_a_dead_haproxy_is_replaced_and_nobody_is_told_that_there_is_nothing(seen: Seen) -> None:
    """Until there is another, calls are not taken, or answered with what our client asks again after."""
    assert seen.while_replaced and set(seen.while_replaced) <= {0, 500, 503}


def test_what_is_under_way_at_sigterm_is_answered(seen: Seen) -> None:
    assert seen.num_under_way > 0
    assert seen.last_statuses == [200] * NUM_LAST


def test_sigterm_ends_everything_it_started(seen: Seen) -> None:
    assert seen.exit_code == 0
    assert seen.left_running == []


def test_nothing_stays_in_the_folder_of_temporary_files(seen: Seen) -> None:
    assert [name for name in seen.left_files if name.startswith("pcp")] == []
