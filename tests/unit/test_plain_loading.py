"""A bundle read from its files for an engine: the same to the last bit as what transformers makes of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, Qwen3Config

from preceptor.bundle import load_bundle
from preceptor.errors import InputError
from preceptor.export import export
from preceptor_serve.engine.forward import forward
from preceptor_serve.engine.gate import require_int8
from preceptor_serve.engine.kernels import PLAIN, PlainLinear, make_kernels
from preceptor_serve.engine.loading import load_engine, load_parts, make_engine
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.engine.packing import Piece, pack
from preceptor_serve.engine.plain import read_weights
from preceptor_serve.engine.student import Student, make_student, pack_student
from preceptor_serve.engine.weights import Weights
from tests.unit.exporting import CONFIG, gate_record, random_bundle, train_student

SIZES: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 96,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "num_labels": 7,
    "pad_token_id": 0,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "llama, tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True, head_dim=32),
    "llama, biases": lambda: LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama, biases of attention": lambda: LlamaConfig(
        **SIZES, attention_bias=True, rope_parameters={"rope_type": "default", "rope_theta": 1e5}
    ),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16),
    "qwen3, biases": lambda: Qwen3Config(**SIZES, head_dim=32, attention_bias=True, tie_word_embeddings=True),
}
MAX_TOKENS = 120
ASKED = [
    Piece(prefix=tuple(range(3, 20)), documents=((5, 6, 9), (7,), (8, 8))),
    Piece(prefix=(4,), documents=((11, 50), (2, 3, 4, 5))),
]


def saved(folder: Path, kind: str, *, dtype: torch.dtype = torch.bfloat16, shard_size: str = "1GB") -> Path:
    """A classifier with random weights, none of them 0 or 1, as transformers writes it."""
    model = AutoModelForSequenceClassification.from_config(CONFIGS[kind](), dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.3 if weight.dim() == 1 else 0, 0.2, generator=generator)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return read


def read(folder: Path) -> Weights:
    found = read_weights(folder, config_of(folder))
    assert found is not None
    return found


def through_transformers(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16).eval()


def parts(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Every tensor and plain value inside a student, by where it stands."""
    if isinstance(value, PlainLinear):
        yield from ((f"{name}.{key}", inner) for key, inner in vars(value).items())
    elif is_dataclass(value):
        for field in fields(value):
            if field.name != "kernels":
                yield from parts(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, tuple):
        for index, inner in enumerate(value):
            yield from parts(inner, f"{name}[{index}]")
    else:
        yield name, value


def assert_same(left: Student, right: Student) -> None:
    ours, theirs = dict(parts(left)), dict(parts(right))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        other = theirs[name]
        if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor):
            assert value.dtype == other.dtype and torch.equal(value, other), name
        else:
            assert value == other, name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_student_read_from_files_is_transformers_own_to_the_last_bit(
    tmp_path: Path, kind: str, precision: Any
) -> None:
    folder = saved(tmp_path, kind)
    classifier, weights = through_transformers(folder), read(folder)
    assert_same(
        pack_student(weights, precision=precision, max_tokens=MAX_TOKENS, kernels=PLAIN),
        make_student(classifier, precision=precision, max_tokens=MAX_TOKENS, kernels=PLAIN),
    )
    ours = pack_student(weights, precision=precision, max_tokens=MAX_TOKENS)
    theirs = make_student(classifier, precision=precision, max_tokens=MAX_TOKENS)
    logits = [forward(student, pack(ASKED)).logits_NR for student in (ours, theirs)]
    assert torch.equal(*logits) and logits[0].shape == (5, 7) and logits[0].isfinite().all()


def test_biases_and_norms_of_heads_are_read_where_there_are_such(tmp_path: Path) -> None:
    def packed(kind: str) -> Student:
        weights = read(saved(tmp_path / kind, kind))
        return pack_student(weights, precision="float32", max_tokens=4, kernels=PLAIN)

    def has_bias(linear: Any) -> bool:
        return linear._bias_O is not None

    layers = {kind: packed(kind).layers[0] for kind in CONFIGS}
    assert [kind for kind, layer in layers.items() if has_bias(layer.query_key_value)] == [
        "llama, biases",
        "llama, biases of attention",
        "qwen3, biases",
    ]
    assert [kind for kind, layer in layers.items() if has_bias(layer.rest.down)] == ["llama, biases"]
    assert [kind for kind, layer in layers.items() if layer.norms.query_E is not None] == ["qwen3", "qwen3, biases"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_floats_are_rounded_as_load_bundle_rounds_them(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = saved(tmp_path, "llama", dtype=dtype)
    theirs = through_transformers(folder).state_dict()
    ours = read(folder).tensors
    assert ours.keys() == theirs.keys()
    assert all(tensor.dtype == torch.bfloat16 and torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_sharded_checkpoint_is_read_whole(tmp_path: Path) -> None:
    folder = saved(tmp_path / "shards", "qwen3", shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 3 and not (folder / "model.safetensors").exists()
    whole, shards = read(saved(tmp_path / "whole", "qwen3")).tensors, read(folder).tensors
    assert whole.keys() == shards.keys() and all(torch.equal(whole[name], shards[name]) for name in whole)

    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shutil.copy(folder / content["weight_map"]["score.weight"], tmp_path / "outside.safetensors")
    content["weight_map"]["score.weight"] = "../outside.safetensors"
    index.write_text(json.dumps(content))
    assert read_weights(folder, config_of(folder)) is None, "an index must not lead out of the bundle"


def tensors_changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def config_changed(**changes: object) -> Callable[[Path], None]:
    """Keys that are None are taken out."""

    def apply(folder: Path) -> None:
        changed = {key: value for key, value in (config_of(folder) | changes).items() if value is not None}
        (folder / "config.json").write_text(json.dumps(changed))

    return apply


LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    "change",
    [
        config_changed(model_type="qwen2"),
        config_changed(hidden_act="gelu"),
        config_changed(hidden_act=None),
        config_changed(pretraining_tp=2),
        config_changed(head_dim=None),
        config_changed(vocab_size=54),
        config_changed(mlp_bias=None),
        config_changed(mlp_bias=True),
        config_changed(id2label=None),
        config_changed(num_labels=7),
        config_changed(rms_norm_eps="1e-6"),
        config_changed(quantization_config={"bits": 4}),
        config_changed(rope_parameters=LINEAR),
        config_changed(rope_parameters=None, rope_theta=1e4),
        config_changed(rope_scaling={"type": "linear", "factor": 2.0}),
        tensors_changed(lambda tensors: tensors.pop("score.weight")),
        tensors_changed(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight")),
        tensors_changed(lambda tensors: tensors.update({"model.norm.weight": torch.ones(95)})),
        tensors_changed(lambda tensors: tensors.update({"model.norm.weight": torch.ones(96, dtype=torch.int8)})),
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
    ],
)
def test_what_is_not_known_to_the_letter_is_left_to_transformers(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    folder = saved(tmp_path, "llama")
    assert read_weights(folder, config_of(folder)) is not None
    change(folder)
    assert read_weights(folder, config_of(folder)) is None


# Whole bundles


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def changeable(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "bundle")


def test_the_reader_is_load_bundles_own(bundle: Path) -> None:
    ours, theirs = load_parts(bundle)[0], load_bundle(bundle).reader
    for field in fields(theirs):
        if field.name != "tokenizer":
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


def test_serving_a_bundle_imports_nothing_of_transformers(bundle: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from preceptor_serve.engine.options import EngineOptions; "
        "from preceptor_serve.scorer import load_serving; load_serving(Path(sys.argv[1]), EngineOptions()).close(); "
        "print(type(load_serving).__name__, *(name for name in sys.modules if name.startswith('transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(bundle)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["function"]


def test_another_rotation_still_loads_and_is_transformers_own(
    changeable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config_changed(rope_parameters={**LINEAR, "rope_theta": config_of(changeable)["rope_parameters"]["rope_theta"]})(
        changeable
    )
    with caplog.at_level("INFO", logger="preceptor_serve.engine.loading"):
        _, weights = load_parts(changeable)
    assert "not of the plain kind" in caplog.text
    theirs = make_student(through_transformers(changeable), precision="bfloat16", max_tokens=MAX_TOKENS, kernels=PLAIN)
    assert_same(pack_student(weights, precision="bfloat16", max_tokens=MAX_TOKENS, kernels=PLAIN), theirs)
    assert weights.turns(2, torch.float32)[1, 0] == torch.tensor(0.5).cos(), "the factor halves the angles"


def test_an_engine_of_a_bundle_answers_as_the_bundle(bundle: Path) -> None:
    asked = ("welder", "MIG welder, wants days.", ["Welder, days.", "<|im_end|> Pastry chef"])
    for precision in ("float32", "bfloat16"):
        with closing(load_engine(bundle, EngineOptions(precision=precision))) as engine:
            assert engine.probe() <= engine.tolerance
            for ours, theirs in zip(engine.score(*asked), load_bundle(bundle).score(*asked), strict=True):
                assert ours.score == pytest.approx(theirs.score, abs=2e-2)


def test_int8_is_held_against_bfloat16_of_the_same_weights(tmp_path: Path) -> None:
    """Heads so large that documents lie far apart: rounding to int8 turns no pair round."""
    try:
        make_kernels("int8")
    except InputError as error:
        pytest.skip(str(error))
    student = train_student(tmp_path / "student", max_prefix_tokens=48, max_document_tokens=64, spread=0.5)
    path = export(CONFIG, student=student, gate=gate_record(tmp_path), out=tmp_path / "export").path / "bundle"
    with closing(load_engine(path, EngineOptions(precision="int8"))) as engine:
        assert engine.probe() <= engine.tolerance
    with (
        closing(make_engine(*load_parts(path), EngineOptions(precision="bfloat16"))) as reference,
        closing(make_engine(*load_parts(path), EngineOptions(precision="int8"))) as candidate,
    ):
        assert 0 < require_int8(reference, candidate, bundle_id="b").largest_score_gap < 0.1
