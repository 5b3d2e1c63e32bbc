"""A job entry point, submitted to a real local Ray cluster that was started for it alone."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from preceptor.running import free_port

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The dashboard's address of a cluster of 8 logical CPUs; all its processes end with the module."""
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
        "--num-cpus": 8,
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
        wait_until_up(f"{url}/api/version", process, folder / "cluster.log")
        wait_until_up(f"http://127.0.0.1:{agent}/api/local_raylet_healthz", process, folder / "cluster.log")
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


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Nothing, once `url` answers; a port that opens gives no event, so it is asked again and again."""
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s and process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5).is_success:
                return
        time.sleep(0.2)
    pytest.fail(f"the cluster did not start: {log.read_text()}")


@pytest.fixture
def client(cluster: str, monkeypatch: pytest.MonkeyPatch) -> JobSubmissionClient:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return JobSubmissionClient(cluster)


def run_to_the_end(client: JobSubmissionClient, entrypoint: str) -> tuple[JobStatus, str]:
    """How the job ended, and what it printed."""
    runtime_env = yaml.safe_load((REPOSITORY / "jobs" / "runtime_env.yaml").read_text())
    job = client.submit_job(entrypoint=entrypoint, runtime_env={**runtime_env, "working_dir": str(REPOSITORY)})

    async def logs() -> str:
        return "".join([lines async for lines in client.tail_job_logs(job)])

    printed = asyncio.run(logs())
    return client.get_job_status(job), printed


def test_a_job_runs_a_stage_on_the_cluster_it_was_submitted_to(client: JobSubmissionClient, tmp_path: Path) -> None:
    command = f"python jobs/run.py tiny --root {tmp_path} --only corpus"
    status, printed = run_to_the_end(client, command)
    assert status == JobStatus.SUCCEEDED, printed
    (file,) = (tmp_path / "corpus").glob("*/record.json")
    record = json.loads(file.read_text())
    assert record["stage"] == "market"
    assert record["num_rows_kept"] > 0

    status, printed = run_to_the_end(client, command)
    assert status == JobStatus.SUCCEEDED, printed
    assert json.loads(file.read_text()) == record, "the second job redid a finished stage"


def test_a_job_that_cannot_run_fails_with_the_one_line(client: JobSubmissionClient, tmp_path: Path) -> None:
    status, printed = run_to_the_end(client, f"python jobs/run.py no-such-recipe --root {tmp_path}")
    assert status == JobStatus.FAILED
    assert "no-such-recipe" in printed
    assert "Traceback" not in printed
