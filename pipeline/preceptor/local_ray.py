"""A Ray for the length of a body: a cluster that is there already, or a local one of this process's own."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import psutil

from preceptor.precedence import giving_way, is_called

LOCAL_CPUS: Final = 8
"""Logical CPUs of a local cluster: fewer deadlock, because an engine and the stages around it hold one each."""

# Of a local cluster. Eight idle workers started for nobody, what all processes say of themselves every few seconds, and
# workers behind everything else in priority cost an engine on two cores 0.1 of one (bench/label_throughput.py). An idle
# worker looks for signals 100 times a second, 0.8 % of a core, and Ray would keep as many as there are CPUs for ever.
_QUIET_RAY: Final = {
    "RAY_num_workers_soft_limit": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "15000",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_worker_niceness": "0",
    "RAY_task_events_report_interval_ms": "0",
}
# Ray Train looks every 2 s whether its workers have ended, and starts a process that waits for the machine to be taken
# away: together a third of a short training on this machine alone.
_PROMPT_TRAIN: Final = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
# Serve notices a dead proxy after three checks, 10 s apart unless told, and gives a replica that answers no check 20 s
# more to end in good order, which it cannot.
SERVE_ENV: Final = {
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
}
"""What Serve is told, here and in cluster.yaml."""
# Of a local cluster, which has one node and sends no worker's output to drivers, these have nothing to do, and look
# around for ever.
_IDLERS: Final = ("/ray/_private/log_monitor.py", "/ray/autoscaler/_private/monitor.py")
_ENDING_S: Final = 3.0
"""How long a local cluster's processes may take to end by themselves once it is shut down."""

# Of a local cluster's workers, which inherit them: a runtime environment that said the same would put a process of its
# own before every worker's, 0.8 s of a core each time.
_WORKER_ENV: Final = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@contextmanager
def ray_cluster() -> Iterator[None]:
    """A running Ray, for stages: as `serving_ray`, with Ray Data loaded and quiet."""
    with serving_ray():
        _quieten_data()
        yield


@contextmanager
def serving_ray(*, object_store_bytes: int = 2**30) -> Iterator[None]:
    """A running Ray: the cluster of ``RAY_ADDRESS`` where it is set, otherwise a local one that ends with the body.

    `object_store_bytes` is memory for objects of a local one; what does not fit is spilled to disk. All of a local one
    gives way but what takes precedence. Ray Data is not loaded: that takes a server, which has no use for it, seconds.
    """
    # Ray's core reports, as errors, states that it recovers from by itself; set before it is loaded.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
        yield
        return
    with giving_way(), _local(object_store_bytes):
        yield


@contextmanager
def _local(object_store_bytes: int) -> Iterator[None]:
    import ray

    for name, value in (_QUIET_RAY | _PROMPT_TRAIN | SERVE_ENV | _WORKER_ENV).items():
        os.environ.setdefault(name, value)
    # Ray's sockets live below this folder and their paths may hold 107 bytes at most, hence the system's own.
    folder = tempfile.mkdtemp(prefix="pcp")
    ray.init(
        address="local",
        num_cpus=max(LOCAL_CPUS, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=object_store_bytes,
        _temp_dir=folder,
    )
    _quieten()
    _end_idlers(folder)
    try:
        yield
    finally:
        started = _processes_of(folder)
        ray.shutdown()
        _end(started)
        shutil.rmtree(folder, ignore_errors=True)


def _processes_of(folder: str) -> list[psutil.Process]:
    """This process's children that were told of `folder`, a local cluster's daemons, and all they started."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if any(folder in argument for argument in child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def _end_idlers(folder: str) -> None:
    for process in _processes_of(folder):
        with suppress(psutil.NoSuchProcess):
            if is_called(process, _IDLERS):
                process.kill()


def _end(processes: Sequence[psutil.Process]) -> None:
    """Wait for `processes`, and kill those that have not ended: Ray Train's controller can stay for ever, 400 MB.

    It hangs in a lock after its interpreter has ended (Ray 2.60), also where the driver ended in good order.
    """
    # Not psutil.wait_procs: it waits for zombies too, which a container's first process may never reap.
    deadline_s = time.monotonic() + _ENDING_S
    while (left := [process for process in processes if _is_running(process)]) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _quieten() -> None:
    """Leave the terminal to this project's own lines of progress."""
    for name in ("ray._private.worker", "ray.llm", "ray.serve", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A logger below ray.llm gives itself a handler and a level of its own where ray.llm has no handler.
    logging.getLogger("ray.llm").addHandler(logging.NullHandler())


def _quieten_data() -> None:
    """The same for Ray Data, which gives its loggers their levels when it is loaded."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Actors' restarts and concurrency have no named parameter in Ray 2.60, and it warns of their going in 2.64.
    warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
