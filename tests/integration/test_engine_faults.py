"""Real engines that are killed, stand still or run out of memory in the middle of a labelling run."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from preceptor.contracts import LABELS, OVERALL, PAIRS, make_pair, read_table, rows_to_table, write_table
from preceptor.judge import label
from preceptor.judge.judges import open_judge
from preceptor.policy import load_policy
from preceptor.recipe import POLICY_DIR, EngineConfig, JudgeConfig
from preceptor.record import Record

pytestmark = [pytest.mark.integration, pytest.mark.vllm, pytest.mark.slow]

NUM_PAIRS = 24
PAIRS_PER_BLOCK = 4
DIMENSIONS = ("role", "place")


PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
# Names as the kernel keeps them, cut.
BESIDE, WITHIN = "VLLM::EngineCor", "ray::MapWorker("


def engine_core(name: str) -> psutil.Process | None:
    """The running process of this name, which an actor's engine computes in."""
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith(name) and process.status() != psutil.STATUS_ZOMBIE:
                return process
        except psutil.NoSuchProcess:
            continue
    return None


def kill(core: psutil.Process) -> None:
    core.send_signal(signal.SIGKILL)


def stop(core: psutil.Process) -> None:
    core.send_signal(signal.SIGSTOP)


def starve(core: psutil.Process) -> None:
    """From now on nothing more is mapped: the next activation that needs memory of its own fails."""
    core.rlimit(psutil.RLIMIT_AS, (2**20, 2**20))


def freeze(core: psutil.Process) -> None:
    """The thread that has computed most stands still from now on, as a debugger makes it, and the others go on."""
    busiest = max(core.threads(), key=lambda thread: thread.user_time)
    libc = ctypes.CDLL(None, use_errno=True)
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        if libc.ptrace(request, busiest.id, None, None):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


Fault = Callable[[psutil.Process], None]
# The thread that asked for a freeze lets go when it ends: nothing may come after.
FAULTS: dict[str, Sequence[Fault]] = {BESIDE: (kill, stop, starve), WITHIN: (kill, starve, freeze)}


def num_blocks_done(out: Path) -> int:
    return len(list(out.glob("open/*/done-*.json")))


def strike(out: Path, name: str, engines: list[int]) -> None:
    """One fault after the other, each once a further block is done; `engines` gets the pid of every engine seen."""
    for fault in FAULTS[name]:
        before = num_blocks_done(out)
        while num_blocks_done(out) <= before:
            time.sleep(0.02)
        core = engine_core(name)
        assert core is not None
        engines.append(core.pid)
        fault(core)
    while (core := engine_core(name)) is None or core.pid in engines:
        time.sleep(0.02)
    engines.append(core.pid)


@pytest.mark.parametrize("name", [BESIDE, WITHIN], ids=["beside", "within"])
def test_an_engine_that_dies_stands_still_or_runs_out_of_memory_costs_no_row(
    name: str, tmp_path: Path, local_ray: Any, smollm_dir: Path
) -> None:
    pairs = [
        make_pair(f"night nurse {n // 4}", "Nurse.", f"Posting {n}: ward nurse.", slice="s", split="train")
        for n in range(NUM_PAIRS)
    ]
    write_table(rows_to_table(pairs, PAIRS), tmp_path / "corpus" / "pairs" / "a.parquet", PAIRS)
    policy = load_policy(POLICY_DIR)
    config = JudgeConfig(
        kind="vllm",
        model=str(smollm_dir),
        floor=-1,
        max_reject_share=0.0,
        num_calibration_pairs=8,
        dimensions=DIMENSIONS,
        engine=EngineConfig(batch_size=4, stall_s=10.0, own_process=name == BESIDE),
    )
    judge = open_judge(config, policy, teacher=None, model=None)
    record = Record(stage="market", version="v1", fingerprint="f", path=tmp_path / "corpus", config={})
    calibration = Record(
        stage="calibrate",
        version="v1",
        fingerprint="f",
        path=tmp_path,
        config={},
        policy_version=policy.version,
        metrics={"judge_id": judge.judge_id, "passed": True},
    )
    out = tmp_path / "label" / "v1"
    engines: list[int] = []
    striker = threading.Thread(target=strike, args=(out, name, engines), daemon=True)
    striker.start()
    found = label(
        config,
        policy=POLICY_DIR,
        corpus=record,
        calibration=calibration,
        judge=judge,
        pairs_per_block=PAIRS_PER_BLOCK,
        out=out,
    )
    assert len(set(engines)) == len(FAULTS[name]) + 1, "each fault ended its engine, and another was started"
    keys = [(row["pair_id"], row["dimension"]) for row in read_table(out / "labels", LABELS).to_pylist()]
    assert sorted(keys) == sorted((pair["pair_id"], name) for pair in pairs for name in (*DIMENSIONS, OVERALL))
    assert found.rejected == {}
    assert found.metrics["num_rows_asked"] == NUM_PAIRS * len(DIMENSIONS)
