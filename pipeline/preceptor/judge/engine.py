"""vLLM engines under Ray Data: the processor both vLLM judges share, and the stream of rows out of it.

Only `ray.data.llm` starts engines; a stage never calls ray.init, the job owns the cluster.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from preceptor.errors import StageFailed
from preceptor.judge.replies import ENGINE_ERROR, OVER_LONG
from preceptor.recipe import EngineConfig

ERROR: Final = "__inference_error__"
"""The column ray.data.llm reports a failed row in. A row that arrives with it set passes the engine untouched."""

Row = dict[str, Any]

_CPU_BLOCK_TOKENS: Final = 32

# Logical CPUs of the light actors around an engine: they idle while it works, and on a small local cluster whole CPUs
# for them would leave none for the engine, which Ray waits for without an error.
_LIGHT_CPUS: Final = 0.1

# Measured: transformers with a tokenizer takes 455 MiB.
_PREPARE_BYTES: Final = 600 * 2**20


def run_engine(
    pairs: pa.Table,
    *,
    model: str,
    engine: EngineConfig,
    task: Literal["generate", "classify"],
    rows_per_pair: int,
    prepare: type,
    prepare_args: Mapping[str, Any],
    finish: Callable[[Row], Row],
    columns: Sequence[str],
) -> Iterator[list[Row]]:
    """Rows of `columns` and `ERROR`, streamed in batches as `engine` answers.

    `prepare` is a callable class, built once per replica with `prepare_args`. It turns an Arrow table of pairs
    into another, `rows_per_pair` times as long, with ``tokenized_prompt``, `ERROR`, and ``sampling_params`` or
    ``pooling_params``. `finish` picks what is wanted from an engine's output row; failed rows skip it and keep only the
    columns that `prepare` made. Raises StageFailed where the engine cannot start or Ray gives up.
    """
    from ray.data import ActorPoolStrategy, TaskPoolStrategy
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    config = vLLMEngineProcessorConfig(
        model_source=model,
        task_type=task,
        engine_kwargs=_engine_kwargs(engine),
        runtime_env={"env_vars": _env_vars(model, engine)},
        placement_group_config={"bundles": _bundles(engine)},
        concurrency=(engine.num_replicas, engine.num_replicas),
        batch_size=engine.batch_size,
        should_continue_on_error=True,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
    )
    light = {"num_cpus": _LIGHT_CPUS, "compute": TaskPoolStrategy(size=engine.num_replicas)}
    processor = build_processor(
        config,
        preprocess=_unchanged,
        postprocess=finish,
        preprocess_map_kwargs=light,
        postprocess_map_kwargs=light,
    )
    # An engine hands its rows on block by block, so a block is one batch: a larger one holds finished rows back.
    pairs_per_batch = max(1, engine.batch_size // rows_per_pair)
    prepared = dataset_of(pairs, rows_per_block=pairs_per_batch).map_batches(
        prepare,
        fn_constructor_kwargs=dict(prepare_args),
        batch_size=pairs_per_batch,
        batch_format="pyarrow",
        num_cpus=_LIGHT_CPUS,
        memory=_PREPARE_BYTES,
        compute=ActorPoolStrategy(size=engine.num_replicas),
    )
    return stream(processor(prepared), columns=[*columns, ERROR], what=f"engine of {Path(model).name}")


def dataset_of(pairs: pa.Table, *, rows_per_block: int) -> Any:
    """A Ray Dataset of `pairs` in order, in blocks of `rows_per_block`, with Ray Data's own progress bars off."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    starts = range(0, max(pairs.num_rows, 1), rows_per_block)
    return ray.data.from_arrow([pairs.slice(start, rows_per_block) for start in starts])


def stream(dataset: Any, *, columns: Sequence[str], what: str) -> Iterator[list[Row]]:
    """The rows of `dataset`, block by block, with just `columns` (None where a row lacks one).

    StageFailed, naming `what`, where Ray gives up.
    """
    import ray.exceptions

    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            present = batch.select([name for name in columns if name in batch.column_names])
            yield [{name: row.get(name) for name in columns} for row in present.to_pylist()]
    except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1][:300]
        raise StageFailed(
            f"{what} stopped: {reason}. Finished parts are kept: mend the cause and run the same command again."
        ) from error


def over_long(num_tokens: int, engine: EngineConfig, *, num_new: int) -> str:
    """What to put in `ERROR` for a prompt of `num_tokens`: empty where it and `num_new` more fit the engine."""
    limit = engine.max_model_len
    return f"{OVER_LONG}: {num_tokens} tokens, limit {limit - num_new}" if num_tokens + num_new > limit else ""


def reason_of(error: str) -> str:
    """A countable reason for the content of `ERROR`: 'over-long', or 'engine error' with the exception's class."""
    kind = error.split(":", 1)[0]
    return OVER_LONG if kind == OVER_LONG else f"{ENGINE_ERROR}: {kind}"


def _engine_kwargs(engine: EngineConfig) -> dict[str, Any]:
    kwargs: dict[str, Any] = {
        "max_model_len": engine.max_model_len,
        "max_num_batched_tokens": max(engine.max_num_batched_tokens, engine.max_model_len),
        "max_num_seqs": 2 * engine.batch_size,
        "enforce_eager": engine.enforce_eager,
        "dtype": engine.dtype,
        "disable_log_stats": True,
        # Rows that share a query and a profile are neighbours. Measured: the same logits, 61 instead of 45 pairs/s for
        # a teacher of 6 layers on 2 cores.
        "enable_prefix_caching": True,
    }
    if not engine.gpus_per_replica:
        # Prompts share their prefix in whole blocks: with vLLM's 128 tokens per block on CPU, each question would read
        # up to 127 tokens of its pair again.
        kwargs["block_size"] = _CPU_BLOCK_TOKENS
    if engine.gpus_per_replica > 1:
        kwargs["tensor_parallel_size"] = engine.gpus_per_replica
    return kwargs


def _bundles(engine: EngineConfig) -> list[dict[str, float]]:
    if engine.gpus_per_replica:
        return [{"GPU": 1, "CPU": engine.cpus_per_replica}] * engine.gpus_per_replica
    return [{"CPU": engine.cpus_per_replica}]


def _env_vars(model: str, engine: EngineConfig) -> dict[str, str]:
    env = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if not engine.gpus_per_replica:
        env["VLLM_CPU_KVCACHE_SPACE"] = str(engine.kv_cache_gib)
        # Without this vLLM runs its CPU worker in one more process, which imports everything a third time.
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        env["OMP_NUM_THREADS"] = str(_num_threads(engine))
    if Path(model).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    return env


def _num_threads(engine: EngineConfig) -> int:
    """Threads of a CPU engine: the CPUs it reserves, or all of this machine where it reserves the usual one."""
    return int(engine.cpus_per_replica) if engine.cpus_per_replica > 1 else len(os.sched_getaffinity(0))


def _unchanged(row: Row) -> Row:
    return row
