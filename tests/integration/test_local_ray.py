"""A local Ray takes all that it started with it when it ends."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

pytestmark = pytest.mark.integration

# In a process of its own: this one may have a Ray that other tests use.
BODY = """
import subprocess
from preceptor.local_ray import serving_ray

with serving_ray():
    import ray

    @ray.remote
    def start():
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

    print(ray.get(start.remote()))
"""


def test_what_outlives_its_worker_does_not_outlive_the_cluster() -> None:
    ran = subprocess.run([sys.executable, "-c", BODY], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    pid = int(ran.stdout.split()[-1])
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
