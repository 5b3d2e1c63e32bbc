"""An engine on a thread of the process that asks it. A fake stands for vLLM: what is tested is who is told what."""

from __future__ import annotations

import asyncio
import sys
import threading
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import pytest

from preceptor.judge.cores import Core, open_core

REFUSED, FATAL, SLOW = 1, 2, 3
"""First tokens that the fake takes amiss, or takes two steps for."""


@dataclass(frozen=True)
class Output:
    request_id: str
    finished: bool
    said: int


class FakeEngine:
    """Answers every request at the next step with the sum of its tokens."""

    @classmethod
    def from_engine_args(cls, arguments: Any) -> FakeEngine:
        if arguments.model == "missing":
            raise ValueError("no such model")
        return cls()

    def __init__(self) -> None:
        self.open: list[tuple[str, list[int], int]] = []
        self.thread = threading.get_ident()

    def add_request(self, number: str, prompt: list[int], params: Any, lora_request: Any) -> None:
        assert threading.get_ident() == self.thread
        if prompt[0] == REFUSED:
            raise ValueError("a token that I do not know")
        self.open.append((number, prompt, 2 if prompt[0] == SLOW else 1))

    def step(self) -> list[Output]:
        assert threading.get_ident() == self.thread
        if any(prompt[0] == FATAL for _, prompt, _ in self.open):
            raise MemoryError("no memory left")
        outputs = [Output(number, left == 1, sum(prompt)) for number, prompt, left in self.open]
        self.open = [(number, prompt, left - 1) for number, prompt, left in self.open if left > 1]
        return outputs


@pytest.fixture(autouse=True)
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: dict[str, dict[str, Any]] = {
        "vllm": {"EngineArgs": SimpleNamespace},
        "vllm.inputs": {"tokens_input": lambda ids: ids},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.llm_engine": {"LLMEngine": FakeEngine},
    }
    for name, held in parts.items():
        module = ModuleType(name)
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, name, module)


def core(died: Any = None, model: str = "here") -> Core:
    def never(error: BaseException) -> NoReturn:
        raise AssertionError(error)

    return open_core({"model": model}, own_process=False, died=died or never, stall_s=60.0)


def asked(engine: Core, *prompts: list[int]) -> list[Any]:
    async def all_at_once() -> list[Any]:
        asks = [engine.ask(str(number), prompt, None, None) for number, prompt in enumerate(prompts)]
        return await asyncio.wait_for(asyncio.gather(*asks, return_exceptions=True), timeout=30)

    return asyncio.run(all_at_once())


def test_everyone_gets_the_answer_to_what_they_asked() -> None:
    engine = core()
    for _ in range(2):
        prompts = [[10, number] for number in range(50)] + [[SLOW, 1]]
        found = asked(engine, *prompts)
        assert [answer.said for answer in found] == [sum(prompt) for prompt in prompts]
        assert all(answer.finished for answer in found), "what a step had not finished was nobody's answer"


def test_a_refused_request_fails_alone() -> None:
    first, refused, last = asked(core(), [10], [REFUSED], [20])
    assert (first.said, last.said) == (10, 20)
    assert isinstance(refused, ValueError) and "I do not know" in str(refused)


def test_whoever_no_longer_waits_holds_nobody_up() -> None:
    engine = core()

    async def body() -> int:
        gone = asyncio.ensure_future(engine.ask("gone", [10], None, None))
        await asyncio.sleep(0)
        gone.cancel()
        answer = await asyncio.wait_for(engine.ask("here", [20], None, None), timeout=30)
        return int(answer.said)

    assert asyncio.run(body()) == 20


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_fails_is_reported_with_its_reason() -> None:
    reported: list[BaseException] = []
    told = threading.Event()

    def died(error: BaseException) -> NoReturn:
        reported.append(error)
        told.set()
        # As the end of the process would: the thread computes no further.
        sys.exit()

    async def body() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(core(died).ask("1", [FATAL], None, None), timeout=0.2)

    asyncio.run(body())
    assert told.wait(30)
    assert isinstance(reported[0], MemoryError)


def test_what_vllm_says_of_a_model_reaches_whoever_opens_it() -> None:
    with pytest.raises(ValueError, match="no such model"):
        core(model="missing")
