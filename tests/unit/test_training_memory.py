"""The memory of training on paper: parameters as published, shards as counted, and the page's table the command's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from preceptor import training_memory
from preceptor.cli import main
from preceptor.errors import RecipeError
from preceptor.training_memory import SHAPES, Cluster, Shape

TINY = Shape(name="tiny", num_layers=3, hidden=8, inner=16, query_size=12, key_size=6, vocabulary=50)


def test_a_shape_has_the_parameters_that_transformers_gives_it() -> None:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=6,
        vocab_size=50,
    )
    model = LlamaModel(config)
    assert sum(weight.numel() for weight in model.layers.parameters()) == TINY.trained
    assert model.embed_tokens.weight.numel() == TINY.frozen


@pytest.mark.parametrize(("name", "least", "most"), [("0.6B", 0.55, 0.65), ("1.7B", 1.6, 1.8), ("7B", 6.5, 6.8)])
def test_the_named_shapes_are_as_large_as_their_names(name: str, least: float, most: float) -> None:
    shape = next(shape for shape in SHAPES if shape.name == name)
    assert least < (shape.trained + shape.frozen) / 1e9 < most


def test_more_gpus_share_the_states_and_nothing_else() -> None:
    few, many = Cluster(num_gpus=2), Cluster(num_gpus=8)
    saved = training_memory.total_bytes(TINY, few) - training_memory.total_bytes(TINY, many)
    assert saved == pytest.approx(TINY.trained * training_memory.STATE_BYTES * (1 / 2 - 1 / 8))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("activations", ["kept", "recomputed"])
def test_the_most_tokens_fill_nine_tenths_of_a_gpu(shape: Shape, activations: training_memory.Activations) -> None:
    cluster = Cluster(activations=activations)
    tokens = training_memory.most_tokens(shape, cluster)
    full = training_memory.total_bytes(shape, replace(cluster, pass_tokens=tokens))
    over = training_memory.total_bytes(shape, replace(cluster, pass_tokens=tokens + 1))
    assert full <= 0.9 * 80e9 < over
    assert training_memory.most_tokens(shape, replace(cluster, gpu_bytes=1e9)) == 0


def test_recomputing_takes_less_of_every_shape() -> None:
    for shape in SHAPES:
        kept, recomputed = (training_memory.token_bytes(shape, name) for name in ("kept", "recomputed"))
        assert recomputed < kept / 10


def test_a_cluster_that_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match="num_gpus must be above 0, got 0"):
        Cluster(num_gpus=0)


def test_the_command_needs_something_to_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "tiny"]) == 2
    assert "add --pairs N for labelling, or --training" in capsys.readouterr().err
