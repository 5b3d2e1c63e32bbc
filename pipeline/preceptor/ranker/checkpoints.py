"""Sharded checkpoints of a run, by torch.distributed.checkpoint, and the whole model at its end."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from preceptor.ranker.mixing import START, State
from preceptor.ranker.model import Ranker


def _state(ranker: Ranker, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optim = get_state_dict(ranker, optimizer)
    return {"model": model, "optimizer": optim}


def restore(ranker: Ranker, optimizer: torch.optim.Optimizer) -> tuple[int, State]:
    """The step that the last checkpoint of this run reached, and the mixing rule's state, after loading both models.

    Any number of workers may have written it: each loads the shards it needs now.
    """
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


def save(
    ranker: Ranker, optimizer: torch.optim.Optimizer, step: int, state: State, metrics: Mapping[str, float]
) -> None:
    """Write each worker's shards of the model and the optimiser, and how far they got, as a checkpoint of the run."""
    import ray.train
    import torch.distributed.checkpoint as dcp

    with tempfile.TemporaryDirectory() as directory:
        dcp.save(_state(ranker, optimizer), checkpoint_id=directory)
        (Path(directory) / "step.json").write_text(json.dumps({"step": step, "mixing": dict(state)}))
        ray.train.report({"step": step, **metrics}, checkpoint=ray.train.Checkpoint.from_directory(directory))


def export(ranker: Ranker, tokenizer: Any, target: Path, rank: int) -> None:
    """Write the whole model as a Hugging Face directory, from worker 0; all workers must call it."""
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
