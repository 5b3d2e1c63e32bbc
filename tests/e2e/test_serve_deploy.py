"""`serve deploy serve/serve.yaml` on a cluster of its own, as an operator uses it: an update under load, a bad one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from preceptor.running import free_port
from tests.e2e.asking import ask, bundles, steady_load
from tests.head_node import head_node

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

REPOSITORY = Path(__file__).resolve().parents[2]
APP = "preceptor"
WAIT_S = 180


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    with head_node() as url:
        yield url


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def session(dashboard: str, port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        yield client


def deploy(bundle: Path, *, port: int, dashboard: str, folder: Path) -> None:
    """`serve deploy` of serve/serve.yaml as it is shipped, but for its bundle and port."""
    shipped: dict[str, Any] = yaml.safe_load((REPOSITORY / "serve" / "serve.yaml").read_text())
    shipped["http_options"]["port"] = port
    shipped["applications"][0]["args"]["bundle"] = str(bundle)
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(shipped))
    command = [str(Path(sys.executable).with_name("serve")), "deploy", str(file), "--address", dashboard]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "RAY_AUTH_MODE": "disabled"})
    assert ran.returncode == 0, ran.stderr


def application(dashboard: str) -> dict[str, Any]:
    """What Serve says of the application."""
    answer = httpx.get(f"{dashboard}/api/serve/applications/", timeout=30, trust_env=False)
    found: dict[str, Any] = answer.json()["applications"].get(APP, {})
    return found


def wait_for(status: str, dashboard: str) -> dict[str, Any]:
    """The application once it has `status`; Serve tells of a change only to those who ask."""
    end_s = time.monotonic() + WAIT_S
    while (found := application(dashboard)).get("status") != status:
        assert time.monotonic() < end_s, found
        time.sleep(0.2)
    return found


def test_serve_deploy_updates_under_load_and_a_bad_bundle_changes_nothing(
    dashboard: str, port: int, session: httpx.Client, old: Path, new: Path, corrupt: Path, tmp_path: Path
) -> None:
    deploy(old, port=port, dashboard=dashboard, folder=tmp_path)
    wait_for("RUNNING", dashboard)
    assert ask(session).json()["bundle_id"] == "old"

    with steady_load(session.base_url) as load:
        assert set(bundles(session, range(10))) == {"old"}
        deploy(new, port=port, dashboard=dashboard, folder=tmp_path)
        wait_for("DEPLOYING", dashboard)
        wait_for("RUNNING", dashboard)
        assert set(bundles(session, range(10))) == {"new"}
    assert load.failures == [] and len(load.seen) > 30
    assert set(load.bundles) == {"old", "new"}

    with steady_load(session.base_url) as load:
        deploy(corrupt, port=port, dashboard=dashboard, folder=tmp_path)
        failed = wait_for("DEPLOY_FAILED", dashboard)
        assert set(bundles(session, range(10))) == {"new"}
    assert "known answers differ" in str(failed)
    assert load.failures == [] and set(load.bundles) == {"new"}

    deploy(new, port=port, dashboard=dashboard, folder=tmp_path)
    wait_for("RUNNING", dashboard)
    assert set(bundles(session, range(10))) == {"new"}
