"""Who goes first on one machine: an engine before a local Ray's own work. On Linux; elsewhere nothing changes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import psutil

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


def take_precedence() -> None:
    """Let this thread, and what it starts from now on, go before what gives way: for what computes all the time.

    An engine's threads wait for each other, so that whatever runs in the place of one costs it all of them.
    """
    if _gives_way():
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
    """Whether this thread is one of those that `giving_way` has changed."""
    return hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_BATCH


@contextmanager
def giving_way() -> Iterator[None]:
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
