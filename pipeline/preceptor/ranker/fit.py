"""The one training loop: Ray Train workers, FSDP2 shards, exact resume.

Groups lie in files that every worker, or Ray Data for it, reads from; which of them a step uses is a function of (seed,
step), and worker r takes every W-th. A checkpoint holds the sharded model, the optimiser and the step, so a run that
lost a worker, or was started again, goes on at the exact step and data position.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from preceptor.errors import StageFailed
from preceptor.ranker.batches import encode, lay_out, micro_batches, num_tokens
from preceptor.ranker.checkpoints import export, restore, save
from preceptor.ranker.examples import Group, normalisers_of, to_request, to_targets
from preceptor.ranker.feed import steps_of
from preceptor.ranker.following import following
from preceptor.ranker.grouped import write_groups
from preceptor.ranker.losses import Normalisers, Objective, loss_terms, total_loss
from preceptor.ranker.mixing import START, State, advanced, measured, mixed
from preceptor.ranker.model import Head, Ranker, head_slices, load_ranker
from preceptor.ranker.sharding import freeze_embeddings, make_optimizer, recompute_activations, shard
from preceptor.recipe import FixedMixing, Mixing, TrainConfig
from preceptor.recipe.compute import BatchLayout

MICRO_BATCH_TOKENS: Final = 2048
_LOSSES: Final = "losses.jsonl"
_GROUPS: Final = "groups"
_FIXED: Final = FixedMixing()


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """What a worker needs to train: where to start from, what to learn, where to put it."""

    initial: Path
    pairs: Path
    examples: Path
    out: Path
    config: TrainConfig
    objective: Objective
    mixing: Mixing = _FIXED


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The trained model's directory and the loss of every step."""

    model: Path
    losses: list[dict[str, float]]
    seconds: float


def _absolute(storage: str) -> str:
    """A path that every worker reads alike; an address such as s3://... as it is."""
    return storage if "://" in storage else str(Path(storage).resolve())


def fit(job: FitJob, *, name: str, storage: str | None = None) -> FitResult:
    """The model trained by `job`, in ``{job.out}/model``; checkpoints in `storage` stay, others go with the training.

    `name` must be unique to the work (it holds the fingerprint): Ray Train resumes a run of the same name. Raises
    StageFailed where the workers failed more often than the recipe allows.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    started = time.monotonic()
    config = job.config
    checkpoints = _absolute(storage or str(job.out / "train"))
    job.out.mkdir(parents=True, exist_ok=True)
    write_groups(job.pairs, job.examples, job.out / _GROUPS)
    # A range of workers is Ray Train v2's; the types that type checkers find are version 1's.
    num_workers: Any = (config.min_workers, config.num_workers) if config.min_workers else config.num_workers
    trainer = TorchTrainer(
        # Bound, not in train_loop_config: that one Ray Train's controller reads as well, which took it 2 s of imports
        # before it started a worker.
        partial(_train_worker, job),
        torch_config=TorchConfig(backend="nccl" if config.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={"GPU": config.gpus_per_worker, "CPU": config.cpus_per_worker}
            if config.gpus_per_worker
            else {"CPU": config.cpus_per_worker},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=checkpoints,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        with following(job.out / _LOSSES, total=config.num_steps, label=name.split("-", 1)[0]):
            trainer.fit()
    except Exception as error:  # Ray Train wraps whatever a worker raised in types of its own.
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise StageFailed(
            f"training {name}: failed more than {config.max_failures} times ({reason[:300]}). "
            f"See {checkpoints}; run again to go on from the last checkpoint."
        ) from error
    for leftover in ("train", _GROUPS):
        shutil.rmtree(job.out / leftover, ignore_errors=True)
    return FitResult(
        model=job.out / "model", losses=_read_losses(job.out), seconds=round(time.monotonic() - started, 1)
    )


def split_logits(logits_NR: torch.Tensor, heads: Sequence[Head]) -> tuple[torch.Tensor, torch.Tensor]:
    """Grade logits [N, G, 5] and action logits [N, A] out of all rows."""
    slices = head_slices(heads)
    grades = [logits_NR[:, slices[head.name]] for head in heads if head.kind == "grade"]
    actions = [logits_NR[:, slices[head.name]] for head in heads if head.kind == "action"]
    return (
        torch.stack(grades, dim=1) if grades else logits_NR.new_zeros(len(logits_NR), 0, 5),
        torch.cat(actions, dim=1) if actions else logits_NR.new_zeros(len(logits_NR), 0),
    )


def accumulate_step(
    model: nn.Module,
    heads: Sequence[Head],
    groups: Sequence[Group],
    tokenizer: Any,
    limits: Any,
    objective: Objective,
    norm: Normalisers,
    *,
    mixing: Mixing = _FIXED,
    scale: float = 1.0,
    layout: BatchLayout = "shared",
    pass_tokens: int | None = None,
    device: torch.device | None = None,
) -> dict[str, float]:
    """The summed loss terms of `groups`, after adding their gradients, times `scale`, to the model's.

    Beside ``loss`` and the terms there is what `mixing` wants to know of the step.

    Workers of one process group must call it together: each makes as many passes as the one with the most needs.
    """
    encoded = [encode(to_request(group), tokenizer, limits) for group in groups]
    totals: dict[str, torch.Tensor] = {}
    lengths = [num_tokens(item, layout) for item in encoded]
    batches = list(micro_batches(lengths, pass_tokens or MICRO_BATCH_TOKENS))
    place = device or torch.device("cpu")
    num_passes = _most_of_all_workers(len(batches), place)
    for number in range(num_passes):
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(number == num_passes - 1)
        if number >= len(batches):
            (model(lay_out(encoded[:1], layout).to(place)).sum() * 0.0).backward()
            continue
        batch = batches[number]
        packed = lay_out([encoded[index] for index in batch], layout).to(place)
        targets = to_targets([groups[index] for index in batch], heads).to(place)
        grade_logits, action_logits = split_logits(model(packed), heads)
        terms = loss_terms(grade_logits, action_logits, targets, objective, norm)
        loss = total_loss(terms, objective)
        wanted = measured(mixing, terms, grade_logits, action_logits)
        (loss * scale).backward()
        for name, value in {"loss": loss, **terms, **wanted}.items():
            seen = (
                value.detach().double() if isinstance(value, torch.Tensor) else torch.tensor(value).double().to(place)
            )
            totals[name] = totals[name] + seen if name in totals else seen
    # Read once, because reading waits for the device.
    return dict(zip(totals, torch.stack(list(totals.values())).tolist(), strict=True)) if totals else {}


def _most_of_all_workers(num_batches: int, device: torch.device) -> int:
    """The largest of all workers' numbers; a worker that made fewer passes would leave the others waiting in FSDP."""
    if not dist.is_initialized():
        return num_batches
    most = torch.tensor(num_batches, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def learning_rate_share(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at `step`: linear warm-up, then linear decay to a twentieth."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    left = (config.num_steps - step) / max(config.num_steps - config.warmup_steps, 1)
    return 0.05 + 0.95 * left


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """What one worker trains, sharded over all, and its place among them."""

    ranker: Ranker
    tokenizer: Any
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    rank: int
    world: int
    device: torch.device


def make_trainee(initial: Path, config: TrainConfig, *, rank: int, world: int) -> Trainee:
    """The ranker in `initial`, ready to train; torch.distributed must be up."""
    if not config.gpus_per_worker:
        torch.set_num_threads(max((os.cpu_count() or 1) // world, 1))
    device = torch.device("cuda", torch.cuda.current_device()) if config.gpus_per_worker else torch.device("cpu")
    torch.manual_seed(config.seed)
    ranker, tokenizer = load_ranker(initial)
    freeze_embeddings(ranker, config)
    recompute_activations(ranker, config)
    ranker = shard(ranker.to(device), config).train()
    return Trainee(
        ranker=ranker,
        tokenizer=tokenizer,
        optimizer=make_optimizer(ranker, config),
        config=config,
        rank=rank,
        world=world,
        device=device,
    )


def train_step(
    trainee: Trainee, chosen: Sequence[Group], step: int, objective: Objective, mixing: Mixing = _FIXED
) -> dict[str, float]:
    """The loss terms of all workers together, after one update from the groups of the whole step."""
    config, ranker = trainee.config, trainee.ranker
    # FSDP averages gradients over workers; the loss is a sum over them, hence the scale.
    terms = accumulate_step(
        ranker,
        ranker.heads,
        chosen[trainee.rank :: trainee.world],
        trainee.tokenizer,
        ranker.limits,
        objective,
        normalisers_of(chosen, ranker.heads),
        mixing=mixing,
        scale=float(trainee.world),
        layout=config.layout,
        pass_tokens=config.pass_tokens,
        device=trainee.device,
    )
    for group in trainee.optimizer.param_groups:
        group["lr"] = group["peak"] * learning_rate_share(step, config)
    nn.utils.clip_grad_norm_([p for p in ranker.parameters() if p.requires_grad], config.max_grad_norm)
    trainee.optimizer.step()
    trainee.optimizer.zero_grad()
    return _summed(terms, trainee.device)


def training(
    trainee: Trainee, job: FitJob, groups: Path, *, start: int = 0, state: State = START
) -> Iterator[tuple[int, dict[str, float], State]]:
    """Each step from `start` on, once it is made: its number from 1, its row of losses, the mixing rule's state.

    `groups` is the folder that `write_groups` wrote.
    """
    for step, chosen in enumerate(steps_of(groups, job.config, start=start), start=start):
        objective = mixed(job.objective, job.mixing, state)
        terms = train_step(trainee, chosen, step, objective, job.mixing)
        state = advanced(job.mixing, state, job.objective, terms)
        shares = {f"{name}_share": share for name, share in _moved(objective, job.objective)}
        num_pairs = sum(len(group.documents) for group in chosen)
        yield step + 1, {"step": step + 1, **terms, **shares, "pairs": num_pairs}, state


def _train_worker(job: FitJob) -> None:
    import ray.train

    config, context = job.config, ray.train.get_context()
    trainee = make_trainee(job.initial, config, rank=context.get_world_rank(), world=context.get_world_size())
    start, state = restore(trainee.ranker, trainee.optimizer)
    if trainee.rank == 0:
        _truncate_losses(job.out, start)
    for step, row, now in training(trainee, job, job.out / _GROUPS, start=start, state=state):
        if trainee.rank == 0:
            _append_loss(job.out, row)
        if step % config.checkpoint_every == 0 or step == config.num_steps:
            save(trainee.ranker, trainee.optimizer, step, now, row)
    export(trainee.ranker, trainee.tokenizer, job.out / "model", trainee.rank)


def _moved(objective: Objective, start: Objective) -> Iterator[tuple[str, float]]:
    """Each share of the objective that is not what the recipe gave."""
    return ((name, share) for name, share in asdict(objective).items() if share != getattr(start, name))


def _summed(terms: Mapping[str, float], device: torch.device) -> dict[str, float]:
    values = torch.tensor(list(terms.values()), device=device)
    dist.all_reduce(values)
    return dict(zip(terms, map(float, values), strict=True))


def _append_loss(out: Path, row: Mapping[str, float]) -> None:
    with (out / _LOSSES).open("a") as sink:
        sink.write(json.dumps(row) + "\n")


def _truncate_losses(out: Path, num_steps: int) -> None:
    kept = _read_losses(out)[:num_steps]
    (out / _LOSSES).write_text("".join(json.dumps(row) + "\n" for row in kept))


def _read_losses(out: Path) -> list[dict[str, float]]:
    file = out / _LOSSES
    # A line that a full disk or a kill cut short has no line break; only lines that ended count.
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.is_file() else []
