"""What training takes in memory by component, at two depths: weights, gradients, optimiser, activations.

    .venv/bin/python -m bench.fit_memory

The loop's own trainee on one worker, in a process for each depth and choice of activations. Bytes of weights, gradients
and optimiser are counted from the tensors; those of activations from what autograd keeps for the backward pass, each
storage once, weights left out; beside them stands how far the process grew meanwhile. preceptor/training_memory.py
reckons from what it prints.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.peers.fitting import make_groups

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one trainee: counted, and (`grown`) of the process at its largest over its size before a step."""

    num_layers: int
    activations: str
    trained_parameters: int
    frozen_parameters: int
    tokens: int
    hidden: int
    weights: int
    frozen: int
    gradients: int
    optimizer: int
    kept: int
    grown: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--layers", type=int, nargs="+", default=(10, 30))
    parser.add_argument("--quick", action="store_true", help="a smoke test on the tiny random model")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.quick:
        given.backbone, given.layers = "random-tiny", (2, 4)
    if given.one:
        print(json.dumps(asdict(measure(given.backbone, int(given.one[0]), given.one[1]))))
        return
    header = ("layers", "activations", "trained", "a trained parameter", "MiB: weights, gradients, optimiser, frozen")
    print(f"| {' | '.join((*header, 'activations of a token and layer', 'process grew by'))} |")
    for num_layers in given.layers:
        for activations in ("kept", "recomputed"):
            found = _in_a_process(given.backbone, num_layers, activations)
            states = found.weights + found.gradients + found.optimizer
            per_token = found.kept / found.tokens / found.num_layers
            parts = (found.weights, found.gradients, found.optimizer, found.frozen)
            cells = (
                str(num_layers),
                activations,
                f"{found.trained_parameters / 1e6:.1f} M",
                f"{states / found.trained_parameters:.2f} B",
                ", ".join(f"{part / MIB:,.0f}" for part in parts),
                f"{per_token:,.0f} B = {per_token / found.hidden:.1f} x hidden ({found.tokens:,} tokens)",
                f"{found.grown / MIB:,.0f} MiB",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


def _in_a_process(backbone: str, num_layers: int, activations: str) -> Memory:
    command = [sys.executable, "-m", "bench.fit_memory", "--backbone", backbone, "--one", str(num_layers), activations]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{num_layers} layers: ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def measure(backbone: str, num_layers: int, activations: str) -> Memory:
    """The memory of two steps of two groups in this process."""
    import torch.distributed as dist

    from preceptor.contracts import OVERALL
    from preceptor.ranker.backbones import resolve_backbone
    from preceptor.ranker.batches import Request, encode, pack
    from preceptor.ranker.fit import make_trainee
    from preceptor.ranker.model import grade_heads, init_ranker
    from preceptor.recipe import BackboneConfig, TrainConfig

    limits = BackboneConfig(source=backbone, num_layers=num_layers, max_prefix_tokens=4096, max_document_tokens=4096)
    config = TrainConfig(
        num_steps=1,
        groups_per_step=2,
        learning_rate=1e-5,
        head_learning_rate=1e-5,
        num_workers=1,
        activations="recomputed" if activations == "recomputed" else "kept",
    )
    rows = make_groups(2, prefix_tokens=96, document_tokens=(64, 160), documents_per_group=8, seed=7)
    with tempfile.TemporaryDirectory() as folder:
        ranker, tokenizer = init_ranker(limits, resolve_backbone(backbone), grade_heads([OVERALL]))
        ranker.save(Path(folder) / "model", tokenizer)
        del ranker
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        trainee = make_trainee(Path(folder) / "model", config, rank=0, world=1)
        requests = [
            Request(query=row["query"], profile=row["profile"], documents=tuple(row["documents"])) for row in rows
        ]
        batch = pack([encode(request, tokenizer, limits) for request in requests])
        before = psutil.Process().memory_info().rss
        kept, largest = _step(trainee.ranker, batch)
        gradients = [weight.grad for weight in trainee.ranker.parameters() if weight.grad is not None]
        num_gradient_bytes = _bytes(gradients)
        trainee.optimizer.step()
        largest = max(largest, psutil.Process().memory_info().rss)
        parameters = list(trainee.ranker.parameters())
        trained = [weight for weight in parameters if weight.requires_grad]
        frozen = [weight for weight in parameters if not weight.requires_grad]
        found = Memory(
            num_layers=num_layers,
            activations=activations,
            trained_parameters=sum(weight.numel() for weight in trained),
            frozen_parameters=sum(weight.numel() for weight in frozen),
            tokens=len(batch.tokens_T),
            hidden=trainee.ranker.classifier.config.hidden_size,
            weights=_bytes(trained),
            frozen=_bytes(frozen),
            gradients=num_gradient_bytes,
            optimizer=_bytes(item for state in trainee.optimizer.state.values() for item in state.values()),
            kept=kept,
            grown=largest - before,
        )
        dist.destroy_process_group()
    return found


def _step(ranker: Any, batch: Any) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward one, and the process's size after both."""
    import torch

    ranker(batch).sum().backward()
    ranker.zero_grad(set_to_none=True)
    storages: dict[int, int] = {}

    def keep(states: torch.Tensor) -> torch.Tensor:
        storage = states.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return states

    # What goes into a layer is kept where its activations are recomputed, by other means than the hook sees.
    for layer in ranker.classifier.model.layers[:-1]:
        layer.register_forward_pre_hook(_keeping(keep))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda states: states):
        out = ranker(batch)
        # Gathered weights are views of storages that the modules hold now.
        weights = {weight.untyped_storage().data_ptr() for module in ranker.modules() for weight in _own(module)}
    size = psutil.Process().memory_info().rss
    out.sum().backward()
    kept = sum(num for place, num in storages.items() if place not in weights)
    return kept, max(size, psutil.Process().memory_info().rss)


def _keeping(keep: Callable[[Any], Any]) -> Callable[[Any, Any], None]:
    def hook(layer: Any, states: Any) -> None:
        keep(states[0])

    return hook


def _own(module: Any) -> Iterable[Any]:
    from torch.distributed.tensor import DTensor

    found = module.parameters(recurse=False)
    return [weight.to_local() if isinstance(weight, DTensor) else weight for weight in found]


def _bytes(tensors: Iterable[Any]) -> int:
    from torch.distributed.tensor import DTensor

    local = [item.to_local() if isinstance(item, DTensor) else item for item in tensors]
    return sum(item.numel() * item.element_size() for item in local)


if __name__ == "__main__":
    main()
