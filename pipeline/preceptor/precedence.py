"""Who goes first on one machine: an engine before a local Ray's own work. On Linux; elsewhere nothing changes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

# What follows a local cluster's work and does none of it: Ray Data's own actors, and daemons, but neither raylet and
# gcs_server, whose heartbeats must not be late, nor who prepares workers' environments. Titles, or ends of paths.
_FOLLOWERS: Final = (
    "ray::_StatsActor",
    "ray::_AutoscalingCoordinatorActor",
    "ray::ActorLocationTracker",
    "ray::DashboardAgent",
    "/ray/dashboard/dashboard.py",
)
# Of these, who may stand still: nobody waits for them, and a raylet that ends kills them, standing or not. Ray Data
# waits for its ActorLocationTracker before it hands out a task, and a daemon that stands does not see its raylet end.
_STANDING: Final = ("ray::_StatsActor", "ray::_AutoscalingCoordinatorActor")
_STAND_S: Final = 2.0
_MOVE_S: Final = 0.1


def take_precedence() -> bool:
    """Let this thread, and what it starts from now on, go before what gives way: for what computes all the time.

    An engine's threads wait for each other, so that whatever runs in the place of one costs it all of them. Returns
    whether anything gives way here.
    """
    if not _gives_way():
        return False
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return True


def wait_for_idle_cpus() -> None:
    """Let this thread, and those it starts from now on, take what CPU an engine leaves idle: in a local Ray, on Linux.

    Of a busy CPU they get 0.3 %. For good: there is no way back without a privilege.
    """
    if _gives_way():
        _wait_for_idle(0)


def let_wait_for_idle_cpus(name: str) -> None:
    """Let this process's threads of this name, as the kernel keeps it, take what CPU is idle, as above. On Linux."""
    for thread in Path("/proc/self/task").iterdir():
        # It may have ended meanwhile.
        with suppress(OSError):
            if (thread / "comm").read_text().strip() == name:
                _wait_for_idle(int(thread.name))


def _wait_for_idle(thread: int) -> None:
    """The thread of this id, 0 for the one that asks, waits for idle CPUs, unless it has ended."""
    with suppress(ProcessLookupError):
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


@contextmanager
def followers_standing() -> Iterator[None]:
    """While the body runs, those of a local Ray's processes that only follow what others do take what CPU is idle, and
    those that nobody waits for stand still but for a tenth of a second every two.

    An engine's threads wait for each other at every product of matrices: a hundredth of one CPU taken from it costs it
    a hundredth of its speed, however many it has. Each of Ray Data's three actors looks for signals 100 times a second,
    for half a hundredth; waiting for idle CPUs does not hold them up, as each is sure of 0.3 % of a busy one.
    """
    if not _gives_way():
        yield
        return
    with ExitStack() as stack:
        followers = [_held(process, stack) for process in psutil.Process().children(recursive=True)]
        stood = threading.Event()
        turns = threading.Thread(
            target=_take_turns,
            args=([follower for follower in followers if follower is not None], stood),
            daemon=True,
            name="followers-standing",
        )
        turns.start()
        try:
            yield
        finally:
            stood.set()
            turns.join()


def _held(process: psutil.Process, stack: ExitStack) -> int | None:
    """A descriptor of `process`, which `stack` closes, if it may stand still. Followers wait for idle CPUs from now."""
    # OSError: it has just ended, or the kernel knows no descriptors of processes (Linux before 5.3).
    with suppress(psutil.NoSuchProcess, OSError):
        if is_called(process, _FOLLOWERS):
            for thread in process.threads():
                _wait_for_idle(thread.id)
        if is_called(process, _STANDING):
            # Not by its id: another process might have that one day.
            descriptor = os.pidfd_open(process.pid)
            stack.callback(os.close, descriptor)
            return descriptor if process.is_running() else None
    return None


def _take_turns(followers: Sequence[int], stood: threading.Event) -> None:
    while not stood.is_set():
        _send(followers, signal.SIGSTOP)
        stood.wait(_STAND_S)
        _send(followers, signal.SIGCONT)
        stood.wait(_MOVE_S)


def _send(followers: Sequence[int], number: signal.Signals) -> None:
    for follower in followers:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(follower, number)


def is_called(process: psutil.Process, names: tuple[str, ...]) -> bool:
    """Whether an argument of `process`, or its title, ends with one of `names`; NoSuchProcess where it has ended."""
    return any(argument.strip().endswith(names) for argument in process.cmdline())


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
