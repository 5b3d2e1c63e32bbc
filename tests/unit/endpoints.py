"""What the tests of endpoints share: a server on loopback that does as told, and a clock that only waiting moves."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa

from preceptor.contracts import make_pair
from preceptor.judge.completions import Verdict
from preceptor.judge.endpoint import Dialect, Endpoint, ask, open_client
from preceptor.judge.openai_judge import EndpointGrader, OpenAIJudge
from preceptor.judge.pacing import Clock, pace_of
from preceptor.judge.replies import Answers
from preceptor.policy import load_policy
from preceptor.recipe import POLICY_DIR, JudgeConfig

POLICY = load_policy(POLICY_DIR)


@dataclass(kw_only=True)
class FakeTime:
    """A clock of its own: sleeping moves it, and nothing else."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def clock(self) -> Clock:
        return Clock(now_s=lambda: self.now, wall_s=lambda: self.now, sleep=self.sleep)

    async def sleep(self, wait: float) -> None:
        self.slept.append(wait)
        until = self.now + wait
        await asyncio.sleep(0)
        self.now = max(self.now, until)


def chat(
    content: str | None,
    tops: dict[str, float] | None = None,
    *,
    tokens: list[dict[str, Any]] | None = None,
    usage: dict[str, Any] | None = None,
) -> bytes:
    listed = [{"token": token, "logprob": value, "bytes": None} for token, value in (tops or {}).items()]
    spelled = tokens or ([{**listed[0], "top_logprobs": listed}] if listed else [])
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content},
        "finish_reason": "length",
        "logprobs": {"content": spelled} if spelled else None,
    }
    answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return json.dumps(answer if usage is None else {**answer, "usage": usage}).encode()


Behaviour = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def send(body: bytes, status: int = 200, *, claim: int | None = None, **headers: str) -> Behaviour:
    def behave(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.send_response_only(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(claim or len(body)))
        # Said, not only done: a client that tried to use the connection again would count one fault more.
        handler.send_header("connection", "close")
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return behave


def reset(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    """Ends the connection with a reset: closing a socket that may not linger."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


@contextmanager
def endpoint(*script: Behaviour, **changes: Any) -> Iterator[tuple[Endpoint, list[Any]]]:
    """A server on loopback that answers its n-th request as the n-th behaviour says, the last one for ever after."""
    seen: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                seen.append(body)
                behave = script[min(len(seen), len(script)) - 1]
            behave(self, body)

        def finish(self) -> None:
            if self.wfile.closed or self.connection.fileno() < 0:
                return
            super().finish()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    where = Endpoint(
        base_url=f"http://127.0.0.1:{server.server_address[1]}/v1",
        model="m",
        api_key="none",
        max_concurrency=4,
        timeout_s=20.0,
        max_attempts=3,
        first_wait_s=0.001,
    )
    try:
        yield replace(where, **changes), seen
    finally:
        server.shutdown()
        server.server_close()


def asked(where: Endpoint, dialect: Dialect | None = None, clock: Clock | None = None) -> Verdict:
    pace = pace_of(requests_per_minute=None, tokens_per_minute=None, clock=clock or FakeTime().clock())

    async def run() -> Verdict:
        async with open_client(where) as client:
            return await ask(client, where, dialect or Dialect(), pace, [{"role": "user", "content": "grade"}])

    return asyncio.run(run())


def pool(num: int) -> list[dict[str, Any]]:
    return [make_pair(f"query {n // 4}", "a welder", f"posting {n}", slice="s", split="train") for n in range(num)]


def graded_by(grader: EndpointGrader, *tables: list[dict[str, Any]]) -> list[Answers]:
    """The answers to several blocks that are asked at once."""

    async def run() -> list[Answers]:
        async with grader.client:
            return list(await asyncio.gather(*(grader.grade(pa.Table.from_pylist(rows)) for rows in tables)))

    return asyncio.run(run())


def grader_of(where: Endpoint, *, time: FakeTime | None = None, dimensions: tuple[str, ...]) -> EndpointGrader:
    judge = OpenAIJudge(endpoint=where, policy=POLICY, dimensions=dimensions)
    return EndpointGrader(judge=judge, clock=(time or FakeTime()).clock())


def config(**changes: Any) -> JudgeConfig:
    chosen = {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", **changes}
    return JudgeConfig(floor=0.5, max_reject_share=0.1, num_calibration_pairs=8, **chosen)


GOOD = send(chat("3", {"3": -0.3, " 3": -3.0, "2": -2.0, "I": -4.0}))
