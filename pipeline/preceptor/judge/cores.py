"""Where a vLLM engine computes: in a process beside the actor that asks it, or on a thread of the actor itself.

Beside is vLLM's way, and a GPU's: the actor makes prompts while the engine schedules. A CPU engine takes all cores in
any case, and what two processes say to each other is time it does not have.
"""

from __future__ import annotations

import asyncio
import faulthandler
import queue
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

from preceptor.precedence import let_wait_for_idle_cpus, take_precedence

Died = Callable[[BaseException], NoReturn]

_STDERR: Final = 2
# Threads through which workers of one engine would talk to each other. A CPU engine has one worker, and a dozen of
# these, which push aside what computes 100 times a second each.
_LINKS: Final = "gloo_tcp_loop"


class Core(Protocol):
    """A running vLLM engine."""

    async def ask(self, number: str, token_ids: Sequence[int], params: Any, adapter: Any) -> Any:
        """vLLM's finished output for a prompt; `params` are SamplingParams, or PoolingParams of a pooling runner.

        May be called many times at once, on one event loop.
        """


def open_core(arguments: Mapping[str, Any], *, own_process: bool, died: Died, stall_s: float) -> Core:
    """An engine that runs, in a process of its own or on a thread of this one; whatever vLLM raises where it cannot.

    `arguments` are vLLM's. `died` is called with the reason once the engine is beyond help, and does not return. One
    within that takes more than `stall_s` seconds for a step ends this process; one beside is its caller's to watch.
    """
    return CoreBeside(arguments, died) if own_process else CoreWithin(arguments, died, stall_s=stall_s)


class CoreBeside:
    """AsyncLLM, whose core is a process of its own."""

    def __init__(self, arguments: Mapping[str, Any], died: Died) -> None:
        take_precedence()
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        self._asks: Callable[..., AsyncIterator[Any]] = (
            self._engine.encode if arguments["runner"] == "pooling" else self._engine.generate
        )
        self._died = died

    async def ask(self, number: str, token_ids: Sequence[int], params: Any, adapter: Any) -> Any:
        """The last output of the stream that AsyncLLM makes of a request."""
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            async for output in self._asks(tokens_input(list(token_ids)), params, number, lora_request=adapter):
                if output.finished:
                    return output
        except EngineDeadError as error:
            self._died(error)
        raise RuntimeError("the engine ended a request without an answer")


@dataclass(frozen=True, kw_only=True)
class _Asked:
    number: str
    token_ids: Sequence[int]
    params: Any
    adapter: Any
    answer: asyncio.Future[Any]


class CoreWithin:
    """LLMEngine on a thread of this process. A request waits for the step at work to end, as it would beside."""

    def __init__(self, arguments: Mapping[str, Any], died: Died, *, stall_s: float) -> None:
        self._asked: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        self._died = died
        self._stall_s = stall_s
        opened: Future[None] = Future()
        # The thread that opens an engine is the one its pool of threads belongs to: it takes the steps, too.
        threading.Thread(target=self._run, args=(arguments, opened), daemon=True, name="engine").start()
        opened.result()

    async def ask(self, number: str, token_ids: Sequence[int], params: Any, adapter: Any) -> Any:
        """What the step that finishes the request gives."""
        answer = asyncio.get_running_loop().create_future()
        self._asked.put(_Asked(number=number, token_ids=token_ids, params=params, adapter=adapter, answer=answer))
        return await answer

    def _run(self, arguments: Mapping[str, Any], opened: Future[None]) -> None:
        others_give_way = take_precedence()
        try:
            from vllm import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        except BaseException as error:
            # Whatever it is, SystemExit too, is for whoever opens: they wait, and would for ever.
            opened.set_exception(error)
            return
        if others_give_way:
            let_wait_for_idle_cpus(_LINKS)
        opened.set_result(None)
        waiting: dict[str, _Asked] = {}
        while True:
            while not (waiting and self._asked.empty()):
                self._begin(engine, self._asked.get(), waiting)
            # Of a step that holds the interpreter's lock no other thread of Python's could tell.
            faulthandler.dump_traceback_later(self._stall_s, file=_STDERR, exit=True)
            try:
                outputs = engine.step()
            except BaseException as error:
                # Whatever it is, nobody else sees a thread end. Ray counts the process's end as a restart.
                self._died(error)
            finally:
                faulthandler.cancel_dump_traceback_later()
            _tell([(waiting.pop(output.request_id), output) for output in outputs if output.finished])

    def _begin(self, engine: Any, asked: _Asked, waiting: dict[str, _Asked]) -> None:
        from vllm.inputs import tokens_input

        try:
            prompt = tokens_input(list(asked.token_ids))
            engine.add_request(asked.number, prompt, asked.params, lora_request=asked.adapter)
        except Exception as error:
            _tell([(asked, error)])
        else:
            waiting[asked.number] = asked


def _tell(answers: Sequence[tuple[_Asked, Any]]) -> None:
    """Wake those who asked, all on one event loop, once."""
    if answers:
        answers[0][0].answer.get_loop().call_soon_threadsafe(_settle, answers)


def _settle(answers: Sequence[tuple[_Asked, Any]]) -> None:
    for asked, answer in answers:
        if asked.answer.done():
            # Whoever asked was cancelled.
            continue
        if isinstance(answer, Exception):
            asked.answer.set_exception(answer)
        else:
            asked.answer.set_result(answer)
