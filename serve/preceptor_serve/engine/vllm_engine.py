"""A bundle in vLLM's pooling runner, with its prefix cache, behind the calls of the CPU engine: for a GPU replica.

vLLM has its own scheduler and keeps a request's shared part in its prefix cache, so nothing is packed here: every
document is asked as prefix and document, as token ids, and vLLM computes the prefix of a request once.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

from preceptor.bundle import DocumentScore, Reader, open_reader
from preceptor.errors import InputError, StageFailed
from preceptor.precision import computed_in
from preceptor_serve.engine.bundled import BundledEngine
from preceptor_serve.engine.caches import ByteCache
from preceptor_serve.engine.counts import Counts
from preceptor_serve.engine.jobs import Job, Logits, new_job
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.engine.packing import Tokens
from preceptor_serve.scorer import Load, all_of


class VllmEngine(BundledEngine):
    """Scores requests through vLLM. Safe to call from any thread; `close` ends its engine."""

    def __init__(self, path: Path, options: EngineOptions) -> None:
        if options.precision == "int8":
            raise InputError("precision int8 is the CPU engine's. Choose bfloat16 for a replica with a GPU.")
        super().__init__(open_reader(path), options)
        self._pending: dict[int, tuple[Job, float]] = {}
        self._numbers = itertools.count()
        self._closing = threading.Lock()
        self._closed = False
        self._answered_s = time.monotonic()
        self._tokens_per_s = self._busy_s = 0.0
        self._num_tokens = self._num_documents = 0
        # vLLM ties itself to the event loop it first answers on: it gets one of its own, on its own thread.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-engine", daemon=True)
        self._thread.start()
        try:
            self._engine = asyncio.run_coroutine_threadsafe(_start(path, self.reader, options), self._loop).result()
        except BaseException:
            self._end_loop()
            raise

    def load(self) -> Load:
        """What waits or is computed now."""
        jobs = [job for job, _ in list(self._pending.values())]
        return Load(
            num_requests=len(jobs), num_tokens=sum(job.num_tokens for job in jobs), tokens_per_s=self._tokens_per_s
        )

    def counts(self) -> Counts:
        """What it has done so far; passes and padding are vLLM's own, and not known here."""
        desk = self._desk
        return Counts(
            num_passes=0,
            num_tokens=self._num_tokens,
            num_padding_tokens=0,
            num_documents=self._num_documents,
            busy_s=self._busy_s,
            score_hits=desk.scores.num_hits,
            score_misses=desk.scores.num_misses,
            prefix_hits=0,
            prefix_misses=0,
            token_hits=desk.tokens.num_hits,
            token_misses=desk.tokens.num_misses,
        )

    def stuck_s(self) -> float:
        """Seconds for which requests have waited and none was answered; infinite where vLLM has died."""
        if self._engine.errored:
            return float("inf")
        started = [since_s for _, since_s in list(self._pending.values())]
        return time.monotonic() - max(min(started), self._answered_s) if started else 0.0

    def close(self) -> None:
        """End vLLM and its thread; what still waits is cancelled, and a second call does nothing."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._engine.shutdown()
        self._end_loop()

    def _end_loop(self) -> None:
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _submit(
        self, query: str, profile: str, documents: Sequence[str], scores: ByteCache[Logits] | None
    ) -> Future[tuple[DocumentScore, ...]]:
        job = new_job(self.reader, query, profile, documents, scores)
        with self._closing:
            if self._closed:
                raise StageFailed(f"{self.bundle_id}: the engine is closed and scores nothing more. Load it again.")
            # Counted from here on: what waits to be read is load as well.
            number = next(self._numbers)
            self._pending[number] = (job, time.monotonic())
            future = asyncio.run_coroutine_threadsafe(self._answer(job, number), self._loop)
        # Cancelled before its first step, it has no `finally` that runs.
        future.add_done_callback(lambda _: self._pending.pop(number, None))
        return future

    async def _answer(self, job: Job, number: int) -> tuple[DocumentScore, ...]:
        started_s = time.monotonic()
        try:
            self._desk.open(job)
            num_tokens = job.num_tokens
            waiting = list(job.waiting)
            await all_of(
                self._encode(job, index, tokens, f"{number}-{place}") for place, (index, tokens) in enumerate(waiting)
            )
            busy_from_s, self._answered_s = self._answered_s, time.monotonic()
            self._num_tokens += num_tokens
            self._num_documents += len(waiting)
            self._busy_s += self._answered_s - max(started_s, busy_from_s)
            self._tokens_per_s = num_tokens / max(self._answered_s - started_s, 1e-9)
        finally:
            self._pending.pop(number, None)
        return tuple(self.reader.to_score(row) for row in job.rows if row is not None)

    async def _encode(self, job: Job, index: int, tokens: Tokens, name: str) -> None:
        from vllm import PoolingParams

        assert isinstance(job.prefix, tuple)
        asked = {"prompt_token_ids": [*job.prefix, *tokens]}
        parameters = PoolingParams(task="classify", use_activation=False)
        async for answer in self._engine.encode(asked, parameters, request_id=name):
            if answer.finished:
                self._desk.keep(job, index, tuple(answer.outputs.data.flatten().tolist()))
                return
        raise StageFailed(f"{self.bundle_id}: vLLM gave no answer to a document. See its log.")


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _start(path: Path, reader: Reader, options: EngineOptions) -> Any:
    import torch
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    wanted: Literal["float32", "bfloat16"] = "float32" if options.precision == "float32" else "bfloat16"
    arguments = AsyncEngineArgs(
        model=str(path),
        runner="pooling",
        dtype=computed_in(wanted, num_gpus=torch.cuda.device_count()),
        enable_prefix_caching=options.prefix_cache_mib > 0,
        # One more than the longest pair: vLLM keeps room for a token it will never generate.
        max_model_len=reader.max_prefix_tokens + reader.max_document_tokens + 1,
        enforce_eager=not torch.cuda.is_available(),
    )
    return AsyncLLM.from_engine_args(arguments)
