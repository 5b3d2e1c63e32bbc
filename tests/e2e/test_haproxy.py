"""The application behind HAProxy instead of Serve's Python proxy: answers, what listens where, a dead edge.

Ray Serve decides for HAProxy by its environment when it is loaded, so all of it is in a process of its own:

    PYTHONPATH=. python tests/e2e/test_haproxy.py BUNDLE
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_REQUESTS = 20


@pytest.fixture(scope="module")
def found(random_bundle: Path) -> dict[str, Any]:
    """What the other process saw."""
    ran = subprocess.run(
        [sys.executable, __file__, str(random_bundle)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=180,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    seen: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return seen


def test_requests_are_answered_through_haproxy(found: dict[str, Any]) -> None:
    assert found["num_answered"] == NUM_REQUESTS


def test_a_dead_edge_is_passed_over(found: dict[str, Any]) -> None:
    assert found["num_answered_after"] == NUM_REQUESTS


def test_all_of_haproxy_listens_on_the_loopback(found: dict[str, Any]) -> None:
    listening = {address for address, _ in found["listening"]}
    assert len(found["listening"]) >= 3
    assert listening == {"127.0.0.1"}


def test_its_admin_socket_is_its_owners_alone(found: dict[str, Any]) -> None:
    assert found["socket_modes"] == ["600"]


def seen_behind_haproxy(bundle: Path) -> dict[str, Any]:
    """What a client and the operating system see of `bundle` behind HAProxy, before and after an edge is killed."""
    from bench.peers.serve_cluster import Shape, serving
    from preceptor_serve.client import Client

    with serving(bundle, Shape(num_scorers=1, num_edges=2)) as cluster, Client(cluster.url, timeout_s=30) as client:

        def answered(first: int) -> int:
            numbers = range(first, first + NUM_REQUESTS)
            return sum(
                len(client.score("nurse", f"Registered nurse, case {number}.", ["Staff Nurse", "Baker"]).results) == 2
                for number in numbers
            )

        before = answered(0)
        ours = psutil.Process().children(recursive=True)
        haproxies = [process for process in ours if process.name() == "haproxy"]
        listening = {
            (connection.laddr.ip, connection.laddr.port)
            for process in haproxies
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        # Ray puts a folder of the proxy's own between.
        socket = Path(os.environ["RAY_SERVE_HAPROXY_SOCKET_PATH"])
        modes = {file.stat().st_mode & 0o777 for file in socket.parent.rglob(socket.name)}
        os.kill(min(cluster.pids("edge").values()), signal.SIGKILL)
        return {
            "num_answered": before,
            "num_answered_after": answered(100),
            "listening": sorted(listening),
            "socket_modes": [f"{mode:o}" for mode in modes],
        }


if __name__ == "__main__":
    from preceptor_serve.ingress import coming_in_by

    with coming_in_by("haproxy"):
        print(json.dumps(seen_behind_haproxy(Path(sys.argv[1]))))
