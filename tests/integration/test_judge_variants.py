"""The vLLM judge with reasons, and with a LoRA adapter: a real engine each."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import save_file

from preceptor.contracts import PAIRS, make_pair, rows_to_table
from preceptor.judge import Answers
from preceptor.judge.judges import open_judge
from preceptor.judge.replies import Judge
from preceptor.policy import load_policy
from preceptor.recipe import POLICY_DIR, EngineConfig, JudgeConfig

pytestmark = [pytest.mark.integration, pytest.mark.vllm, pytest.mark.slow]

POLICY = load_policy(POLICY_DIR)
DIMENSIONS = ("role", "place")


def pairs(num: int) -> list[dict[str, str]]:
    return [
        make_pair(f"night nurse {n}", "Nurse, 5 yrs ICU.", f"Posting {n}: ward nurse.", slice="s", split="train")
        for n in range(num)
    ]


def judge_of(model: Path, **changes: Any) -> Judge:
    config = JudgeConfig(
        kind="vllm",
        model=str(model),
        floor=-1,
        max_reject_share=0.0,
        num_calibration_pairs=8,
        dimensions=DIMENSIONS,
        engine=EngineConfig(batch_size=8),
    )
    return open_judge(replace(config, **changes), POLICY, teacher=None, model=None)


def answers_of(judge: Judge, num: int) -> Answers:
    """What `judge` says in a process of its own, which ends with its engine."""
    assert judge.workers is not None

    @ray.remote(max_calls=1, runtime_env={"env_vars": dict(judge.workers.env)})
    def ask() -> Any:
        async def opened() -> Answers:
            return await judge.open().grade(rows_to_table(pairs(num), PAIRS))

        return asyncio.run(opened())

    found: Answers = ray.get(ask.remote())
    return found


def test_reasons_come_first_and_the_grade_follows_them(smollm_dir: Path, local_ray: Any) -> None:
    judge = judge_of(smollm_dir, rationale_tokens=24)
    assert judge.judge_id.endswith("+reasons")
    answers = answers_of(judge, 4)
    assert {(reply.pair_id, reply.dimension) for reply in answers.replies} == {
        (pair["pair_id"], name) for pair in pairs(4) for name in DIMENSIONS
    }
    for reply in answers.replies:
        assert reply.probs is not None and reply.rationale
        assert "Grade:" not in reply.rationale
        assert reply.label_mass is not None and 0.2 < reply.label_mass < 1, "asked after 'Grade: ', it says a digit"
    assert answers.usage.num_generated_tokens > 8 * 5


def adapter(folder: Path, *, hidden: int, scale: float) -> Path:
    """A LoRA adapter of random weights for the query projections of the first layers."""
    torch.manual_seed(3)
    weights = {}
    for layer in range(8):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(8, hidden) * scale
        weights[f"{name}.lora_B.weight"] = torch.randn(hidden, 8) * scale
    folder.mkdir()
    save_file(weights, str(folder / "adapter_model.safetensors"))
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))
    return folder


def test_an_adapter_answers_in_place_of_its_model(tmp_path: Path, smollm_dir: Path, local_ray: Any) -> None:
    hidden = json.loads((smollm_dir / "config.json").read_text())["hidden_size"]
    lora = adapter(tmp_path / "adapter", hidden=hidden, scale=0.3)
    plain = judge_of(smollm_dir)
    tuned = judge_of(smollm_dir, engine=EngineConfig(batch_size=8, lora=str(lora), own_process=True))
    assert tuned.judge_id.startswith(f"{plain.judge_id}+adapter@"), "the adapter is part of who judges"
    before, after = (
        {(reply.pair_id, reply.dimension): reply.probs for reply in answers_of(judge, 2).replies}
        for judge in (plain, tuned)
    )
    assert before.keys() == after.keys()
    assert all(after[row] != pytest.approx(before[row], abs=1e-3) for row in before)
