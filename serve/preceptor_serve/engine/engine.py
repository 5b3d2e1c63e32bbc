"""The engine: requests of many callers in, one thread that packs them into forward passes, scores out.

One thread computes, because a forward pass takes all of a replica's cores. It takes documents in the order of their
requests' arrival, up to a budget of tokens, so that the tail of one request and the head of the next share a pass.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError

import torch

from preceptor.bundle import DocumentScore, Reader
from preceptor.errors import StageFailed
from preceptor.precedence import take_precedence
from preceptor_serve.engine.bundled import BundledEngine
from preceptor_serve.engine.caches import ByteCache
from preceptor_serve.engine.counts import Counts
from preceptor_serve.engine.forward import forward
from preceptor_serve.engine.jobs import Job, Logits, new_job, next_pieces
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.engine.packing import pack
from preceptor_serve.engine.student import Student
from preceptor_serve.scorer import Load

INT8_TOLERANCE = 0.1
"""Largest accepted difference of a probability from the known answers with int8 weights. What int8 must keep is the
ranking (gate.py); this bound tells a rounded student from a broken one."""


class Engine(BundledEngine):
    """Scores requests with a student. Safe to call from any thread; `close` ends its own."""

    def __init__(self, reader: Reader, student: Student, options: EngineOptions) -> None:
        super().__init__(reader, options)
        self._student = student
        self._arrived: deque[Job] = deque()
        self._active: list[Job] = []
        self._wake = threading.Condition()
        self._closed = False
        self._pass_started_s: float | None = None
        self._tokens_per_s = 0.0
        self._num_passes = self._num_tokens = self._num_rows = self._num_documents = 0
        self._busy_s = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def tolerance(self) -> float:
        return INT8_TOLERANCE if self.options.precision == "int8" else super().tolerance

    def load(self) -> Load:
        """What waits now."""
        with self._wake:
            jobs = [*self._active, *self._arrived]
            return Load(
                num_requests=len(jobs),
                num_tokens=sum(job.num_tokens for job in jobs),
                tokens_per_s=self._tokens_per_s,
            )

    def counts(self) -> Counts:
        """What it has done so far."""
        desk = self._desk
        return Counts(
            num_passes=self._num_passes,
            num_tokens=self._num_tokens,
            num_padding_tokens=self._num_rows - self._num_tokens,
            num_documents=self._num_documents,
            busy_s=self._busy_s,
            score_hits=desk.scores.num_hits,
            score_misses=desk.scores.num_misses,
            prefix_hits=desk.prefixes.num_hits,
            prefix_misses=desk.prefixes.num_misses,
            token_hits=desk.tokens.num_hits,
            token_misses=desk.tokens.num_misses,
        )

    def stuck_s(self) -> float:
        """Seconds the forward pass now running has taken; 0 where none runs. Infinite once the thread is gone."""
        if not self._thread.is_alive():
            return float("inf")
        started_s = self._pass_started_s
        return 0.0 if started_s is None else time.monotonic() - started_s

    def close(self) -> None:
        """End the thread; what still waits is cancelled."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        for job in (*self._active, *self._arrived):
            job.future.cancel()

    def _submit(
        self, query: str, profile: str, documents: Sequence[str], scores: ByteCache[Logits] | None
    ) -> Future[tuple[DocumentScore, ...]]:
        job = new_job(self.reader, query, profile, documents, scores)
        if not job.documents:
            job.future.set_result(())
            return job.future
        with self._wake:
            if self._closed:
                raise StageFailed(f"{self.bundle_id}: the engine is closed and scores nothing more. Load it again.")
            self._arrived.append(job)
            self._wake.notify()
        return job.future

    def _run(self) -> None:
        if self.options.cores:
            # Of this thread: torch's own are its children and inherit it; the rest of the process stays free.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self.options.cores)
        # With torch's, for the same reason. They wait for each other: what stood in the place of one would cost both.
        take_precedence()
        torch.set_num_threads(max(1, self.options.threads))
        while self._waited():
            self._pass_started_s = time.monotonic()
            try:
                self._admit()
                self._step()
                self._settle()
            except Exception as error:
                # Whatever it was: nobody may wait for an answer that will not come, and those that follow are served.
                self._fail_active(error)
            finally:
                self._pass_started_s = None

    def _waited(self) -> bool:
        """Whether there is work, once there is; False once the engine is closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._arrived or self._active)
            return not self._closed

    def _admit(self) -> None:
        """Reads no more jobs than fill the next pass, so that what they find in the caches is fresh."""
        self._active = [job for job in self._active if not job.future.cancelled()]
        room = self.options.max_forward_tokens - sum(job.num_tokens for job in self._active)
        while room > 0 and self._arrived:
            with self._wake:
                job = self._arrived.popleft()
                self._active.append(job)
            if not job.future.cancelled() and self._opened(job):
                room -= job.num_tokens

    def _opened(self, job: Job) -> bool:
        try:
            self._desk.open(job)
        except Exception as error:
            _fail(job, error)
            return False
        return True

    def _step(self) -> None:
        """One forward pass over what waits first."""
        taken = next_pieces(self._active, max_tokens=self.options.max_forward_tokens)
        if not taken:
            return
        pieces = [piece for _, _, piece in taken]
        started_s = time.monotonic()
        try:
            packed = pack(pieces)
            done = forward(self._student, packed)
        except Exception as error:
            # The requests of this pass are lost, the engine is not.
            for job, _, _ in taken:
                _fail(job, error)
            return
        rows = [list(row) for row in done.logits_NR.tolist()]
        asked = [(job, index) for job, numbers, _ in taken for index in numbers]
        sick: set[int] = set()
        for row, place in zip(rows, packed.order_N, strict=True):
            job, index = asked[place]
            if not self._desk.keep(job, index, tuple(row)):
                sick.add(id(job))
        for (job, _, _), state in zip(taken, done.prefixes, strict=True):
            # A prefix under a logit that is no number may be what made it so: it is computed again.
            if id(job) not in sick:
                self._desk.keep_prefix(job, state)
        num_new = sum(piece.num_new_tokens for piece in pieces)
        self._count(num_new, num_rows=packed.tokens_T.shape[0], num_documents=len(rows), started_s=started_s)

    def _count(self, num_tokens: int, *, num_rows: int, num_documents: int, started_s: float) -> None:
        seconds = time.monotonic() - started_s
        self._num_passes += 1
        self._num_tokens += num_tokens
        self._num_rows += num_rows
        self._num_documents += num_documents
        self._busy_s += seconds
        speed = num_tokens / max(seconds, 1e-9)
        self._tokens_per_s = speed if self._num_passes == 1 else 0.8 * self._tokens_per_s + 0.2 * speed

    def _settle(self) -> None:
        """Let go of the jobs that lack nothing, and answer them."""
        left = [job for job in self._active if not job.future.done()]
        with self._wake:
            # First: whoever has an answer no longer counts as waiting.
            self._active = [job for job in left if not job.is_done]
        for job in left:
            if not job.is_done:
                continue
            try:
                scores = tuple(self.reader.to_score(row) for row in job.rows if row is not None)
            except Exception as error:
                _fail(job, error)
                continue
            # Cancelled meanwhile: nobody asks any more.
            with contextlib.suppress(InvalidStateError):
                job.future.set_result(scores)

    def _fail_active(self, error: Exception) -> None:
        with self._wake:
            failed, self._active = self._active, []
        for job in failed:
            _fail(job, error)


def _fail(job: Job, error: Exception) -> None:
    # One that was cancelled needs no answer, and one that has been answered takes no other.
    with contextlib.suppress(InvalidStateError):
        job.future.set_exception(error)
