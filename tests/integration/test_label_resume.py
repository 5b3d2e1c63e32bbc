"""Labelling under SIGKILL: of the driver, and of a worker in the middle of a batch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from preceptor.contracts import LABELS, OVERALL, PAIRS, REJECTS, make_pair, read_table, rows_to_table, write_table
from preceptor.judge import label
from preceptor.policy import load_policy
from preceptor.recipe import POLICY_DIR, JudgeConfig
from preceptor.record import Record

pytestmark = pytest.mark.integration

POLICY = load_policy(POLICY_DIR)
NUM_PAIRS = 300
PAIRS_PER_BLOCK = 16

CHILD = """
    import sys
    from dataclasses import dataclass
    from pathlib import Path
    from preceptor.judge import label
    from preceptor.judge.judges import open_judge
    from preceptor.policy import load_policy
    from preceptor.recipe import POLICY_DIR
    from test_label_resume import PAIRS_PER_BLOCK, fake_config, records

    @dataclass(frozen=True, kw_only=True)
    class StallsHalfWay:
        inner: object
        judge_id: str
        dimensions: tuple
        heads: tuple = ()

        def grade(self, pairs):
            for number, answers in enumerate(self.inner.grade(pairs)):
                if number == 10:
                    print("half way", flush=True)
                    sys.stdin.read()
                yield answers

    root = Path(sys.argv[1])
    corpus, calibration = records(root)
    fake = open_judge(fake_config(), load_policy(POLICY_DIR), teacher=None, model=None)
    label(
        fake_config(), policy=POLICY_DIR, corpus=corpus, calibration=calibration, pairs_per_block=PAIRS_PER_BLOCK,
        judge=StallsHalfWay(inner=fake, judge_id=fake.judge_id, dimensions=fake.dimensions), out=root / "label" / "v1",
    )
"""


def fake_config() -> JudgeConfig:
    return JudgeConfig(kind="fake", model="m", floor=-1, max_reject_share=0.1, num_calibration_pairs=8)


def pool(num: int) -> list[dict[str, str]]:
    return [make_pair(f"query {n // 5}", "a welder", f"posting {n}", slice="s", split="train") for n in range(num)]


def records(root: Path, judge_id: str = "fake:m") -> tuple[Record, Record]:
    """A corpus already written under `root`, and a passed calibration of `judge_id`."""
    calibration = Record(
        stage="calibrate",
        version="v1",
        fingerprint="k0",
        path=root / "calibrate" / "v1",
        config={},
        policy_version=POLICY.version,
        metrics={"judge_id": judge_id, "passed": True},
    )
    return Record(stage="market", version="v1", fingerprint="c0", path=root / "corpus", config={}), calibration


def keys(out: Path) -> list[str]:
    """What every row of labels and rejects is about, as pair_id/dimension."""
    labels, rejects = read_table(out / "labels", LABELS), read_table(out / "rejects", REJECTS)
    return [f"{row['pair_id']}/{row['dimension']}" for row in labels.to_pylist()] + rejects.column("id").to_pylist()


def test_a_driver_killed_half_way_leaves_blocks_that_the_rerun_neither_loses_nor_repeats(tmp_path: Path) -> None:
    write_table(rows_to_table(pool(NUM_PAIRS), PAIRS), tmp_path / "corpus" / "pairs" / "a.parquet", PAIRS)
    out = tmp_path / "label" / "v1"
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == "half way\n"
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdin.close()
    child.stdout.close()
    before = {part: (part.stat().st_ino, part.stat().st_mtime_ns) for part in out.glob("*/part-*.parquet")}
    assert before and not (out / "record.json").exists()

    corpus, calibration = records(tmp_path)
    record = label(
        fake_config(),
        policy=POLICY_DIR,
        corpus=corpus,
        calibration=calibration,
        pairs_per_block=PAIRS_PER_BLOCK,
        out=out,
    )
    wanted = [f"{pair['pair_id']}/{name}" for pair in pool(NUM_PAIRS) for name in (*POLICY.rubric.names, OVERALL)]
    assert sorted(keys(out)) == sorted(wanted)
    assert {part: (part.stat().st_ino, part.stat().st_mtime_ns) for part in before} == before
    num_blocks = -(-NUM_PAIRS // PAIRS_PER_BLOCK)
    assert record.metrics["num_blocks_computed"] == num_blocks - len(before) // 2
    assert len(list(out.glob("labels/*.parquet"))) == num_blocks


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


def test_a_worker_killed_in_the_middle_of_a_batch_costs_no_row(
    tmp_path: Path, killing_server: str, local_ray: Any
) -> None:
    pairs = pool(40)
    write_table(rows_to_table(pairs, PAIRS), tmp_path / "corpus" / "pairs" / "a.parquet", PAIRS)
    corpus, calibration = records(tmp_path, judge_id=f"openai:m@{killing_server.removeprefix('http://')}")
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
    out = tmp_path / "label" / "v1"
    record = label(
        config, policy=POLICY_DIR, corpus=corpus, calibration=calibration, pairs_per_block=PAIRS_PER_BLOCK, out=out
    )
    assert sorted(keys(out)) == sorted(f"{pair['pair_id']}/{name}" for pair in pairs for name in ("role", OVERALL))
    assert record.metrics["num_one_hot"] == record.num_rows_kept == 80
