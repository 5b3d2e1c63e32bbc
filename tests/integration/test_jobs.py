"""A job entry point, submitted to a real local Ray cluster that was started for it alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.head_node import head_node

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The dashboard's address of a cluster of 8 logical CPUs; all its processes end with the module."""
    with head_node() as url:
        yield url


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
