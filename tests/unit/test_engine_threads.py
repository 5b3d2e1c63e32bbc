"""An engine's process has one OpenMP team, the engine's own: a second makes every waiting thread sleep at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import os, sys, time
from pathlib import Path

import torch

from preceptor_serve.engine.loading import load_engine
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.engine.threads import on_passing_thread


def num_threads():
    return len(os.listdir("/proc/self/task"))


def num_left(before):
    # A team's threads end a moment after the thread it belonged to, and nobody is told.
    end_s = time.monotonic() + 20
    while num_threads() > before and time.monotonic() < end_s:
        time.sleep(0.01)
    return num_threads() - before


def multiply():
    return torch.ones(512, 512) @ torch.ones(512, 512)


torch.set_num_threads(2)
bare = num_threads()
on_passing_thread(multiply)
passed = num_left(bare)
engine = load_engine(Path(sys.argv[1]), EngineOptions(precision="float32", threads=2))
engine.probe()
engine.close()
served = num_left(bare)
multiply()
print(passed, served, num_threads() - bare)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_what_is_loaded_and_closed_leaves_no_thread_behind(random_bundle: Path) -> None:
    command = [sys.executable, "-c", _PROGRAM, str(random_bundle)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    # The last shows that a team would have been seen.
    assert finished.stdout.split() == ["0", "0", "1"]
