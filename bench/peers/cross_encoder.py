"""The peer of the matching teacher: sentence-transformers' CrossEncoder, tuned on the same judged pairs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preceptor.precision import computed_in

MAX_TOKENS = 160
DOCUMENTS_PER_QUERY = 12
QUERIES_PER_STEP = 2
_NOTHING = -1e4
"""A label whose share is nought."""


def pair_text(names: Sequence[str], text: str) -> str:
    """What a cross-encoder reads of a posting, as far as MAX_TOKENS go: its text, then its other names."""
    return f"{text} Also called: {'; '.join(names[1:])}" if len(names) > 1 else text


def labels(gains: Sequence[float]) -> list[float]:
    """Labels of which ListNetLoss makes the gains' shares: it takes their softmax."""
    return [math.log(gain) if gain > 0 else _NOTHING for gain in gains]


def stop_after(seconds: float) -> Any:
    """A callback that ends a Trainer after `seconds`; made late, so that only what runs it imports transformers."""
    from transformers import TrainerCallback

    class _Stop(TrainerCallback):
        started = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = time.monotonic() - self.started > seconds

    return _Stop()


def tune(lists: Sequence[Mapping[str, Any]], *, backbone: Path, seconds: float, out: Path, seed: int = 17) -> Any:
    """A CrossEncoder of one label, started from `backbone` and tuned by ListNet on `lists` for `seconds`.

    A list is {query, docs, labels}, the labels those of `labels`.
    """
    from datasets import Dataset
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import ListNetLoss

    model = CrossEncoder(str(backbone), num_labels=1, max_length=MAX_TOKENS, device="cpu")
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(out),
        num_train_epochs=1000,
        per_device_train_batch_size=QUERIES_PER_STEP,
        learning_rate=5e-5,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=20,
        bf16=computed_in("bfloat16") == "bfloat16",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=seed,
    )
    trainer = CrossEncoderTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([dict(item) for item in lists]),
        loss=ListNetLoss(model),
        callbacks=[stop_after(seconds)],
    )
    trainer.train()
    print(f"cross-encoder: {trainer.state.global_step} steps of {QUERIES_PER_STEP} lists", flush=True)
    return model


def scores(model: Any, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """The model's score of each pair, in order."""
    return np.asarray(model.predict(list(pairs), batch_size=32, show_progress_bar=False), dtype=np.float64)
