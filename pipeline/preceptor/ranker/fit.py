"""The one training loop: Ray Train workers, FSDP2 shards, exact resume.

Every worker reads the same groups; which of them a step uses is a function of (seed, step), and worker r takes every
W-th. A checkpoint holds the sharded model, the optimiser and the step, so a run that lost a worker, or was started
again, goes on at the exact step and data position.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from preceptor.errors import StageFailed
from preceptor.ranker.batches import encode, pack
from preceptor.ranker.examples import (
    Group,
    draw_documents,
    groups_of_step,
    load_groups,
    normalisers_of,
    to_request,
    to_targets,
)
from preceptor.ranker.following import following
from preceptor.ranker.losses import Normalisers, Objective, loss_terms, total_loss
from preceptor.ranker.mixing import START, State, advanced, measured, mixed
from preceptor.ranker.model import Head, Ranker, head_slices, load_ranker
from preceptor.recipe import FixedMixing, Mixing, TrainConfig

MICRO_BATCH_TOKENS: Final = 2048
_LOSSES: Final = "losses.jsonl"
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


def fit(job: FitJob, *, name: str, storage: str | None = None) -> FitResult:
    """The model trained by `job`, in ``{job.out}/model``.

    `name` must be unique to the work (it holds the fingerprint): Ray Train resumes a run of the same name. Raises
    StageFailed where the workers failed more often than the recipe allows.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    started = time.monotonic()
    config = job.config
    job.out.mkdir(parents=True, exist_ok=True)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if config.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={"GPU": config.gpus_per_worker, "CPU": config.cpus_per_worker}
            if config.gpus_per_worker
            else {"CPU": config.cpus_per_worker},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage or str((job.out / "train").resolve()),
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
            f"See {job.out / 'train'}; run again to go on from the last checkpoint."
        ) from error
    shutil.rmtree(job.out / "train", ignore_errors=True)
    return FitResult(
        model=job.out / "model", losses=_read_losses(job.out), seconds=round(time.monotonic() - started, 1)
    )


def micro_batches(groups: Sequence[Group], lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of `groups` in batches of at most `max_tokens` (one group at least)."""
    batch: list[int] = []
    used = 0
    for index, length in enumerate(lengths):
        if batch and used + length > max_tokens:
            yield batch
            batch, used = [], 0
        batch.append(index)
        used += length
    if batch:
        yield batch


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
    device: torch.device | None = None,
) -> dict[str, float]:
    """The summed loss terms of `groups`, after adding their gradients, times `scale`, to the model's.

    Beside ``loss`` and the terms there is what `mixing` wants to know of the step.

    Workers of one process group must call it together: each makes as many passes as the one with the most needs.
    """
    encoded = [encode(to_request(group), tokenizer, limits) for group in groups]
    totals: dict[str, float] = {}
    batches = list(micro_batches(groups, [item.num_tokens for item in encoded], MICRO_BATCH_TOKENS))
    place = device or torch.device("cpu")
    num_passes = _most_of_all_workers(len(batches), place)
    for number in range(num_passes):
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(number == num_passes - 1)
        if number >= len(batches):
            (model(pack(encoded[:1]).to(place)).sum() * 0.0).backward()
            continue
        batch = batches[number]
        packed = pack([encoded[index] for index in batch]).to(place)
        targets = to_targets([groups[index] for index in batch], heads).to(place)
        grade_logits, action_logits = split_logits(model(packed), heads)
        terms = loss_terms(grade_logits, action_logits, targets, objective, norm)
        loss = total_loss(terms, objective)
        wanted = measured(mixing, terms, grade_logits, action_logits)
        (loss * scale).backward()
        values = {name: value.detach().item() for name, value in {"loss": loss, **terms}.items()}
        for name, value in {**values, **wanted}.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def _most_of_all_workers(num_batches: int, device: torch.device) -> int:
    """The largest of all workers' numbers; a worker that made fewer passes would leave the others waiting in FSDP."""
    if not dist.is_initialized():
        return num_batches
    most = torch.tensor(num_batches, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def make_optimizer(ranker: Ranker, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; score rows and embeddings learn at their own rates."""
    rates = {"score": config.head_learning_rate, "embed_tokens": config.embedding_learning_rate}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, weight in ranker.named_parameters():
        if weight.requires_grad:
            part = next((part for part in rates if part in name.split(".")), None)
            groups.setdefault(rates[part] if part else config.learning_rate, []).append(weight)
    return torch.optim.AdamW(
        [{"params": weights, "lr": rate, "peak": rate} for rate, weights in groups.items()],
        weight_decay=config.weight_decay,
        betas=(0.9, 0.98),
        fused=True,
    )


def learning_rate_share(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at `step`: linear warm-up, then linear decay to a twentieth."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    left = (config.num_steps - step) / max(config.num_steps - config.warmup_steps, 1)
    return 0.05 + 0.95 * left


def freeze_embeddings(ranker: Ranker, config: TrainConfig) -> None:
    """Fix the embeddings where their learning rate is 0: no gradient, no optimiser state."""
    if config.embedding_learning_rate == 0:
        ranker.classifier.model.embed_tokens.requires_grad_(False)


def shard(ranker: Ranker, config: TrainConfig) -> Ranker:
    """The ranker with each layer, and the rest, sharded over all workers (FSDP2).

    What is frozen is kept whole by every worker, in the precision it is computed in: gathering SmolLM2's embeddings
    anew in each step cost more than a quarter of a step of 6 layers.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    precision = getattr(torch, config.precision)
    policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
    frozen = {weight for weight in ranker.parameters() if not weight.requires_grad}
    for weight in frozen:
        weight.data = weight.data.to(precision)
    # Gathered parameters stay until the step ends: one gather a step, at the cost of a copy in the low precision.
    for layer in ranker.classifier.model.layers:
        fully_shard(layer, mp_policy=policy, reshard_after_forward=config.gpus_per_worker > 0)
    fully_shard(ranker, mp_policy=policy, reshard_after_forward=config.gpus_per_worker > 0, ignored_params=frozen)
    return ranker


def _train_worker(payload: Mapping[str, FitJob]) -> None:
    import ray.train

    job = payload["job"]
    config, context = job.config, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if not config.gpus_per_worker:
        torch.set_num_threads(max((os.cpu_count() or 1) // world, 1))
    device = torch.device("cuda", torch.cuda.current_device()) if config.gpus_per_worker else torch.device("cpu")
    torch.manual_seed(config.seed)
    ranker, tokenizer = load_ranker(job.initial)
    freeze_embeddings(ranker, config)
    ranker = shard(ranker.to(device), config).train()
    optimizer = make_optimizer(ranker, config)
    start, state = _restore(ranker, optimizer)
    groups = load_groups(job.pairs, job.examples)
    if rank == 0:
        _truncate_losses(job.out, start)
    for step in range(start, config.num_steps):
        chosen = [draw_documents(groups[i], step, config) for i in groups_of_step(len(groups), step, config)]
        norm = normalisers_of(chosen, ranker.heads)
        objective = mixed(job.objective, job.mixing, state)
        # FSDP averages gradients over workers; the loss is a sum over them, hence the scale.
        terms = accumulate_step(
            ranker,
            ranker.heads,
            chosen[rank::world],
            tokenizer,
            ranker.limits,
            objective,
            norm,
            mixing=job.mixing,
            scale=float(world),
            device=device,
        )
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_share(step, config)
        nn.utils.clip_grad_norm_([p for p in ranker.parameters() if p.requires_grad], config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        terms = _summed(terms, device)
        state = advanced(job.mixing, state, job.objective, terms)
        if rank == 0:
            terms |= {f"{name}_share": share for name, share in _moved(objective, job.objective)}
            _append_loss(job.out, {"step": step + 1, **terms, "pairs": sum(len(g.documents) for g in chosen)})
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.num_steps:
            _save(ranker, optimizer, step + 1, state, terms)
    _export(ranker, tokenizer, job.out / "model", rank)


def _moved(objective: Objective, start: Objective) -> Iterator[tuple[str, float]]:
    """Each share of the objective that is not what the recipe gave."""
    return ((name, share) for name, share in asdict(objective).items() if share != getattr(start, name))


def _state(ranker: Ranker, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optim = get_state_dict(ranker, optimizer)
    return {"model": model, "optimizer": optim}


def _restore(ranker: Ranker, optimizer: torch.optim.Optimizer) -> tuple[int, State]:
    import ray.train
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_state_dict

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0, START
    with checkpoint.as_directory() as directory:
        state = _state(ranker, optimizer)
        dcp.load(state, checkpoint_id=directory)
        set_state_dict(ranker, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        reached = json.loads((Path(directory) / "step.json").read_text())
        return int(reached["step"]), reached.get("mixing", START)


def _save(
    ranker: Ranker, optimizer: torch.optim.Optimizer, step: int, state: State, metrics: Mapping[str, float]
) -> None:
    import ray.train
    import torch.distributed.checkpoint as dcp

    with tempfile.TemporaryDirectory() as directory:
        dcp.save(_state(ranker, optimizer), checkpoint_id=directory)
        (Path(directory) / "step.json").write_text(json.dumps({"step": step, "mixing": dict(state)}))
        ray.train.report({"step": step, **metrics}, checkpoint=ray.train.Checkpoint.from_directory(directory))


def _export(ranker: Ranker, tokenizer: Any, target: Path, rank: int) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    full = get_model_state_dict(ranker, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        weights = {
            name.removeprefix("classifier."): value.to(torch.bfloat16)
            for name, value in full.items()
            if isinstance(value, torch.Tensor)
        }
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        ranker.classifier.config.dtype = torch.bfloat16
        ranker.classifier.save_pretrained(partial, state_dict=weights)
        tokenizer.save_pretrained(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    dist.barrier()


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
