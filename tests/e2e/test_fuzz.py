"""The edge under requests that are made from its own OpenAPI document; bench/fuzz_api.py tries many more."""

from __future__ import annotations

import pytest

from bench.fuzz_api import edge, fuzz

pytestmark = pytest.mark.e2e


def test_no_request_makes_the_edge_fail_or_answer_what_it_does_not_describe() -> None:
    found = fuzz(edge(), num_cases=150, start=1)
    assert not found.failures, "\n\n".join(found.failures.values())
    assert found.num_server_errors == 0
    assert found.num_cases > 100
    assert found.num_of(at_least=200, below=300) > 20, "some must get past the checks of form"
    assert found.num_of(at_least=400, below=500) > 20, "some must not"
