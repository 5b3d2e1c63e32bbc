"""A bundle exported from a student with random weights: what it says, and what it refuses to say."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from preceptor.bundle import (
    TOLERANCE,
    Bundle,
    DocumentScore,
    KnownAnswer,
    difference,
    load_bundle,
    request_logits,
    score_table,
    to_score,
)
from preceptor.contracts import OVERALL, PAIRS, SCORES, conform, make_pair, rows_to_table, write_table
from preceptor.errors import GateFailed, InputError, ParityError, StageFailed
from preceptor.export import export
from preceptor.parity import check_parity
from preceptor.ranker.text import prompt_token_ids, with_hundredths
from preceptor.record import Record, read_record
from preceptor_serve.engine.loading import load_engine
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.scorer import BatchingScorer, load_serving
from tests.unit.exporting import BLEND, CONFIG, HEADS, gate_record, train_student

LOGITS = (0.5, -1.0, 2.0, 0.0, 1.5, -0.3, 4.0)

QUERY = "welder rotterdam"
PROFILE = "MIG and TIG welder, eight years in shipyards, wants days."
DOCUMENTS = ["Welder, shipyard, day shifts.", "Pastry chef", "Lasser (m/v) — dagdienst, Rotterdam", "Welder"]


def changed_student(student: Record, root: Path, change: Callable[[Path], None]) -> Record:
    """The record of a copy of `student` whose model folder went through `change`."""
    shutil.copytree(student.path / "model", root / "model")
    change(root / "model")
    return replace(student, path=root)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return train_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def exported(student: Record, tmp_path_factory: pytest.TempPathFactory) -> Record:
    root = tmp_path_factory.mktemp("run")
    return export(CONFIG, student=student, gate=gate_record(root), out=root / "export" / "v1")


@pytest.fixture(scope="module")
def bundle(exported: Record) -> Bundle:
    return load_bundle(exported.path / "bundle")


def pairs_of(*triples: tuple[str, str, str]) -> pa.Table:
    return rows_to_table((make_pair(*triple, slice="s", split="holdout") for triple in triples), PAIRS)


def test_an_export_is_whole_and_says_where_it_comes_from(exported: Record, student: Record) -> None:
    assert sorted(file.name for file in exported.path.iterdir()) == ["bundle", "record.json"]
    folder = exported.path / "bundle"
    described = json.loads((folder / "bundle.json").read_text())
    assert described["bundle_id"] == exported.metrics["bundle_id"]
    assert described["lineage"]["student"] == student.fingerprint
    assert described["gate"]["values"] == {"student overall ndcg@10": 0.81}
    assert read_record(folder) == replace(student, path=folder)
    assert json.loads((folder / "config.json").read_text())["preceptor_policy_version"] == student.policy_version
    assert "student overall ndcg@10: 0.8100" in (folder / "README.md").read_text()


def test_a_bundle_names_the_numbers_that_its_student_learnt_to_read(
    exported: Record, student: Record, tmp_path: Path
) -> None:
    assert json.loads((exported.path / "bundle" / "bundle.json").read_text())["features"] == []
    assert "must end with" not in (exported.path / "bundle" / "README.md").read_text()
    shutil.copytree(student.path / "model", tmp_path / "student" / "model")
    documents = [with_hundredths(f"posting {number}", {"best_name": 0.7, "words": 0.1}) for number in range(3)]
    pairs = [make_pair("nurse", "", document, slice="s") for document in [*documents, "posting [remote 2]"]]
    write_table(rows_to_table(pairs, PAIRS), tmp_path / "student" / "training" / "pairs" / "part-0.parquet", PAIRS)
    taught = replace(student, path=tmp_path / "student")
    folder = export(CONFIG, student=taught, gate=gate_record(tmp_path), out=tmp_path / "v1").path / "bundle"
    assert json.loads((folder / "bundle.json").read_text())["features"] == ["best name", "words"]
    assert "numbers it learnt to read (`best name`, `words`)" in (folder / "README.md").read_text()


def test_exported_weights_are_the_students_in_bfloat16(exported: Record, student: Record) -> None:
    from safetensors.torch import load_file

    trained = load_file(student.path / "model" / "model.safetensors")
    weights = load_file(exported.path / "bundle" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert weights.keys() == trained.keys()
    assert all(torch.equal(weights[name], trained[name].bfloat16()) for name in weights)


def test_the_record_states_the_largest_difference_of_each_engine(exported: Record) -> None:
    parity = exported.metrics["parity"]
    assert parity.keys() == {"preceptor", "transformers"}
    for found in parity.values():
        assert 0 <= found["prob"] <= TOLERANCE
        assert math.isfinite(found["logit"])


def test_exporting_again_keeps_the_bundle(exported: Record, student: Record) -> None:
    file = exported.path / "bundle" / "model.safetensors"
    before = file.stat().st_mtime_ns
    again = export(CONFIG, student=student, gate=gate_record(exported.path), out=exported.path)
    assert again.finished_at == exported.finished_at
    assert file.stat().st_mtime_ns == before


def test_probabilities_are_such_and_the_score_is_their_blend(bundle: Bundle) -> None:
    for found in bundle.score(QUERY, PROFILE, DOCUMENTS):
        assert sum(found.grade_probs) == pytest.approx(1)
        assert all(0 <= prob <= 1 for prob in (*found.grade_probs, *found.actions.values()))
        expected = sum(grade * prob for grade, prob in enumerate(found.grade_probs))
        assert found.expected_grade == pytest.approx(expected)
        blended = 0.7 * expected / 4 + 0.2 * found.actions["click"] + 0.1 * found.actions["apply"]
        assert found.score == pytest.approx(blended)
    assert bundle.heads == (OVERALL, "click", "apply")


def test_scores_follow_their_documents(bundle: Bundle) -> None:
    forward = bundle.score(QUERY, PROFILE, DOCUMENTS)
    backward = bundle.score(QUERY, PROFILE, DOCUMENTS[::-1])
    assert min(difference(a, b) for i, a in enumerate(forward) for b in forward[:i]) > 2 * TOLERANCE
    assert all(difference(a, b) <= TOLERANCE for a, b in zip(forward, backward[::-1], strict=True))


def test_a_table_keeps_its_rows_and_its_duplicates(bundle: Bundle) -> None:
    triples = [
        (QUERY, PROFILE, DOCUMENTS[0]),
        ("", "", DOCUMENTS[1]),
        (QUERY, PROFILE, DOCUMENTS[2]),
        (QUERY, PROFILE, DOCUMENTS[0]),
        (QUERY, "", DOCUMENTS[0]),
    ]
    pairs = pairs_of(*triples)
    scores = conform(score_table(bundle, pairs), SCORES)
    assert scores["pair_id"].to_pylist() == pairs["pair_id"].to_pylist()
    alone = [bundle.score(query, profile, [document])[0] for query, profile, document in triples]
    assert scores["score"].to_pylist() == pytest.approx([found.score for found in alone], abs=TOLERANCE)
    rows = scores.to_pylist()
    assert rows[0] == rows[3]
    assert [name for name, _ in rows[0]["actions"]] == ["click", "apply"]
    assert {row["bundle_id"] for row in rows} == {bundle.bundle_id}


def test_an_empty_table_has_no_scores(bundle: Bundle) -> None:
    assert score_table(bundle, pairs_of()).num_rows == 0


def test_transformers_loads_it_unchanged_and_agrees(bundle: Bundle) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    plain = AutoModelForSequenceClassification.from_pretrained(bundle.path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(bundle.path)
    assert [plain.config.id2label[row] for row in (0, 4, 5, 6)] == ["overall/0", "overall/4", "click", "apply"]
    packed = request_logits(bundle.ranker.float(), bundle.tokenizer, [(QUERY, PROFILE, DOCUMENTS)])[0]
    bundle.ranker.bfloat16()
    for document, row in zip(DOCUMENTS, packed, strict=True):
        ids = prompt_token_ids(tokenizer, QUERY, PROFILE, document, max_prefix_tokens=24, max_document_tokens=32)
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([ids])).logits[0].tolist()
        assert row == pytest.approx(logits, abs=1e-4)


@pytest.mark.parametrize("place", range(len(LOGITS)))
def test_a_logit_that_is_nan_comes_out_as_nan(place: int) -> None:
    found = to_score([math.nan if index == place else logit for index, logit in enumerate(LOGITS)], HEADS, BLEND)
    assert math.isnan(found.score)
    assert all(map(math.isnan, found.grade_probs)) == (place < 5)
    assert [math.isnan(prob) for prob in found.actions.values()] == [place == 5, place == 6]


def test_a_server_answers_bad_score_to_nan() -> None:
    from preceptor_serve.scorer import BadScore, checked

    with pytest.raises(BadScore, match="not finite"):
        checked([to_score([*LOGITS[:-1], math.nan], HEADS, BLEND)], num_documents=1)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("sign", [1, -1])
def test_probabilities_are_torchs_at_any_size_of_logits(scale: float, sign: int) -> None:
    logits = torch.tensor(LOGITS, dtype=torch.float64) * scale * sign
    found = to_score(logits.tolist(), HEADS, BLEND)
    assert found.grade_probs == pytest.approx(logits[:5].softmax(0).tolist(), abs=1e-12)
    assert list(found.actions.values()) == pytest.approx(logits[5:].sigmoid().tolist(), abs=1e-12)


@pytest.mark.parametrize(
    "broken",
    [
        {"grade_probs": (0.2, 0.2, math.nan, 0.2, 0.2)},
        {"grade_probs": (0.5, 0.5)},
        {"actions": {"click": math.nan}},
        {"actions": {"apply": 0.5}},
        {"actions": {}},
        {"actions": {"click": math.inf}},
    ],
    ids=str,
)
def test_nothing_broken_is_close_to_anything(broken: dict[str, Any]) -> None:
    whole = DocumentScore(grade_probs=(0.2,) * 5, expected_grade=2.0, actions={"click": 0.5}, score=0.5)
    assert difference(whole, whole) == 0
    assert difference(replace(whole, **broken), whole) == math.inf
    assert difference(whole, replace(whole, **broken)) == math.inf


def with_answer(bundle: Bundle, *, place: int, shift: float) -> Bundle:
    first, *others = bundle.known_answers
    logits = tuple(logit + shift * (index == place) for index, logit in enumerate(first.logits))
    return replace(bundle, known_answers=(replace(first, logits=logits), *others))


@pytest.mark.parametrize("shift", [20.0, math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_an_engine_that_differs_is_refused(bundle: Bundle, place: int, shift: float) -> None:
    changed = with_answer(bundle, place=place, shift=shift)
    with pytest.raises(ParityError):
        changed.probe()
    with pytest.raises(ParityError, match=bundle.bundle_id):
        check_parity(changed, with_vllm=False)
    assert bundle.probe() <= TOLERANCE


def test_a_bundle_that_the_engine_does_not_know_is_served_all_the_same(
    exported: Record, bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strange = shutil.copytree(exported.path / "bundle", tmp_path / "bundle")
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    described = json.loads((strange / "bundle.json").read_text())
    loaded = load_bundle(strange)
    asked = [(known["query"], known["profile"], [known["document"]]) for known in described["known_answers"]]
    rows = request_logits(loaded.ranker, loaded.tokenizer, asked)
    for known, (row,) in zip(described["known_answers"], rows, strict=True):
        known["logits"] = row
    (strange / "bundle.json").write_text(json.dumps(described))

    with closing(load_serving(strange, EngineOptions())) as served:
        assert "hidden_act=relu" in caplog.text
        answer = asyncio.run(served.score("night nurse", "registered nurse", ["Staff Nurse", "Baker"]))
        assert list(answer.scores) == loaded.score("night nurse", "registered nurse", ["Staff Nurse", "Baker"])
        assert asyncio.run(served.load()).num_requests == 0
    caplog.clear()
    with closing(load_serving(bundle.path, EngineOptions())) as served:
        assert not caplog.text and isinstance(served, BatchingScorer)


def test_a_failed_gate_exports_nothing(student: Record, tmp_path: Path) -> None:
    with pytest.raises(GateFailed):
        export(CONFIG, student=student, gate=gate_record(tmp_path, passed=False), out=tmp_path / "export" / "v1")
    assert not (tmp_path / "export").exists()


def test_a_score_that_is_not_finite_is_not_written(bundle: Bundle) -> None:
    broken = replace(bundle, blend=replace(BLEND, click=math.inf))
    with pytest.raises(StageFailed, match="not finite"):
        score_table(broken, pairs_of((QUERY, PROFILE, DOCUMENTS[0])))


def cut(name: str, num_bytes: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:num_bytes])

    return damage


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def without_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if name != "score.weight"}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def with_json(name: str, **changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | changes
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, "no such directory"),
        (without("bundle.json"), "no bundle.json"),
        (cut("bundle.json", 40), "bundle.json"),
        (lambda folder: (folder / "bundle.json").write_text("[]"), "bundle.json"),
        (with_json("bundle.json", blend=None), "lacks 'blend'"),
        (with_json("bundle.json", blend={"relevance": -1, "click": 0, "apply": 0}), "0 or above"),
        (with_json("bundle.json", blend=3), "bundle.json"),
        (with_json("bundle.json", known_answers=[]), "no known answers"),
        (with_json("bundle.json", known_answers=[{"query": "q"}]), "lacks 'logits'"),
        (
            with_json(
                "bundle.json", known_answers=[{"query": "", "profile": "", "document": "d", "logits": [1.0, 2.0]}]
            ),
            "do not fit the 7 rows",
        ),
        (without("config.json"), "no config.json"),
        (cut("config.json", 25), "config.json"),
        (with_json("config.json", preceptor_heads=None), "preceptor_heads"),
        (with_json("config.json", preceptor_heads=[{"name": "click", "kind": "action"}]), "'overall'"),
        (
            with_json("config.json", preceptor_policy_version="0.9.0+cd"),
            "trained under policy 0.9.0+cd, but its record says 1.0.0+ab",
        ),
        (without("model.safetensors"), "model.safetensors"),
        (cut("model.safetensors", 5_000_000), "damaged"),
        (cut("model.safetensors", 0), "damaged"),
        (without_tensor, "score.weight"),
        (without("tokenizer.json"), "damaged"),
        (cut("tokenizer.json", 1000), "damaged"),
    ],
)
def test_a_damaged_bundle_is_one_line_that_names_it(
    exported: Record, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(exported.path / "bundle", folder)
    damage(folder)
    with pytest.raises(InputError) as caught:
        load_bundle(folder)
    message = str(caught.value)
    assert said in message and str(folder) in message
    assert "\n" not in message
    with pytest.raises(InputError) as served:
        load_engine(folder, EngineOptions())
    assert str(served.value) == message


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_student_with_a_broken_weight_is_never_exported(student: Record, tmp_path: Path, poison: float) -> None:
    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        weights["score.weight"][-1, 0] = poison
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    broken, out = changed_student(student, tmp_path / "distill", damage), tmp_path / "export" / "v1"
    with pytest.raises(ParityError):
        export(CONFIG, student=broken, gate=gate_record(tmp_path), out=out)
    assert [file.name for file in out.iterdir()] == ["pending.json"]


def test_a_student_without_overall_is_refused(student: Record, tmp_path: Path) -> None:
    heads = [{"name": "role", "kind": "grade"}, {"name": "click", "kind": "action"}]
    other = changed_student(student, tmp_path / "distill", with_json("config.json", preceptor_heads=heads))
    out = tmp_path / "export" / "v1"
    with pytest.raises(InputError, match="'overall', got: role, click"):
        export(CONFIG, student=other, gate=gate_record(tmp_path), out=out)
    assert [file.name for file in out.iterdir()] == ["pending.json"]


def test_a_student_of_another_policy_than_its_record_is_refused(student: Record, tmp_path: Path) -> None:
    other = changed_student(
        student, tmp_path / "distill", with_json("config.json", preceptor_policy_version="2.0.0+cd")
    )
    out = tmp_path / "export" / "v1"
    with pytest.raises(InputError, match=r"trained under policy 2\.0\.0\+cd, but its record says 1\.0\.0\+ab"):
        export(CONFIG, student=other, gate=gate_record(tmp_path), out=out)
    assert [file.name for file in out.iterdir()] == ["pending.json"]


def test_weights_of_another_student_are_found_out(exported: Record, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "bundle"
    shutil.copytree(exported.path / "bundle", folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"score.weight": -weights["score.weight"]}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ParityError, match="known answers"):
        load_bundle(folder).probe()


def test_known_answers_are_the_students_own(exported: Record, bundle: Bundle) -> None:
    assert {type(answer) for answer in bundle.known_answers} == {KnownAnswer}
    assert all(len(answer.logits) == len(LOGITS) for answer in bundle.known_answers)
    shared = [answer for answer in bundle.known_answers if answer.query]
    assert len(shared) > 1, "documents that share a prefix must be among the known answers"
