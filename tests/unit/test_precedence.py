"""A local Ray's processes give way to what computes all the time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from preceptor.precedence import take_precedence

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux's scheduling policies")

PRINTED = "import os; print(os.sched_getscheduler(0))"


def policies(body: str) -> list[int]:
    """What a process that runs `body` prints: scheduling policies."""
    names = "followers_standing, giving_way, let_wait_for_idle_cpus, take_precedence, wait_for_idle_cpus"
    script = f"import os, subprocess, sys\nfrom preceptor.precedence import {names}\n{body}"
    # A Ray of this process may have it giving way already, and children inherit that: take_precedence undoes it.
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        preexec_fn=take_precedence,
    )
    return [int(line) for line in ran.stdout.split()]


def test_what_is_started_in_the_body_gives_way_and_the_process_only_meanwhile() -> None:
    body = f"""
with giving_way():
    print(os.sched_getscheduler(0), flush=True)
    subprocess.run([sys.executable, "-c", {PRINTED!r}])
print(os.sched_getscheduler(0), flush=True)
"""
    assert policies(body) == [os.SCHED_BATCH, os.SCHED_BATCH, os.SCHED_OTHER]


def test_an_engine_takes_precedence_with_all_it_starts() -> None:
    body = f"""
with giving_way():
    take_precedence()
    subprocess.run([sys.executable, "-c", {PRINTED!r}])
"""
    assert policies(body) == [os.SCHED_OTHER]


def test_another_policy_is_left_alone() -> None:
    body = """
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
with giving_way():
    take_precedence()
    print(os.sched_getscheduler(0), flush=True)
"""
    assert policies(body) == [os.SCHED_IDLE]


def test_a_thread_waits_for_idle_cpus_and_the_process_does_not() -> None:
    body = """
import threading
def follow():
    wait_for_idle_cpus()
    print(os.sched_getscheduler(0), flush=True)
with giving_way():
    thread = threading.Thread(target=follow)
    thread.start()
    thread.join()
    print(os.sched_getscheduler(0), flush=True)
"""
    assert policies(body) == [os.SCHED_IDLE, os.SCHED_BATCH]


def test_threads_of_a_name_wait_for_idle_cpus_and_others_do_not() -> None:
    body = """
import ctypes, threading
PR_SET_NAME = 15
def link(name, named, ended):
    ctypes.CDLL(None).prctl(PR_SET_NAME, name)
    named.wait()
    ended.wait()
    found.append(os.sched_getscheduler(0))
found, ended = [], threading.Event()
for name in (b"link", b"other", b"link"):
    named = threading.Barrier(2)
    thread = threading.Thread(target=link, args=(name, named, ended))
    thread.start()
    named.wait()
let_wait_for_idle_cpus("link")
ended.set()
for thread in threading.enumerate()[1:]:
    thread.join()
print(*found, os.sched_getscheduler(0))
"""
    assert sorted(policies(body)) == sorted([os.SCHED_IDLE] * 2 + [os.SCHED_OTHER] * 2)


def test_without_a_local_ray_nobody_waits_for_idle_cpus() -> None:
    body = """
wait_for_idle_cpus()
print(os.sched_getscheduler(0), flush=True)
"""
    assert policies(body) == [os.SCHED_OTHER]


def test_followers_alone_stand_still_and_go_on_afterwards() -> None:
    body = """
import psutil
def child(title):
    return subprocess.Popen([title, "-c", "input()"], executable=sys.executable, stdin=subprocess.PIPE)
def standing(one):
    return int(psutil.Process(one.pid).status() == psutil.STATUS_STOPPED)
with giving_way():
    titles = "ray::_StatsActor", "ray::ActorLocationTracker", "ray::MapWorker(MapBatches(BlockWorker)).submit"
    children = list(map(child, titles))
    with followers_standing():
        os.waitid(os.P_PID, children[0].pid, os.WSTOPPED | os.WNOWAIT)
        print(*(os.sched_getscheduler(one.pid) for one in children), *map(standing, children), flush=True)
    print(*map(standing, children), flush=True)
    for one in children:
        one.kill()
"""
    meanwhile, afterwards = [True, False, False], [False, False, False]
    assert policies(body) == [os.SCHED_IDLE, os.SCHED_IDLE, os.SCHED_BATCH, *meanwhile, *afterwards]


def test_a_follower_that_ends_meanwhile_is_no_matter() -> None:
    body = """
with giving_way():
    child = subprocess.Popen(["ray::_StatsActor", "-c", "input()"], executable=sys.executable, stdin=subprocess.PIPE)
    with followers_standing():
        child.kill()
        child.wait()
    print(1)
"""
    assert policies(body) == [1]
