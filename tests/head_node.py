"""A Ray cluster of one node with its dashboard, started by `ray start` as an operator would, on the loopback alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from preceptor.running import free_port


@contextmanager
def head_node(num_cpus: int = 8) -> Iterator[str]:
    """The dashboard's address, which takes jobs and Serve's applications; all processes end with the body."""
    # A short path: Ray keeps sockets there, and a socket's path holds 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        # `python` in an entry point is the cluster's.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    dashboard, agent = free_port(), free_port()
    # The agent takes the jobs. Its default port is fixed, and the other tests' cluster holds it: an agent that cannot
    # have its port stays alive without answering.
    options = {
        "--num-cpus": num_cpus,
        "--node-ip-address": "127.0.0.1",
        "--port": free_port(),
        "--dashboard-host": "127.0.0.1",
        "--dashboard-port": dashboard,
        "--dashboard-agent-listen-port": agent,
        "--object-store-memory": 2**28,
        "--temp-dir": folder,
    }
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--include-dashboard=true"]
    command += [f"{name}={value}" for name, value in options.items()]
    with (folder / "cluster.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        _wait_until_up(f"{url}/api/version", process, folder / "cluster.log")
        _wait_until_up(f"http://127.0.0.1:{agent}/api/local_raylet_healthz", process, folder / "cluster.log")
        yield url
    finally:
        if process.poll() is None:
            # All at once: `ray start`, asked to end, waits 30 s for them one after the other.
            for member in [*psutil.Process(process.pid).children(recursive=True), process]:
                # The raylet's end may have ended it by now.
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Nothing, once `url` answers; a port that opens gives no event, so it is asked again and again."""
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s and process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5).is_success:
                return
        time.sleep(0.2)
    pytest.fail(f"the cluster did not start: {log.read_text()}")
