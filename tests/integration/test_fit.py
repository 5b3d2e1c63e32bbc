"""The training loop on real workers: two lose what one process loses, and a killed one changes no byte of the model."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from preceptor.contracts import EXAMPLES, NUM_GRADES, OVERALL, PAIRS, make_pair, rows_to_table, write_table
from preceptor.errors import StageFailed
from preceptor.ranker.backbones import resolve_backbone
from preceptor.ranker.feed import STEPS_PER_TASK, steps_of
from preceptor.ranker.fit import MICRO_BATCH_TOKENS, FitJob, FitResult, fit, make_trainee, training
from preceptor.ranker.grouped import write_groups
from preceptor.ranker.losses import Objective
from preceptor.ranker.model import action_heads, grade_heads, init_ranker
from preceptor.recipe import BackboneConfig, GradientMixing, TrainConfig

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

NUM_STEPS = 20
CHECKPOINT_EVERY = 5
NUM_LONG = 4
CONFIG = TrainConfig(
    num_steps=NUM_STEPS,
    groups_per_step=4,
    documents_per_group=4,
    learning_rate=1e-3,
    head_learning_rate=1e-2,
    warmup_steps=2,
    precision="float32",
    checkpoint_every=CHECKPOINT_EVERY,
    max_failures=1,
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> FitJob:
    """Twelve made-up requests with grades and clicks, and a tiny random ranker to start from.

    NUM_LONG of them are so long that two do not fit into one micro-batch: some steps have workers with one micro-batch
    beside workers with two.
    """
    folder = tmp_path_factory.mktemp("fit")
    backbone = BackboneConfig(source="random-tiny", max_prefix_tokens=16, max_document_tokens=300)
    heads = (*grade_heads([OVERALL]), *action_heads(["click"]))
    ranker, tokenizer = init_ranker(backbone, resolve_backbone(backbone.source), heads)
    ranker.save(folder / "initial", tokenizer)

    draw = random.Random(2)
    pairs = []
    for query in range(12):
        num_documents, num_words = (4, 400) if query < NUM_LONG else (draw.randint(1, 5), 5)
        for number in range(num_documents):
            document = f"posting {query} {number} " + "word " * num_words
            pairs.append(make_pair(f"query {query}", "", document, slice="s"))
    assert 2 * 4 * 300 > MICRO_BATCH_TOKENS > 4 * 300 + 200
    examples = []
    for pair in pairs:
        grade = draw.randrange(NUM_GRADES)
        target = [float(grade == other) for other in range(NUM_GRADES)]
        examples.append({"pair_id": pair["pair_id"], "head": OVERALL, "target": target, "weight": 1.0})
        if draw.random() < 0.5:
            rate = [draw.random()]
            examples.append({"pair_id": pair["pair_id"], "head": "click", "target": rate, "weight": draw.uniform(1, 5)})
    write_table(rows_to_table(pairs, PAIRS), folder / "pairs" / "0.parquet", PAIRS)
    write_table(rows_to_table(examples, EXAMPLES), folder / "examples" / "0.parquet", EXAMPLES)
    return FitJob(
        initial=folder / "initial",
        pairs=folder / "pairs",
        examples=folder / "examples",
        out=folder / "out",
        config=CONFIG,
        objective=Objective(grade=0.6, action=0.4, listwise=0.3, grade_listnet=0.1, action_listnet=0.2),
        # Its state has to be the same on all workers and to come back from a checkpoint.
        mixing=GradientMixing(),
    )


@pytest.fixture(scope="module")
def undisturbed(job: FitJob, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """The run on two workers that nothing happens to."""
    return fit(replace(job, out=tmp_path_factory.mktemp("undisturbed")), name="undisturbed")


def curve(result: FitResult, term: str) -> list[float]:
    return [row[term] for row in result.losses]


def model_bytes(result: FitResult) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(result.model.iterdir())}


def losses_without_ray(job: FitJob, folder: Path) -> list[dict[str, float]]:
    """The losses of the same steps in this process alone, from the first to the last without a checkpoint."""
    write_groups(job.pairs, job.examples, folder)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        trainee = make_trainee(job.initial, job.config, rank=0, world=1)
        return [row for _, row, _ in training(trainee, job, folder)]
    finally:
        dist.destroy_process_group()


def test_two_workers_lose_what_one_process_loses(job: FitJob, undisturbed: FitResult, tmp_path: Path) -> None:
    alone = losses_without_ray(job, tmp_path / "groups")
    assert [row["step"] for row in alone] == list(range(1, NUM_STEPS + 1))
    assert curve(undisturbed, "step") == list(range(1, NUM_STEPS + 1))
    for term in ("loss", "grade", "action", "listwise", "grade_listnet", "action_listnet", "pairs"):
        assert curve(undisturbed, term) == pytest.approx([row[term] for row in alone], abs=1e-4), term
    losses = [row["loss"] for row in alone]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4]), "nothing was learnt, so equal curves would say little"


@pytest.mark.parametrize("start", [0, STEPS_PER_TASK + 1, NUM_STEPS])
def test_ray_data_reads_ahead_what_a_worker_would_read(job: FitJob, tmp_path: Path, start: int) -> None:
    write_groups(job.pairs, job.examples, tmp_path / "groups")
    wanted = list(steps_of(tmp_path / "groups", CONFIG, start=start))
    assert len(wanted) == NUM_STEPS - start
    assert list(steps_of(tmp_path / "groups", replace(CONFIG, feed="ray_data"), start=start)) == wanted


@dataclass(frozen=True, kw_only=True)
class Killer:
    """Kills one training worker of the run in `out` once a checkpoint is safe, and watches where the run goes on."""

    out: Path
    checkpoints: Path
    killed: list[int] = field(default_factory=list)
    rows_seen_after: set[int] = field(default_factory=set)
    stop: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        losses = self.out / "losses.jsonl"
        while not self.stop.wait(0.005):
            num_rows = losses.read_text().count("\n") if losses.is_file() else 0
            if self.killed:
                self.rows_seen_after.add(num_rows)
            # Ray Train restarts from the checkpoints that this file of its own names.
            elif any(self.checkpoints.glob("*/checkpoint_manager_snapshot.json")) and num_rows % CHECKPOINT_EVERY:
                worker = train_workers()[-1]
                worker.kill()
                self.killed.append(worker.pid)


@contextmanager
def killing(out: Path, *, checkpoints: Path | None = None) -> Iterator[Killer]:
    """A Killer of the run in `out` that watches while the body runs."""
    killer = Killer(out=out, checkpoints=checkpoints or out / "train")
    thread = threading.Thread(target=killer.watch)
    thread.start()
    try:
        yield killer
    finally:
        killer.stop.set()
        thread.join()


def train_workers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        # Ray's other processes come and go while they are listed.
        with suppress(psutil.NoSuchProcess):
            if any("TrainWorker" in part for part in child.cmdline()):
                found.append(child)
    return found


def test_a_run_that_ended_goes_on_with_fewer_workers_where_it_was(
    job: FitJob, undisturbed: FitResult, tmp_path: Path
) -> None:
    with killing(tmp_path), pytest.raises(StageFailed, match="failed more than 0 times"):
        fit(replace(job, out=tmp_path, config=replace(CONFIG, max_failures=0)), name="fewer")
    reached = (tmp_path / "losses.jsonl").read_text().count("\n")
    assert CHECKPOINT_EVERY <= reached < NUM_STEPS
    # Elastic, so that Ray Train decides how many of at most one there are; shards of two become one's.
    config = replace(CONFIG, num_workers=1, min_workers=1, activations="recomputed")
    result = fit(replace(job, out=tmp_path, config=config), name="fewer")
    assert curve(result, "step") == list(range(1, NUM_STEPS + 1))
    assert curve(result, "loss") == pytest.approx(curve(undisturbed, "loss"), abs=1e-4)
    assert result.losses[:CHECKPOINT_EVERY] == undisturbed.losses[:CHECKPOINT_EVERY]


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint_and_changes_no_byte(
    job: FitJob, undisturbed: FitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The undisturbed run's workers read their groups themselves, and it keeps its checkpoints beside its model; this
    # one's have them read by Ray Data, and its storage is a path from where it was started.
    monkeypatch.chdir(tmp_path)
    with killing(tmp_path, checkpoints=tmp_path / "kept") as killer:
        wanted = replace(job, out=tmp_path, config=replace(CONFIG, feed="ray_data"))
        result = fit(wanted, name="killed", storage="kept")
    assert len(killer.killed) == 1 and not psutil.pid_exists(killer.killed[0])
    # A file just cut has no row for a moment; a run that began again would show 1, 2, 3, ...
    assert killer.rows_seen_after and not killer.rows_seen_after & set(range(1, CHECKPOINT_EVERY))
    assert result.losses == undisturbed.losses
    assert model_bytes(result) == model_bytes(undisturbed)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["kept", "losses.jsonl", "model"]
