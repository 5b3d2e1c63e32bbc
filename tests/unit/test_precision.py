"""bfloat16 where a processor computes in it, float32 where it would take several times as long."""

from __future__ import annotations

import pytest
import torch

from preceptor import precision
from preceptor.judge.engine import engine_arguments
from preceptor.precision import computed_in
from preceptor.recipe import EngineConfig


@pytest.fixture(params=[True, False], ids=["with", "without"])
def has_bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(precision, "_has_bfloat16", lambda: request.param)
    return bool(request.param)


def test_only_bfloat16_on_a_cpu_without_it_is_computed_otherwise(has_bfloat16: bool) -> None:
    assert computed_in("bfloat16") == ("bfloat16" if has_bfloat16 else "float32")
    assert computed_in("bfloat16", num_gpus=1) == "bfloat16"
    assert [computed_in(other) for other in ("float32", "float16", "int8")] == ["float32", "float16", "int8"]


def test_an_engine_is_told_so(has_bfloat16: bool) -> None:
    assert engine_arguments(EngineConfig(), "generate")["dtype"] == ("bfloat16" if has_bfloat16 else "float32")
    assert engine_arguments(EngineConfig(gpus_per_replica=1), "generate")["dtype"] == "bfloat16"


def test_torch_is_asked() -> None:
    """Under a name of its own, which may go: without it every CPU counts as one that has bfloat16."""
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)
