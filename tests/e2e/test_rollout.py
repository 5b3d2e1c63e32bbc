"""A new bundle beside, and in the place of, one that answers: a real Ray Serve under real HTTP, and a steady load."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from preceptor.errors import StageFailed
from preceptor.running import free_port

pytestmark = pytest.mark.e2e

APP = "preceptor"
PAUSE_S = 0.03
DOCUMENTS = ["Staff Nurse (nights), surgical ward.", "Software engineer, remote.", "Baker, early shifts."]


def copied(bundle: Path, to: Path, **changes: object) -> Path:
    """A copy of `bundle` whose bundle.json has these `changes`."""
    shutil.copytree(bundle, to)
    file = to / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return to


@pytest.fixture(scope="module")
def old(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(random_bundle, tmp_path_factory.mktemp("old") / "bundle", bundle_id="old")


@pytest.fixture(scope="module")
def new(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights under another name, ranking by clicks alone."""
    blend = {"relevance": 0.0, "click": 1.0, "apply": 0.0}
    return copied(random_bundle, tmp_path_factory.mktemp("new") / "bundle", bundle_id="new", blend=blend)


@pytest.fixture(scope="module")
def corrupt(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that loads and scores, and does not give its known answers."""
    known = json.loads((random_bundle / "bundle.json").read_text())["known_answers"]
    wrong = [answer | {"logits": [logit + (3.0 if i == 0 else 0.0) for i, logit in enumerate(answer["logits"])]}
             for answer in known]  # fmt: skip
    folder = tmp_path_factory.mktemp("corrupt") / "bundle"
    return copied(random_bundle, folder, bundle_id="corrupt", known_answers=wrong)


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


def ask(session: httpx.Client, number: int = 0) -> httpx.Response:
    body = {"query": "night nurse", "profile": f"Registered nurse number {number}.", "documents": DOCUMENTS}
    return session.post("/v1/score", json=body)


def bundles(session: httpx.Client, numbers: range) -> list[str]:
    return [ask(session, number).json()["bundle_id"] for number in numbers]


@dataclass
class Load:
    """What came back of a steady load: a status and a bundle for each request, in order of their answers."""

    seen: list[tuple[int, str | None]] = field(default_factory=list)

    @property
    def failures(self) -> list[tuple[int, str | None]]:
        return [one for one in self.seen if one[0] != 200]

    @property
    def bundles(self) -> list[str | None]:
        return [bundle for _, bundle in self.seen]


@contextmanager
def steady_load(url: httpx.URL, num_threads: int = 3) -> Iterator[Load]:
    """Members who ask one request after the other while the body runs; at least one more each after it.

    They pause in between: without it they took the cores that the new replica starts on.
    """
    load, done = Load(), threading.Event()

    def member(number: int) -> None:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            last = False
            while not last:
                last = done.is_set()
                number += num_threads
                response = ask(client, number)
                load.seen.append((response.status_code, response.json().get("bundle_id")))
                done.wait(PAUSE_S)

    threads = [threading.Thread(target=member, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        done.set()
        for thread in threads:
            thread.join()


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
