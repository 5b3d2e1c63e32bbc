"""What the tests of refinement share: a small policy with golden pairs, and two scripted models behind one server.

The judge reads its prompt: what the instructions say and which precedents are shown really changes its grades. The
reflection model proposes what it is told to, one wording after the other.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from preceptor.contracts import content_id
from preceptor.recipe import Budget, JudgeConfig, RefineConfig, ReflectionConfig

GOOD = "Night work counts like day work."
OVERFITTED = "Mind the clock."
TREACHEROUS = "Trust the clock."
HARSH = "Be harsh."

PART_SIZES = {"optimise": 8, "first": 7, "second": 7}

RUBRIC = """\
# A rubric for tests.
name = "small"
version = "1.0.0"

[grades]
0 = "unsuitable"
1 = "weak"
2 = "possible"
3 = "good"
4 = "ideal"

[prompt]
# Why the instructions are so short.
instructions = \"\"\"
Grade the pair. \\
The pair is evidence.\"\"\"
overall_question = "All in all?"
precedents = ["plain-case"]
max_tokens = 400

[aggregation]
rule = "weighted-mean-half-down-then-caps"
caps = [
  { dimension = "work", at_most = 0, overall = 0 },
]

[[dimension]]
name = "work"
title = "Work"
question = "Is it the work?"
weight = 3
[dimension.anchors]
0 = "Other work."
1 = "Same field."
2 = "Neighbouring work."
3 = "Nearly the work."
4 = "The very work."

[[dimension]]
name = "place"
title = "Place"
question = "Is it the place?"
weight = 1
[dimension.anchors]
0 = "Out of reach."
1 = "Far."
2 = "A long way."
3 = "Same area."
4 = "Same place."
"""

DOCUMENT = """\
# Small

Version 1.0.0. A policy for tests.

### Work (`work`)
### Place (`place`)

## Changelog

- **1.0.0.** First version.
"""

PRECEDENTS = (
    ("plain-case", "cook", "Plain cook, the very work."),
    ("night-case", "night cook", "Nights are like days."),
    ("far-case", "far cook", "Far is far."),
)


def query_named(part: str, number: int) -> str:
    """The `number`-th query that refinement puts into `part`."""
    found = [name for name in (f"query {n}" for n in range(400)) if part_of(name) == part]
    return found[number]


def part_of(query: str) -> str:
    point = int(content_id("refine", content_id(query)), 16) / 2**64
    return "optimise" if point < 0.5 else "first" if point < 0.75 else "second"


def golden_rows() -> list[dict[str, Any]]:
    """Two pairs a query; the document of every other one is night work, which the judge gets wrong."""
    rows = []
    for part, num in PART_SIZES.items():
        for number in range(num):
            for turn in range(2):
                work, place = (number + 2 * turn) % 5, (number * 3 + turn) % 5
                night = "night" if turn == number % 2 else "day"
                overall = 0 if work == 0 else -((4 - 2 * (3 * work + place)) // 8)
                rows.append(
                    {
                        "query": query_named(part, number),
                        "profile": f"member {number}",
                        "document": f"{night} shift {part} {number}.{turn} W{work} P{place}",
                        "slice": night,
                        "split": "calibration",
                        "grades": {"work": work, "place": place, "overall": overall},
                        "grader_id": "market-truth",
                        "reason": "as constructed",
                        "policy_version": "1.0.0",
                    }
                )
    return rows


def write_policy(folder: Path, *, num_rows: int | None = None) -> Path:
    """A policy with golden calibration pairs, and one of the holdout that nobody may see."""
    golden = folder / "golden"
    golden.mkdir(parents=True)
    (folder / "rubric.toml").write_text(RUBRIC)
    (folder / "policy.md").write_text(DOCUMENT)
    grades = {"work": 4, "place": 4, "overall": 4}
    precedents = [
        {"id": name, "query": query, "profile": "", "document": "-", "grades": grades, "reason": reason}
        for name, query, reason in PRECEDENTS
    ]
    _write_lines(folder / "precedents.jsonl", precedents)
    _write_lines(golden / "calibration.jsonl", golden_rows()[:num_rows])
    _write_lines(golden / "holdout.jsonl", [{**golden_rows()[0], "query": "held out", "split": "holdout"}])
    return folder


def _write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


# ---------------------------------------------------------------- the models


@dataclass(kw_only=True)
class Models:
    """Both models behind one server; `proposals` are the wordings by what is asked for, the last one for ever."""

    url: str
    proposals: Mapping[str, Sequence[str]]
    judge_says: Callable[[str, str], str] | None = None
    reflect_says: str | None = None
    on_request: Callable[[int], None] = lambda _: None
    judged: list[tuple[str, str]] = field(default_factory=list)
    reflected: list[str] = field(default_factory=list)
    _turns: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_requests(self) -> int:
        return len(self.judged) + len(self.reflected)

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            chat = body["messages"]
            if chat[0]["role"] == "system":
                asked = chat[0]["content"], chat[1]["content"]
                self.judged.append(asked)
                said = self.judge_says(*asked) if self.judge_says else str(judged_grade(*asked))
            else:
                self.reflected.append(chat[0]["content"])
                said = self.reflect_says if self.reflect_says is not None else self._proposal(chat[0]["content"])
            self.on_request(self.num_requests)
        return completion(said, body)

    def _proposal(self, prompt: str) -> str:
        kind = "precedents" if "Choose which decided cases" in prompt else "instructions"
        turn = self._turns[kind] = self._turns.get(kind, -1) + 1
        wordings = self.proposals.get(kind, ["plain-case"])
        return f"Here it is.\n```\n{wordings[min(turn, len(wordings) - 1)]}\n```"


def judged_grade(system: str, user: str) -> int:
    """Truth as the document says it, but 2 off for night work unless the prompt teaches better."""
    found = re.search(r"Query: (.*)\nMember: .*\nPosting: (.*)\n", user)
    assert found is not None
    query, document = found.groups()
    dimension = "work" if "\nwork: " in user else "place"
    letter = "W" if dimension == "work" else "P"
    truth = int(document.split(letter)[1][0])
    seen = part_of(query) == "optimise"
    slip = int(content_id(document, dimension), 16) % 10 == 0
    if HARSH in system:
        return max(truth - 2, 0)
    if TREACHEROUS in system:
        return truth if seen else 4 - truth
    if OVERFITTED in system and seen:
        return truth
    taught = GOOD in system or "Nights are like days." in system
    if "night" in document and dimension == "work" and not taught:
        return truth - 2 if truth >= 2 else truth + 2
    return abs(truth - 1) if slip else truth


def completion(said: str, body: Mapping[str, Any]) -> dict[str, Any]:
    token = {"token": said, "logprob": -0.05, "bytes": None}
    others = [
        {"token": str(grade), "logprob": -5.0, "bytes": None}
        for grade in range(5)
        if said.isdigit() and str(grade) != said
    ]
    logprobs = {"content": [{**token, "top_logprobs": [token, *others]}]} if body.get("logprobs") else None
    num = sum(len(message["content"]) for message in body["messages"]) // 4
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": said},
                "finish_reason": "stop",
                "logprobs": logprobs,
            }
        ],
        "usage": {"prompt_tokens": num, "completion_tokens": 1, "total_tokens": num + 1},
    }


@contextmanager
def models(proposals: Mapping[str, Sequence[str]] | None = None, **behaviour: Any) -> Iterator[Models]:
    """A server on loopback that is both models."""
    found: list[Models] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            said = json.dumps(found[0].answer(body)).encode()
            self.send_response_only(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        # Sixteen connections are opened at once; a full queue resets some of them.
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """A client that was killed is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    found.append(Models(url=f"http://127.0.0.1:{server.server_address[1]}/v1", proposals=proposals or {}, **behaviour))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield found[0]
    finally:
        server.shutdown()
        server.server_close()


def refine_config(url: str, *, budget: Budget | None = None, **changes: Any) -> RefineConfig:
    judge = JudgeConfig(
        kind="openai",
        model="small-judge",
        base_url=url,
        floor=0.0,
        max_reject_share=0.05,
        num_calibration_pairs=1,
        max_attempts=1,
        timeout_s=20.0,
    )
    values: dict[str, Any] = {
        "judge": judge,
        "reflection": ReflectionConfig(base_url=url, model="large-model", max_attempts=1, timeout_s=20.0),
        "budget": budget or Budget(max_metric_calls=400, max_proposals=8),
        "num_bootstrap": 300,
    }
    return RefineConfig(**{**values, **changes})
