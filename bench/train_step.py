"""How long a training step takes: one worker or two, attention written out or fused; each variant in turn, in rounds.

    make demo && .venv/bin/python bench/train_step.py

The steps are the relevance teacher's own: its loop, loss, groups and sharding, outside Ray Train.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from preceptor.contracts import OVERALL
from preceptor.ranker import attention
from preceptor.ranker.backbones import resolve_backbone
from preceptor.ranker.examples import draw_documents, groups_of_step, load_groups, normalisers_of
from preceptor.ranker.fit import accumulate_step, freeze_embeddings, make_optimizer, shard
from preceptor.ranker.losses import Objective
from preceptor.ranker.model import grade_heads, init_ranker, load_ranker
from preceptor.recipe import TeacherConfig, TrainConfig
from preceptor.recipes import demo

VARIANTS = (
    ("1 worker, written out", 1, False),
    ("1 worker, fused", 1, True),
    ("2 workers, written out", 2, False),
    ("2 workers, fused", 2, True),
)
WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, default=Path("runs/demo/relevance_teacher/v1/training"))
    parser.add_argument("--layers", type=int, default=6, help="lowest layers of SmolLM2-135M (default: 6, of 30)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each variant in a round (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the medians are over them (default: 3)")
    arguments = parser.parse_args()
    teacher = demo().relevance
    assert isinstance(teacher, TeacherConfig)
    backbone = replace(teacher.backbone, num_layers=arguments.layers)
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        ranker, tokenizer = init_ranker(backbone, resolve_backbone(backbone.source), grade_heads([OVERALL]))
        ranker.save(Path(folder) / "initial", tokenizer)
        for number in range(arguments.rounds):
            for name, num_workers, fused in VARIANTS:
                config = replace(teacher.train, num_workers=num_workers)
                store = Path(folder) / f"store-{number}-{num_workers}-{fused}"
                work = (Path(folder), store, arguments.training, config, fused, arguments.steps)
                torch.multiprocessing.spawn(_worker, work, num_workers)
                seconds[name].append(json.loads((Path(folder) / "seconds.json").read_text()))
                print(f"round {number + 1}: {name}: {seconds[name][-1]:.3f} s a step", flush=True)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    first = medians[VARIANTS[0][0]]
    print(f"\nmedian of {arguments.rounds} rounds, {arguments.layers} layers")
    for name, median in medians.items():
        print(f"{name:<24} {median:.3f} s a step, {median / first:.2f} x {VARIANTS[0][0]}")


def _worker(
    rank: int, folder: Path, store: Path, training: Path, config: TrainConfig, fused: bool, num_steps: int
) -> None:
    """One worker's steps; the first writes the mean seconds of the timed ones."""
    world = config.num_workers
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.set_num_threads(max(torch.get_num_threads() // world, 1))
    if fused:
        attention._attend = _fused
    ranker, tokenizer = load_ranker(folder / "initial")
    freeze_embeddings(ranker, config)
    ranker = shard(ranker, config).train()
    optimizer = make_optimizer(ranker, config)
    groups = load_groups(training / "pairs", training / "examples")
    started_s = 0.0
    for step in range(WARM_UP + num_steps):
        if step == WARM_UP:
            dist.barrier()
            started_s = time.monotonic()
        chosen = [draw_documents(groups[i], step, config) for i in groups_of_step(len(groups), step, config)]
        accumulate_step(
            ranker,
            ranker.heads,
            chosen[rank::world],
            tokenizer,
            ranker.limits,
            Objective(grade=1.0, action=0.0, listwise=2.0),
            normalisers_of(chosen, ranker.heads),
            scale=float(world),
        )
        nn.utils.clip_grad_norm_([p for p in ranker.parameters() if p.requires_grad], config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps((time.monotonic() - started_s) / num_steps))
    dist.destroy_process_group()


def _fused(query: Tensor, key: Tensor, value: Tensor, *, visible: Tensor, scale: float) -> Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)


if __name__ == "__main__":
    main()
