"""The real engine under Ray Data: a zero-shot judge that is refused, and a hosted ranker whose logits are its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from preceptor.contracts import (
    GOLDEN,
    LABELS,
    OVERALL,
    PAIRS,
    REJECTS,
    make_pair,
    read_table,
    rows_to_table,
    write_table,
)
from preceptor.errors import JudgeRefused
from preceptor.judge import HostedJudge, calibrate, label
from preceptor.judge.agreement import cells_of_json
from preceptor.judge.hosted import read_checkpoint
from preceptor.judge.replies import OVER_LONG
from preceptor.ranker.text import prompt_token_ids
from preceptor.recipe import POLICY_DIR, EngineConfig, JudgeConfig
from preceptor.record import Record

pytestmark = [pytest.mark.integration, pytest.mark.vllm]

DIMENSIONS = ("role", "place")


def rows(num: int, split: str) -> list[dict[str, str]]:
    return [
        make_pair(
            f"night nurse {split} {n // 4}", "Nurse, 5 yrs ICU.", f"Posting {n}: ward nurse.", slice="s", split=split
        )
        for n in range(num)
    ]


def test_a_zero_shot_judge_is_measured_and_stopped(tmp_path: Path, local_ray: Any, smollm_dir: Path) -> None:
    pairs = rows(8, "calibration")
    too_long = make_pair("night nurse", "Nurse.", "ward " * 4000, slice="s", split="calibration")
    golden = [
        {**pair, "dimension": name, "grade": n % 5, "grader_id": "test", "reason": None, "policy_version": "v"}
        for n, pair in enumerate([*pairs, too_long])
        for name in (*DIMENSIONS, OVERALL)
    ]
    corpus_dir = tmp_path / "corpus"
    write_table(rows_to_table(golden, GOLDEN), corpus_dir / "golden" / "a.parquet", GOLDEN)
    write_table(rows_to_table(rows(8, "train"), PAIRS), corpus_dir / "pairs" / "a.parquet", PAIRS)
    corpus = Record(stage="market", version="v1", fingerprint="c0", path=corpus_dir, config={})
    config = JudgeConfig(
        kind="vllm",
        model="smollm2-135m",
        floor=0.6,
        max_reject_share=0.5,
        num_calibration_pairs=100,
        dimensions=DIMENSIONS,
        # In bfloat16, where the CPU has it, asking again moved a probability by 0.027 and 0.037; in float32 by nothing.
        engine=EngineConfig(batch_size=8, dtype="float32"),
    )
    out = tmp_path / "calibrate" / "v1"
    record = calibrate(config, policy=POLICY_DIR, corpus=corpus, model=str(smollm_dir), out=out)

    labels = read_table(out / "labels", LABELS).to_pylist()
    assert {(row["pair_id"], row["dimension"]) for row in labels} == {
        (pair["pair_id"], name) for pair in pairs for name in (*DIMENSIONS, OVERALL)
    }
    assert all(0 < row["label_mass"] < 1 for row in labels), "the mass outside the five digits must not be lost"
    assert all(sum(row["probs"]) == pytest.approx(1.0, abs=1e-5) for row in labels)
    rejects = read_table(out / "rejects", REJECTS).to_pylist()
    assert {row["id"].split("/")[0] for row in rejects} == {too_long["pair_id"]}
    assert record.rejected[OVER_LONG] == len(DIMENSIONS)
    assert record.metrics["passed"] is False
    itself = record.metrics["consistency"]
    judged = set(itself["pair_ids"]) - {too_long["pair_id"]}
    for kind in ("again", "reordered"):
        cells = {cell.dimension: cell for cell in cells_of_json(itself[kind]["cells"])}
        assert {name: cell.num for name, cell in cells.items()} == dict.fromkeys(DIMENSIONS, len(judged))
    again, reordered = itself["again"]["prob_shift"]["most"], itself["reordered"]["prob_shift"]["most"]
    assert again < 0.02, "greedy: only numerics and the prefix cache lie between"
    assert reordered > again, "the engine was asked from the policy turned round"
    with pytest.raises(JudgeRefused, match="under the floor"):
        label(
            config,
            policy=POLICY_DIR,
            corpus=corpus,
            calibration=record,
            model=str(smollm_dir),
            out=tmp_path / "label" / "v1",
        )


def test_hosted_logits_are_those_of_the_checkpoint_in_transformers(local_ray: Any, tiny_teacher: Record) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    checkpoint = tiny_teacher.path / "model"
    found = read_checkpoint(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    pairs = rows(12, "train")
    wanted = {}
    for pair in pairs:
        ids = prompt_token_ids(
            tokenizer,
            pair["query"],
            pair["profile"],
            pair["document"],
            max_prefix_tokens=found.max_prefix_tokens,
            max_document_tokens=found.max_document_tokens,
        )
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].tolist()
        wanted[pair["pair_id"]] = {name: logits[where] for name, where in found.heads.items()}

    judge = HostedJudge(
        judge_id="teacher",
        checkpoint=found,
        dimensions=(),
        engine=EngineConfig(dtype="float32", batch_size=4, own_process=True),
        heads=tuple(found.heads),
    )

    @ray.remote(max_calls=1, runtime_env={"env_vars": dict(judge.workers.env)})
    def ask(table: pa.Table) -> Any:
        return asyncio.run(ask_opened(table))

    async def ask_opened(table: pa.Table) -> Any:
        return (await judge.open().grade(table)).logits

    got = ray.get(ask.remote(rows_to_table(pairs, PAIRS)))
    assert got.keys() == wanted.keys()
    for pair_id, heads in wanted.items():
        for name, logits in heads.items():
            assert list(got[pair_id][name]) == pytest.approx(logits, abs=1e-3)
