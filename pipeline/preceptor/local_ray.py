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
_PROMPT_SERVE: Final = {
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
}
# What follows a local cluster's work and does none of it: Ray Data's own actors, and daemons, but neither raylet and
# gcs_server, whose heartbeats must not be late, nor who prepares workers' environments. Titles, or ends of paths.
_FOLLOWERS: Final = (
    "ray::_StatsActor",
    "ray::_AutoscalingCoordinatorActor",
    "ray::ActorLocationTracker",
    "ray::DashboardAgent",
    "/ray/_private/log_monitor.py",
    "/ray/autoscaler/_private/monitor.py",
    "/ray/dashboard/dashboard.py",
)
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


def take_precedence() -> None:
    """Let this thread, and what it starts from now on, go before what gives way: for what computes all the time.

    An engine's threads wait for each other, so that whatever runs in the place of one costs it all of them.
    """
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_BATCH:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def wait_for_idle_cpus() -> None:
    """Let this thread, and those it starts from now on, take what CPU an engine leaves idle: in a local Ray, on Linux.

    Of a busy CPU they get 0.3 %. For good: there is no way back without a privilege.
    """
    if _gives_way():
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def let_followers_wait() -> None:
    """The same for those of a local Ray's processes that only follow what the others do.

    An engine's threads wait for each other at every product of matrices: a hundredth of one CPU taken from it costs it
    a hundredth of its speed, however many it has. The followers and Ray Data's loop took 6 to 8 hundredths.
    """
    if not _gives_way():
        return
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, PermissionError):
            if _follows(process.cmdline()):
                for thread in process.threads():
                    with suppress(ProcessLookupError):
                        os.sched_setscheduler(thread.id, os.SCHED_IDLE, os.sched_param(0))


def _follows(command: Sequence[str]) -> bool:
    return any(argument.strip().endswith(_FOLLOWERS) for argument in command)


def _gives_way() -> bool:
    """Whether this thread is one of those that `_giving_way` has changed."""
    return hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) in (os.SCHED_BATCH, os.SCHED_IDLE)


@contextmanager
def _giving_way() -> Iterator[None]:
    """Processes started in the body, Ray's daemons and workers, never push aside what runs when they wake (on Linux).

    They get as much of the machine as before, at moments of the scheduler's choosing.
    """
    if not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        take_precedence()


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
    with _giving_way(), _local(object_store_bytes):
        yield


@contextmanager
def _local(object_store_bytes: int) -> Iterator[None]:
    import ray

    for name, value in (_QUIET_RAY | _PROMPT_TRAIN | _PROMPT_SERVE | _WORKER_ENV).items():
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


def _end(processes: Sequence[psutil.Process]) -> None:
    """Wait for `processes`, and kill those that have not ended: Ray Train's controller can stay for ever, 400 MB.

    It hangs in a lock after its interpreter has ended (Ray 2.60), also where the driver ended in good order.
    """
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
