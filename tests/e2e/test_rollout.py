"""A new bundle beside, and in the place of, one that answers: a real Ray Serve under real HTTP, and a steady load."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from preceptor.errors import StageFailed
from preceptor.running import free_port
from tests.e2e.asking import ask, bundles, steady_load

pytestmark = pytest.mark.e2e

APP = "preceptor"


@pytest.fixture(scope="module")
def session(local_ray: object, old: Path) -> Iterator[httpx.Client]:
    from ray import serve

    from preceptor_serve.start import run_app

    url = run_app(old, port=free_port(), block=False)
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client
    serve.shutdown()


@pytest.fixture
def rollout(session: httpx.Client) -> Iterator[Any]:
    """The rollout of the application, with the old bundle live before and after; what was staged stays, share 0."""
    from preceptor_serve.rollout import Running

    running = Running(app=APP)
    yield running
    while "nothing to roll back" not in running.rollback():
        pass
    assert running.routing().live == APP


@pytest.fixture
def alone(rollout: Any) -> Any:
    """The same, with nothing beside the old bundle."""
    rollout.retire()
    assert rollout.routing().slots == (APP,)
    return rollout


def series(session: httpx.Client, name: str) -> dict[str, float]:
    """The samples of a series by its labels but `replica`."""
    lines = [line for line in session.get("/metrics").text.splitlines() if line.startswith(name)]
    return {line.rpartition(" ")[0].split("replica=")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_a_candidate_takes_a_share_takes_over_and_gives_back_at_once(
    session: httpx.Client, rollout: Any, new: Path
) -> None:
    before = ask(session).json()
    with steady_load(session.base_url) as load:
        assert "share 0" in rollout.stage(new)
        assert set(bundles(session, range(10))) == {"old"}, "a candidate without a share answers nobody"
        assert "already" in rollout.stage(new)

        rollout.share(0.5)
        first = bundles(session, range(40))
        assert 8 <= first.count("new") <= 32
        assert bundles(session, range(40)) == first, "a member gets the same bundle again"
        models = [model["id"] for model in session.get("/v1/models").json()["data"]]
        assert models == ["old", "new"]
        rollout.share(0.7)
        more = bundles(session, range(40))
        assert all(later == "new" for earlier, later in zip(first, more, strict=True) if earlier == "new")
        assert sum(series(session, "preceptor_canary_answers_total").values()) >= 40

        rollout.rollback()
        assert set(bundles(session, range(40))) == {"old"}, "from the next request on"
        rollout.promote()
        assert set(bundles(session, range(10))) == {"new"}
        assert session.get("/readyz").json()["bundle_id"] in {"old", "new"}
        assert "nothing to promote" in rollout.promote()
        rollout.rollback()
        assert set(bundles(session, range(40))) == {"old"}
    assert len(load.seen) > 50 and load.failures == []
    assert set(load.bundles) == {"old", "new"}
    after = ask(session).json()
    assert after["results"] == before["results"]


def test_shadow_requests_change_no_answer_and_are_compared(
    session: httpx.Client, rollout: Any, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from preceptor.cli import main

    before = [ask(session, number).json()["results"] for number in range(12)]
    rollout.stage(new)
    rollout.shadow(1.0, str(tmp_path / "shadow"))
    name = "preceptor_shadow_requests_total"
    counted = series(session, name)
    answers = [ask(session, number).json() for number in range(12)]
    assert [answer["results"] for answer in answers] == before
    assert {answer["bundle_id"] for answer in answers} == {"old"}
    rollout.shadow(0.0, None)
    # What was under way when the shadow ended is counted when it is answered.
    deadline = time.monotonic() + 30
    while sum(series(session, name).values()) - sum(counted.values()) < 12 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sum(series(session, name).values()) - sum(counted.values()) == 12
    page = tmp_path / "page.html"
    assert main(["compare", str(tmp_path / "shadow"), "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "old (" in said and "new (" in said and "Kendall tau-b" in said and "P(click)" in said
    assert "documents of another grade | 0.0000" in said, "the same weights"
    assert page.read_text().startswith("<!doctype html>")
    assert not any(b"nurse" in file.read_bytes() for file in (tmp_path / "shadow").iterdir())


def test_a_candidate_that_misses_its_known_answers_never_comes_up(
    session: httpx.Client, alone: Any, corrupt: Path
) -> None:
    with pytest.raises(StageFailed, match="known answers differ") as caught:
        alone.stage(corrupt)
    assert "\n" not in str(caught.value)
    assert alone.routing().candidate is None
    assert set(bundles(session, range(5))) == {"old"}


def test_the_command_says_what_it_did_and_refuses_in_one_line(session: httpx.Client, alone: Any) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "preceptor", "rollout", *arguments, "--address", address]
        return subprocess.run(command, capture_output=True, text=True)

    found = run("status")
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[1].split()[:2] == ["live", "old"]
    refused = run("share", "0.1")
    assert refused.returncode == 1
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("preceptor: ")]
    assert "Traceback" not in refused.stderr and line.startswith("preceptor: StageFailed: No candidate is staged.")


def update(bundle: Path) -> None:
    """Serve's own rolling update of the application, as `serve deploy` does it."""
    from ray import serve

    from preceptor_serve.app import AppArgs, build

    args = AppArgs(bundle=str(bundle), max_replicas=1)
    serve.run(build(args), name=APP, route_prefix="/", logging_config={"log_level": "ERROR"})


# The two below replace the application's own scorers: they come last.


def test_an_application_is_updated_under_load(session: httpx.Client, alone: Any, new: Path) -> None:
    with steady_load(session.base_url) as load:
        assert set(bundles(session, range(10))) == {"old"}
        update(new)
        assert set(bundles(session, range(10))) == {"new"}
    assert load.failures == [] and len(load.seen) > 30
    assert set(load.bundles) == {"old", "new"}


@pytest.mark.slow
def test_a_corrupt_update_leaves_the_live_bundle(session: httpx.Client, corrupt: Path) -> None:
    with steady_load(session.base_url) as load:
        (live,) = set(bundles(session, range(10)))
        with pytest.raises(RuntimeError):
            update(corrupt)
        assert set(bundles(session, range(10))) == {live}
    assert load.failures == [] and set(load.bundles) == {live}
