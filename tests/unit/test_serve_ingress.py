"""Where HTTP comes in: what is chosen, and what Serve is told of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from preceptor.errors import InputError
from preceptor_serve.ingress import choose_ingress, coming_in_by


@pytest.fixture(autouse=True)
def on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def told() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "HAPROXY" in name or "HA_PROXY" in name}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_haproxy_takes_requests_of_this_machine(host: str) -> None:
    assert choose_ingress(None, host=host) == "haproxy"


def test_on_other_interfaces_only_who_asks_gets_it() -> None:
    """Behind HAProxy edges listen on ports of their own, on the same interface."""
    assert choose_ingress(None, host="0.0.0.0") == "python"
    assert choose_ingress("haproxy", host="0.0.0.0") == "haproxy"


def test_python_is_to_be_had_everywhere() -> None:
    assert choose_ingress("python", host="127.0.0.1") == "python"


def test_a_cluster_has_the_ingress_that_it_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert choose_ingress(None, host="127.0.0.1") == "python"
    with pytest.raises(InputError, match="--ingress haproxy: RAY_ADDRESS names a cluster"):
        choose_ingress("haproxy", host="127.0.0.1")


def test_where_it_is_not_installed_python_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert choose_ingress(None, host="127.0.0.1") == "python"
    with pytest.raises(InputError, match="preceptor-haproxy is missing"):
        choose_ingress("haproxy", host="127.0.0.1")


def test_serve_is_told_for_as_long_as_it_runs() -> None:
    before = dict(os.environ)
    with coming_in_by("haproxy"):
        assert told()["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        folder = Path(told()["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent
        # Ray adds a folder named by a node's id, 56 digits, and a process's name.
        assert folder.is_dir() and len(str(folder)) < 30
    assert dict(os.environ) == before and not folder.exists()


def test_the_other_ingress_needs_no_word() -> None:
    before = dict(os.environ)
    with coming_in_by("python"):
        assert dict(os.environ) == before


def test_what_is_set_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_NBTHREAD", "3")
    with coming_in_by("haproxy"):
        assert os.environ["RAY_SERVE_HAPROXY_NBTHREAD"] == "3"
    assert os.environ["RAY_SERVE_HAPROXY_NBTHREAD"] == "3"


def test_two_on_one_machine_share_no_port() -> None:
    names = ("HAPROXY_STATS_PORT", "HAPROXY_METRICS_PORT", "FALLBACK_PROXY_HTTP_PORT")
    found = []
    for _ in range(2):
        with coming_in_by("haproxy"):
            found += [os.environ[f"RAY_SERVE_{name}"] for name in names]
    assert len(set(found)) == 6
