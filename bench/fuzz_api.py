"""Whether any request makes the HTTP edge fail: cases that schemathesis makes from the OpenAPI document.

    .venv/bin/python bench/fuzz_api.py --cases 10000

Half of a path's cases fit the document and half break it. The scorer has no model: the edge is what is tried. An answer
must be no 5xx, one that the document names for its path, and in the shape given there; a body that breaks the document
must not be answered as if it did not. One 5xx is no failure and is counted apart: 504 deadline_exceeded, the answer to
a deadline of few milliseconds that the case itself set. Exit code 1 where an answer fails, after printing the first of
each kind as a curl command.
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from preceptor_serve.api import make_api
from preceptor_serve.blending import BlendBounds
from preceptor_serve.schema import Limits
from preceptor_serve.scorer import FakeScorer, ThreadedScorer

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
PLAIN_CASES = 10
"""Of a path that takes no input, where every case is the same."""


@dataclass
class Found:
    """What came of the cases: answers by path, kind of case and status, and the first failure of each kind."""

    answers: collections.Counter[tuple[str, str, int]] = field(default_factory=collections.Counter)
    failures: dict[str, str] = field(default_factory=dict)
    num_out_of_time: int = 0

    @property
    def num_cases(self) -> int:
        return sum(self.answers.values())

    @property
    def num_server_errors(self) -> int:
        """5xx, without the deadlines that cases set themselves."""
        return self.num_of(at_least=500, below=600) - self.num_out_of_time

    def num_of(self, *, at_least: int, below: int) -> int:
        """Answers whose status lies in that range."""
        return sum(count for (_, _, status), count in self.answers.items() if at_least <= status < below)


def edge() -> FastAPI:
    """The edge over a scorer without a model; any blend passes, else few made-up ones would."""
    any_blend = BlendBounds(relevance=(0, 1000), click=(0, 1000), apply=(0, 1000))
    return make_api(ThreadedScorer(FakeScorer()), limits=Limits(blend=any_blend))


def fuzz(app: FastAPI, *, num_cases: int, start: int) -> Found:
    """What came of about `num_cases` requests to `app`, the same ones for the same `start`."""
    found = Found()
    results = list(schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations())
    operations = [result.ok() for result in results if isinstance(result, Ok)]
    if len(operations) < len(results):
        raise SystemExit("the OpenAPI document has an operation that schemathesis cannot read")
    with_body = [operation for operation in operations if operation.body]
    for operation in operations:
        share = -(-num_cases // (2 * len(with_body))) if operation in with_body else PLAIN_CASES
        for mode in modes_of(operation):
            try_all(operation, mode, share, found, start)
    return found


def modes_of(operation: APIOperation) -> Iterator[GenerationMode]:
    """Both where there is something to break."""
    yield GenerationMode.POSITIVE
    if operation.body:
        yield GenerationMode.NEGATIVE


def try_all(operation: APIOperation, mode: GenerationMode, num_cases: int, found: Found, start: int) -> None:
    @seed(start)
    @settings(
        max_examples=num_cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def attempt(case: Case) -> None:
        response = case.call()
        found.answers[(operation.label, mode.value, response.status_code)] += 1
        out_of_time = response.status_code == 504 and response.json()["error"]["code"] == "deadline_exceeded"
        found.num_out_of_time += out_of_time
        try:
            case.validate_response(response, checks=CHECKS[1:] if out_of_time else CHECKS)
        except FailureGroup as group:
            for failure in group.exceptions:
                key = f"{operation.label}, {type(failure).__name__}, {response.status_code}"
                found.failures.setdefault(key, f"{failure}\n{case.as_curl_command()}\n{response.text[:500]}")

    try:
        attempt()
    except Unsatisfiable:
        print(f"{operation.label}: no {mode.value} case could be made", file=sys.stderr)


def table(found: Found) -> str:
    """The answers by path and kind of case, as Markdown."""
    statuses = sorted({status for _, _, status in found.answers})
    rows = ["| path | cases | " + " | ".join(map(str, statuses)) + " |", "| --- | --- |" + " ---: |" * len(statuses)]
    for label, mode in sorted({(label, mode) for label, mode, _ in found.answers}):
        counts = " | ".join(str(found.answers[(label, mode, status)]) for status in statuses)
        rows.append(f"| {label} | {mode} | {counts} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="requests, about (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="which requests (default: 0)")
    arguments = parser.parse_args()
    found = fuzz(edge(), num_cases=arguments.cases, start=arguments.seed)
    print(table(found))
    print(
        f"\n{found.num_cases} cases, {found.num_server_errors} answered 5xx, {found.num_out_of_time} ran out of a "
        f"deadline of their own, {len(found.failures)} kinds of failure"
    )
    for kind, failure in found.failures.items():
        print(f"\n{kind}\n{failure}")
    return int(bool(found.failures or found.num_server_errors))


if __name__ == "__main__":
    sys.exit(main())
