"""Labelling under SIGKILL: of a worker, of the driver, and of the whole local cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from preceptor.contracts import LABELS, OVERALL, PAIRS, REJECTS, make_pair, read_table, rows_to_table, write_table
from preceptor.errors import StageFailed
from preceptor.judge import FakeJudge, label
from preceptor.judge.replies import ENGINE_DIED, INCOMPLETE, Workers
from preceptor.policy import load_policy
from preceptor.recipe import POLICY_DIR, JudgeConfig
from preceptor.record import Record

pytestmark = pytest.mark.integration

POLICY = load_policy(POLICY_DIR)
PAIRS_PER_BLOCK = 16
PAIRS_PER_SHARD = 100
NUM_ACTORS = 2

CHILD = """
    import sys
    from pathlib import Path
    from preceptor.judge import FakeJudge, label
    from preceptor.judge.replies import Workers
    from preceptor.recipe import POLICY_DIR, JudgeConfig
    from preceptor.record import Record
    from preceptor.local_ray import ray_cluster

    root, version = Path(sys.argv[1]), sys.argv[2]
    judge = FakeJudge(
        dimensions=("role", "place"), workers=Workers(num_actors=2, cpus=0.1), latency_s=0.1, log=root / "asked.log"
    )
    record = dict(version="v1", fingerprint="f", config={})
    corpus = Record(stage="market", path=root / "corpus", **record)
    calibration = Record(
        stage="calibrate", path=root, metrics={"judge_id": "fake", "passed": True}, policy_version=version, **record
    )
    config = JudgeConfig(kind="fake", model="m", floor=-1, max_reject_share=0.1, num_calibration_pairs=8)
    with ray_cluster():
        label(
            config, policy=POLICY_DIR, corpus=corpus, calibration=calibration, pairs_per_block=16, pairs_per_shard=100,
            judge=judge, out=root / "label" / "v1",
        )
"""


def fake_config() -> JudgeConfig:
    return JudgeConfig(kind="fake", model="m", floor=-1, max_reject_share=0.1, num_calibration_pairs=8)


def pool(num: int) -> list[dict[str, str]]:
    return [make_pair(f"query {n // 5}", "a welder", f"posting {n}", slice="s", split="train") for n in range(num)]


def records(root: Path, judge_id: str = "fake") -> tuple[Record, Record]:
    """A corpus already written under `root`, and a passed calibration of `judge_id`."""
    calibration = Record(
        stage="calibrate",
        version="v1",
        fingerprint="f",
        path=root,
        config={},
        policy_version=POLICY.version,
        metrics={"judge_id": judge_id, "passed": True},
    )
    return Record(stage="market", version="v1", fingerprint="f", path=root / "corpus", config={}), calibration


def keys(out: Path) -> list[str]:
    """What every row of labels and rejects is about, as pair_id/dimension."""
    labels, rejects = read_table(out / "labels", LABELS), read_table(out / "rejects", REJECTS)
    return [f"{row['pair_id']}/{row['dimension']}" for row in labels.to_pylist()] + rejects.column("id").to_pylist()


def stub(root: Path, **changes: Any) -> FakeJudge:
    """A fake engine in Ray actors that writes down what it is asked."""
    judge = FakeJudge(
        dimensions=("role", "place"),
        workers=Workers(num_actors=NUM_ACTORS, cpus=0.1),
        latency_s=0.1,
        log=root / "asked.log",
    )
    return replace(judge, **changes)


def relabel(root: Path, judge: FakeJudge) -> Record:
    corpus, calibration = records(root)
    return label(
        fake_config(),
        policy=POLICY_DIR,
        corpus=corpus,
        calibration=calibration,
        pairs_per_block=PAIRS_PER_BLOCK,
        pairs_per_shard=PAIRS_PER_SHARD,
        judge=judge,
        out=root / "label" / "v1",
    )


def asked(root: Path) -> Counter[str]:
    return Counter((root / "asked.log").read_text().split())


def start_and_wait_for_blocks(root: Path, *, num_blocks: int) -> subprocess.Popen[bytes]:
    """A driver with a cluster of its own that has written `num_blocks` blocks and goes on."""
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(CHILD), str(root), POLICY.version])
    while num_whole(root / "label" / "v1") < num_blocks:
        assert child.poll() is None, "the driver ended before it could be killed"
        time.sleep(0.02)
    return child


def num_whole(out: Path) -> int:
    """Whole blocks of open shards and closed shards. By os.walk: a shard that closes takes its folder away."""
    return sum(
        name.endswith(".json") and (name.startswith("done-") or Path(folder).name == "shards")
        for folder, _, names in os.walk(out)
        for name in names
    )


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def is_worker(process: psutil.Process) -> bool:
    return process.name().startswith("ray::MapWorker")


@pytest.mark.parametrize("victim", ["driver", "cluster"])
def test_a_killed_driver_or_cluster_loses_at_most_the_block_each_worker_had(
    victim: str, tmp_path: Path, local_ray: Any
) -> None:
    write_table(rows_to_table(pool(700), PAIRS), tmp_path / "corpus" / "pairs" / "a.parquet", PAIRS)
    out = tmp_path / "label" / "v1"
    child = start_and_wait_for_blocks(tmp_path, num_blocks=12)
    family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    for process in family if victim == "cluster" else family[:1]:
        process.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    # A killed driver leaves a cluster that ends itself a moment later: its workers must not write any more.
    # A killed driver leaves a cluster behind. Its workers end with their driver, and only then must no block change.
    while any(is_running(process) and is_worker(process) for process in family):
        time.sleep(0.02)
    for process in filter(is_running, family):
        process.kill()
    assert not (out / "record.json").exists()
    closed = [out / "labels" / f"part-{record.stem}.parquet" for record in out.glob("shards/*.json")]
    before = {part: part.stat().st_ino for part in closed}

    assert relabel(tmp_path, stub(tmp_path)).rejected == {}
    wanted = [f"{pair['pair_id']}/{name}" for pair in pool(700) for name in ("role", "place", OVERALL)]
    assert sorted(keys(out)) == sorted(wanted)
    assert {part: part.stat().st_ino for part in before} == before, "closed shards are left alone"
    twice = {pair_id for pair_id, times in asked(tmp_path).items() if times > 1}
    assert len(twice) <= NUM_ACTORS * PAIRS_PER_BLOCK
    assert max(asked(tmp_path).values()) <= 2


def test_a_pair_that_kills_every_worker_is_rejected_and_all_others_are_labelled(tmp_path: Path, local_ray: Any) -> None:
    write_table(rows_to_table(pool(100), PAIRS), tmp_path / "corpus" / "pairs" / "a.parquet", PAIRS)
    deadly = pool(100)[30]["pair_id"]
    record = relabel(tmp_path, stub(tmp_path, latency_s=0.0, deadly=frozenset({deadly})))
    wanted = [f"{pair['pair_id']}/{name}" for pair in pool(100) for name in ("role", "place", OVERALL)]
    out = tmp_path / "label" / "v1"
    assert sorted(keys(out)) == sorted(wanted)
    assert record.rejected == {ENGINE_DIED: 2, INCOMPLETE: 1}
    assert {row["id"].split("/")[0] for row in read_table(out / "rejects", REJECTS).to_pylist()} == {deadly}


def test_workers_that_finish_nothing_fail_the_run_in_one_line(tmp_path: Path, local_ray: Any) -> None:
    write_table(rows_to_table(pool(40), PAIRS), tmp_path / "corpus" / "pairs" / "a.parquet", PAIRS)
    asleep = stub(tmp_path, latency_s=3600.0, workers=Workers(num_actors=1, cpus=0.1, give_up_s=5.0))
    with pytest.raises(StageFailed, match="no block was finished for 5 s") as failed:
        relabel(tmp_path, asleep)
    assert len(str(failed.value).splitlines()) == 1
    assert not (tmp_path / "label" / "v1" / "record.json").exists()
    assert relabel(tmp_path, stub(tmp_path, latency_s=0.0)).rejected == {}, "the same command goes on"


GRADE = json.dumps(
    {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "3"}, "finish_reason": "length"}],
    }
).encode()


@pytest.fixture
def killing_server() -> Iterator[str]:
    """An endpoint that kills, at its 20th request, the worker process that asked."""
    state = {"num_seen": 0}
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            with lock:
                state["num_seen"] += 1
                if state["num_seen"] == 20:
                    port = self.client_address[1]
                    for child in psutil.Process().children(recursive=True):
                        if any(end.laddr and end.laddr.port == port for end in child.net_connections()):
                            child.kill()
                            state["killed"] = child.pid
                            return
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(GRADE)))
            self.end_headers()
            self.wfile.write(GRADE)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()
    assert "killed" in state, "no worker was killed: the test did not test"


def test_a_worker_killed_in_the_middle_of_a_block_costs_no_row(
    tmp_path: Path, killing_server: str, local_ray: Any
) -> None:
    pairs = pool(40)
    write_table(rows_to_table(pairs, PAIRS), tmp_path / "corpus" / "pairs" / "a.parquet", PAIRS)
    config = JudgeConfig(
        kind="openai",
        model="m",
        base_url=killing_server,
        floor=-1,
        max_reject_share=0.0,
        num_calibration_pairs=8,
        dimensions=("role", OVERALL),
        max_concurrency=4,
    )
    corpus, calibration = records(tmp_path, judge_id=judge_id_of(config))
    out = tmp_path / "label" / "v1"
    record = label(
        config, policy=POLICY_DIR, corpus=corpus, calibration=calibration, pairs_per_block=PAIRS_PER_BLOCK, out=out
    )
    assert sorted(keys(out)) == sorted(f"{pair['pair_id']}/{name}" for pair in pairs for name in ("role", OVERALL))
    assert record.metrics["num_one_hot"] == record.num_rows_kept == 80


def judge_id_of(config: JudgeConfig) -> str:
    from preceptor.judge.judges import open_judge

    return open_judge(config, POLICY, teacher=None, model=None).judge_id
