"""Starting the application on one machine: what `preceptor serve` and a run's served examples call."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import serve

from preceptor.errors import InputError, StageFailed
from preceptor_serve.app import AppArgs, build
from preceptor_serve.board import forget_routing
from preceptor_serve.bundle_check import reason_of, require_readable
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.keys import Guard, read_keys, require_guarded
from preceptor_serve.served_log import LogOptions

APP_NAME = "preceptor"


def run_app(
    bundle: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: Path | None = None,
    guard: Guard = "keys",
    engine: EngineOptions | None = None,
    log: LogOptions | None = None,
    replicas: int = 1,
    block: bool = True,
) -> str:
    """The URL at which `bundle` answers. Ray must be running: the caller owns the cluster.

    The `replicas` share this machine's cores, unless `engine` says how many threads each has. One answers a request
    soonest and holds the weights once; several answer more of them a second, for no thread of one waits for another's.

    Returns once /readyz answers 200, or, with `block`, after Ctrl-C or SIGTERM, with Serve shut down. InputError where
    the bundle, the port, the file of `keys` or the number of `replicas` cannot be used, or where `host` lets others in
    and nothing asks who they are; StageFailed where the application does not come up.
    """
    if not ray.is_initialized():
        raise StageFailed("Ray is not running in this process. Call ray.init first.")
    require_guarded(host, keys=keys, guard=guard)
    if block:
        # A service manager ends it so; Ray's own handler would end the process where it stands.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    keys_file = None if keys is None else str(_some_keys(keys))
    if not 1 <= replicas <= num_cores():
        raise InputError(f"--replicas must be 1 to {num_cores()}, this machine's cores, got {replicas}.")
    options = engine or EngineOptions()
    options = replace(options, threads=options.threads or max(1, num_cores() // replicas))
    # Read here first: most bundles at fault are found out before anything starts.
    require_readable(bundle)
    _require_free(host, port)
    logging_config = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port}, logging_config=logging_config)
    try:
        # One CPU of Ray's count stays for the Edge; which cores there are is the engines' to use all the same.
        share = max(1.0, ray.cluster_resources().get("CPU", 1.0) - 1) / replicas
        args = AppArgs(
            bundle=str(bundle.resolve()),
            keys_file=keys_file,
            engine=options,
            log=log,
            min_replicas=replicas,
            max_replicas=replicas,
            num_cpus=min(options.threads, share),
        )
        application = build(args)
        # What an earlier Serve of this cluster was in the middle of: its candidates ended with it.
        forget_routing(APP_NAME)
        serve.run(application, name=APP_NAME, route_prefix="/", logging_config=logging_config)
    except RuntimeError as error:
        serve.shutdown()
        raise reason_of(error, bundle) from error
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    _wait_ready(url, deadline_s=60.0)
    if block:
        address = ray.get_runtime_context().gcs_address
        print(f"serving {bundle} at {url}\ntry: {_example(url, keys_file)}", flush=True)
        print(f"try another bundle beside it: preceptor rollout stage BUNDLE --address {address}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        # The application first, which answers what is under way; a shutdown alone would end its ingress at once.
        serve.delete(APP_NAME)
        serve.shutdown()
    return url


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _some_keys(file: Path) -> Path:
    """`file`, resolved; InputError where it holds no key, since nobody could ask anything then."""
    if not read_keys(file):
        raise InputError(f"{file}: no key. Make one with: preceptor keys add NAME --file {file}")
    return file.resolve()


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"{host}:{port} cannot be bound ({error.strerror}). Choose another --port.") from error


def _wait_ready(url: str, *, deadline_s: float) -> None:
    """Nothing, once ``url/readyz`` is 200; StageFailed after `deadline_s`."""
    end_s = time.monotonic() + deadline_s
    # The loopback is asked directly: a proxy from the environment could not reach it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < end_s:
        with contextlib.suppress(urllib.error.URLError, OSError), opener.open(f"{url}/readyz", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise StageFailed(f"{url}/readyz: not 200 within {deadline_s:g} s. Look at the Serve logs.")


def _example(url: str, keys_file: str | None) -> str:
    key = "" if keys_file is None else "-H 'Authorization: Bearer KEY' "
    body: dict[str, Any] = {"query": "night nurse", "profile": "Registered nurse, Leeds.", "documents": ["Staff Nurse"]}
    return f"curl -s {url}/v1/score {key}-H 'Content-Type: application/json' -d '{json.dumps(body)}'"
