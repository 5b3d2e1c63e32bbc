"""One trainer's timed steps, in a process of its own: our loop, or sentence-transformers' CrossEncoder trainer.

    python -m bench.peers.fitting WORK.json

Both start from the same weights and see the same pairs in the same order, in steps of as many pairs, with the same
loss (cross-entropy of five grades), precision and frozen embeddings. Texts are tokenised within the timed steps.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from bench.peers.plain_text import plain_text
from preceptor.contracts import NUM_GRADES, OVERALL
from preceptor.precision import computed_in
from preceptor.ranker.text import render_document, render_prefix

Trainer = Literal["shared", "padded", "recomputed", "sentence-transformers"]
TRAINERS: Final[tuple[str, ...]] = get_args(Trainer)
_ANSWER: Final = "\nGrade: "
_WORDS: Final = ("nurse", "welder", "night", "shift", "ward", "hospital", "licence", "driver", "baker", "pay", "team")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a trainer is timed on: `num_warm` steps, then `num_timed` that count."""

    trainer: str
    model: str
    groups: str
    groups_per_step: int
    documents_per_group: int
    num_warm: int
    num_timed: int
    precision: Literal["bfloat16", "float32"]

    @property
    def num_steps(self) -> int:
        """All steps."""
        return self.num_warm + self.num_timed


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Seconds of the timed steps together, and the first step's loss, by which trainers are seen to do the same."""

    seconds: float
    first_loss: float


def make_groups(
    num_groups: int, *, prefix_tokens: int, document_tokens: tuple[int, int], documents_per_group: int, seed: int
) -> list[dict[str, Any]]:
    """Groups of random words, about a token each: a prefix of about that many tokens, documents of between so many."""
    source = random.Random(seed)

    def text(num_tokens: int) -> str:
        return " ".join(source.choices(_WORDS, k=max(num_tokens, 1)))

    return [
        {
            "query": text(4),
            "profile": text(prefix_tokens - 12),
            # A document's part has about 10 tokens besides its words.
            "documents": [text(source.randint(*document_tokens) - 10) for _ in range(documents_per_group)],
            "grades": [source.randrange(NUM_GRADES) for _ in range(documents_per_group)],
        }
        for _ in range(num_groups)
    ]


def read_groups(file: Path) -> list[dict[str, Any]]:
    """What make_groups made, a line each."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def time_ours(work: Work) -> Timed:
    """Our loop in this process: what a worker does, on one worker, without Ray Train around it."""
    import torch.distributed as dist

    from preceptor.ranker.examples import Group
    from preceptor.ranker.fit import make_trainee, train_step
    from preceptor.ranker.losses import Objective
    from preceptor.recipe import TrainConfig

    config = TrainConfig(
        num_steps=work.num_steps,
        groups_per_step=work.groups_per_step,
        documents_per_group=work.documents_per_group,
        learning_rate=1e-5,
        head_learning_rate=1e-5,
        warmup_steps=1,
        num_workers=1,
        precision=work.precision,
        layout="padded" if work.trainer == "padded" else "shared",
        activations="recomputed" if work.trainer == "recomputed" else "kept",
    )
    groups = [
        Group(
            query=row["query"],
            profile=row["profile"],
            documents=tuple(row["documents"]),
            targets=tuple({OVERALL: (_one_hot(grade), 1.0)} for grade in row["grades"]),
        )
        for row in read_groups(Path(work.groups))
    ]
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        trainee = make_trainee(Path(work.model), config, rank=0, world=1)
        objective = Objective(grade=1.0, action=0.0, listwise=0.0)
        started_s, losses = 0.0, []
        for step in range(work.num_steps):
            if step == work.num_warm:
                started_s = time.monotonic()
            chosen = groups[step * work.groups_per_step : (step + 1) * work.groups_per_step]
            losses.append(train_step(trainee, chosen, step, objective)["loss"])
        seconds = time.monotonic() - started_s
        dist.destroy_process_group()
    return Timed(seconds=seconds, first_loss=losses[0])


def time_sentence_transformers(work: Work) -> Timed:
    """CrossEncoderTrainer with its defaults, but for the order of pairs and what is switched off around the steps."""
    from datasets import Dataset
    from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.cross_encoder.losses import CrossEntropyLoss
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """When steps begin and end, and the first one's loss."""

        started_s = ended_s = 0.0
        losses: tuple[float, ...] = ()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.ended_s = time.monotonic()
            if state.global_step == work.num_warm:
                self.started_s = self.ended_s

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            self.losses = (*self.losses, *([logs["loss"]] if "loss" in logs else []))

    def in_order(dataset: Any, batch_size: int, drop_last: bool, **_: Any) -> Any:
        return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)

    rows = read_groups(Path(work.groups))[: work.num_steps * work.groups_per_step]
    pairs = [
        {
            "sentence1": render_prefix(row["query"], row["profile"]),
            "sentence2": render_document(document) + _ANSWER,
            "label": grade,
        }
        for row in rows
        for document, grade in zip(row["documents"], row["grades"], strict=True)
    ]
    encoder = CrossEncoder(str(plain_text(Path(work.model))), num_labels=NUM_GRADES, device="cpu", max_length=4096)
    for name, weight in encoder.named_parameters():
        if "embed_tokens" in name:
            weight.requires_grad_(False)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = CrossEncoderTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=work.groups_per_step * work.documents_per_group,
            max_steps=work.num_steps,
            learning_rate=1e-5,
            bf16=computed_in(work.precision) == "bfloat16",
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            # The first loss alone is read; a log costs nothing beside a step.
            logging_steps=1,
            disable_tqdm=True,
            batch_sampler=in_order,
        )
        trainer = CrossEncoderTrainer(
            model=encoder,
            args=arguments,
            train_dataset=Dataset.from_list(pairs),
            loss=CrossEntropyLoss(encoder),
            callbacks=[clock],
        )
        trainer.train()
    return Timed(seconds=clock.ended_s - clock.started_s, first_loss=float(clock.losses[0]))


def _one_hot(grade: int) -> list[float]:
    return [float(grade == other) for other in range(NUM_GRADES)]


def main(argv: Sequence[str]) -> None:
    work = Work(**json.loads(Path(argv[0]).read_text()))
    timed = time_sentence_transformers(work) if work.trainer == "sentence-transformers" else time_ours(work)
    Path(argv[0]).with_suffix(".out").write_text(json.dumps(asdict(timed)))


if __name__ == "__main__":
    main(sys.argv[1:])
