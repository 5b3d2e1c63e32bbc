"""A bundle in a real vLLM engine."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from preceptor.bundle import TOLERANCE, load_bundle
from preceptor.parity import vllm_difference

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]


def test_vllm_loads_a_bundle_unchanged_and_agrees_with_the_student(tiny_bundle: Path) -> None:
    found = vllm_difference(load_bundle(tiny_bundle))
    assert found.prob <= TOLERANCE
    assert math.isfinite(found.logit)
