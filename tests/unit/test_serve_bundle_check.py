"""What is said of a damaged bundle before anything heavy is loaded, and of a replica that did not start."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from preceptor.errors import InputError, ParityError, StageFailed
from preceptor_serve.bundle_check import reason_of, require_readable

DESCRIBED = {
    "bundle_id": "b",
    "policy_version": "1",
    "blend": {"relevance": 1, "click": 0, "apply": 0},
    "known_answers": [{"query": "q", "profile": "p", "document": "d", "logits": [0.0] * 5}],
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    (tmp_path / "bundle.json").write_text(json.dumps(DESCRIBED))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_a_readable_bundle_is_let_through(bundle: Path):
    require_readable(bundle)


def resized(by: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:by] if by < 0 else content + bytes(by))

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "bundle.json").unlink(), "no bundle.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not readable"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: not readable"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: not readable"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors: not readable"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100), "a header of"),
        (lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"[]"), "not readable"),
        (resized(-1), "its header says"),
        (resized(5), "its header says"),
    ],
)
def test_a_damaged_file_is_one_line(bundle: Path, damage: Callable[[Path], None], said: str):
    damage(bundle)
    with pytest.raises(InputError, match=said) as caught:
        require_readable(bundle)
    assert "\n" not in str(caught.value)


def test_a_replicas_own_error_reaches_the_user_as_it_was_raised():
    account = (
        "Deploying application preceptor failed: Failed to update the deployments ['Scorer'].\n"
        '  File "replica.py", line 27, in __init__\n    raise ParityError(\n'
        "preceptor.errors.ParityError: /b: known answers differ by 0.9, more than 0.02. Export the bundle again.\n"
    )
    found = reason_of(RuntimeError(account), Path("/b"))
    assert type(found) is ParityError
    assert str(found) == "/b: known answers differ by 0.9, more than 0.02. Export the bundle again."


def test_without_one_the_logs_are_named():
    found = reason_of(RuntimeError("ray.exceptions.RaySystemError: no more memory"), Path("/b"))
    assert type(found) is StageFailed and "logs" in str(found)
