"""A vLLM engine of the actor that asks it: prompts in, outputs out, and a watch that ends it when it stands still.

Where the engine dies or stalls, the actor ends: Ray starts another and gives it the same block. Only graders open
engines; importing this module imports no vLLM.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TypeVar

from preceptor.judge.cores import open_core
from preceptor.judge.replies import ENGINE_ERROR, OVER_LONG, Usage, Workers
from preceptor.precision import computed_in
from preceptor.recipe import EngineConfig

Task = Literal["generate", "classify"]
T = TypeVar("T")

_CPU_BLOCK_TOKENS: Final = 32
_WATCH_S: Final = 1.0
_ENGINE_GONE: Final = 86
"""Exit code of an actor whose engine died or stalled."""


class Engine:
    """A running engine. `ask` may be called many times at once, on one event loop."""

    def __init__(self, *, model: str, config: EngineConfig, task: Task) -> None:
        os.environ.update(environment(model, config))
        self.model = model
        self.config = config
        self.adapter = _adapter(config)
        self._core = open_core(
            {"model": model, **engine_arguments(config, task)},
            own_process=config.in_own_process,
            died=self._died,
            stall_s=config.stall_s,
        )
        self._num_asked = 0
        self._num_open = 0
        self._opened_s = 0.0
        self._busy_s = 0.0
        self._moved_s = time.monotonic()
        threading.Thread(target=self._watch, daemon=True, name="engine-watch").start()

    async def ask(self, token_ids: Sequence[int], params: Any) -> Any:
        """vLLM's output for a prompt: a RequestOutput with SamplingParams, a PoolingRequestOutput with PoolingParams.

        RuntimeError where the engine refuses this request; where it dies, this process ends.
        """
        self._num_asked += 1
        self._begin()
        try:
            output = await self._core.ask(str(self._num_asked), token_ids, params, self.adapter)
        finally:
            self._end()
        if getattr(output, "error", None):
            raise RuntimeError(f"the engine refused a request: {output.error}")
        return output

    def take_busy_s(self) -> float:
        """Seconds with a request open since the last call."""
        now_s = time.monotonic()
        taken = self._busy_s + (now_s - self._opened_s if self._num_open else 0.0)
        self._busy_s, self._opened_s = 0.0, now_s
        return taken

    def _died(self, error: BaseException) -> NoReturn:
        give_up(f"the engine of {Path(self.model).name} died ({error})")

    def _begin(self) -> None:
        now_s = time.monotonic()
        if not self._num_open:
            self._opened_s = self._moved_s = now_s
        self._num_open += 1

    def _end(self) -> None:
        self._num_open -= 1
        self._moved_s = time.monotonic()
        if not self._num_open:
            self._busy_s += self._moved_s - self._opened_s

    def _watch(self) -> None:
        """End this process where requests are open and none has been answered for `stall_s` seconds."""
        while True:
            time.sleep(_WATCH_S)
            still_s = time.monotonic() - self._moved_s
            if self._num_open and still_s > self.config.stall_s:
                give_up(f"the engine of {Path(self.model).name} has answered nothing for {still_s:.0f} s")


def give_up(why: str) -> NoReturn:
    """End this actor and its engine's processes, so that Ray starts another actor and repeats what this one had."""
    print(f"preceptor: {why}; starting another", file=sys.stderr, flush=True)
    for child in multiprocessing.active_children():
        # A core that stands still hears nothing softer.
        child.kill()
    os._exit(_ENGINE_GONE)


def engine_arguments(config: EngineConfig, task: Task) -> dict[str, Any]:
    """What vLLM is told of `config`."""
    runner = {"runner": "generate"} if task == "generate" else {"runner": "pooling", "convert": "classify"}
    arguments: dict[str, Any] = {
        **runner,
        "max_model_len": config.max_model_len,
        "max_num_batched_tokens": max(config.max_num_batched_tokens, config.max_model_len),
        "max_num_seqs": 2 * config.batch_size,
        "enforce_eager": config.enforce_eager,
        "dtype": computed_in(config.dtype, num_gpus=config.gpus_per_replica),
        "disable_log_stats": True,
        "enable_prefix_caching": True,
        "max_logprobs": -1,
    }
    if not config.gpus_per_replica:
        # Prompts share their prefix in whole blocks: with vLLM's 128 tokens per block on CPU, each question would read
        # up to 127 tokens of its pair again.
        arguments["block_size"] = _CPU_BLOCK_TOKENS
    if config.gpus_per_replica > 1:
        arguments |= {"tensor_parallel_size": config.gpus_per_replica, "distributed_executor_backend": "mp"}
    if config.lora is not None:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _rank(config.lora)}
    return arguments


def workers_of(model: str, config: EngineConfig) -> Workers:
    """One actor for each engine of `config`; each works on `config.blocks_in_flight` blocks at once."""
    return Workers(
        num_actors=config.num_replicas,
        cpus=config.cpus_per_replica,
        gpus=config.gpus_per_replica,
        blocks_in_flight=config.blocks_in_flight,
        env=environment(model, config),
        give_up_s=2 * config.stall_s + config.start_s,
        fill_the_cpus=not config.gpus_per_replica,
    )


def environment(model: str, config: EngineConfig) -> dict[str, str]:
    """Environment variables of an engine's process."""
    env = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if not config.gpus_per_replica:
        env["VLLM_CPU_KVCACHE_SPACE"] = str(config.kv_cache_gib)
        env["OMP_NUM_THREADS"] = str(_num_threads(config))
    if not (config.gpus_per_replica and config.in_own_process):
        # Without this vLLM runs a CPU's worker, or an engine that is to run within, in one more process, which imports
        # everything once more.
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if Path(model).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    return env


def over_long(num_tokens: int, config: EngineConfig, *, num_new: int) -> str:
    """What is wrong with a prompt of `num_tokens`: empty where it and `num_new` more fit the engine."""
    limit = config.max_model_len
    return f"{OVER_LONG}: {num_tokens} tokens, limit {limit - num_new}" if num_tokens + num_new > limit else ""


def reason_of(error: str) -> str:
    """A countable reason for what went wrong: 'over-long', or 'engine error' with the exception's class."""
    kind = error.split(":", 1)[0]
    return OVER_LONG if kind == OVER_LONG else f"{ENGINE_ERROR}: {kind}"


async def answered(engine: Engine, asks: Sequence[Awaitable[tuple[T, Usage]]]) -> tuple[list[T | Exception], Usage]:
    """What each of `asks` gave, or the exception it failed with, and the sum of what they took.

    They are started in order; a row that fails fails alone.
    """

    async def kept(ask: Awaitable[tuple[T, Usage]]) -> tuple[T | Exception, Usage]:
        try:
            return await ask
        except Exception as error:
            return error, Usage()

    found = await asyncio.gather(*map(kept, asks))
    return [value for value, _ in found], sum((usage for _, usage in found), Usage(busy_s=engine.take_busy_s()))


def usage_of(output: Any, *, num_generated: int) -> Usage:
    """The tokens that a vLLM output read, and those it wrote."""
    return Usage(
        num_prompt_tokens=len(output.prompt_token_ids),
        num_cached_tokens=output.num_cached_tokens or 0,
        num_generated_tokens=num_generated,
    )


def _adapter(config: EngineConfig) -> Any:
    if config.lora is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, config.lora)


def _rank(lora: str) -> int:
    """The adapter's rank, rounded up to one vLLM knows."""
    rank = int(json.loads((Path(lora) / "adapter_config.json").read_text())["r"])
    return next((known for known in (8, 16, 32, 64, 128, 256, 320, 512) if known >= rank), rank)


def _num_threads(config: EngineConfig) -> int:
    """Threads of a CPU engine: the CPUs it reserves, or its share of this machine where it reserves the usual one."""
    if config.cpus_per_replica > 1:
        return int(config.cpus_per_replica)
    return max(1, len(os.sched_getaffinity(0)) // config.num_replicas)
