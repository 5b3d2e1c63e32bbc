"""A real OpenAI-compatible server: vLLM's own, asked by the grader, held against transformers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest

from preceptor.contracts import NUM_GRADES, make_pair
from preceptor.judge.endpoint import Endpoint
from preceptor.judge.openai_judge import OpenAIJudge
from preceptor.judge.replies import NO_GRADE, Answers
from preceptor.policy import load_policy
from preceptor.recipe import POLICY_DIR
from preceptor.running import free_port

pytestmark = [pytest.mark.integration, pytest.mark.vllm, pytest.mark.slow]

POLICY = load_policy(POLICY_DIR)
DIMENSIONS = ("role", "place")
START_S = 300


@pytest.fixture(scope="module")
def server(smollm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """vLLM's server with SmolLM2, as an endpoint."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(smollm_dir), "--served-model-name", "smollm2"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--enforce-eager", "--max-model-len", "4096", "--max-num-seqs", "8", "--dtype", "bfloat16"),
        "--enable-prompt-tokens-details",
    ]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as sink:
        process = subprocess.Popen(command, env=env, stdout=sink, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_S
        while not _is_healthy(url):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.2)
        yield Endpoint(
            base_url=f"{url}/v1",
            model="smollm2",
            api_key="none",
            max_concurrency=8,
            timeout_s=120.0,
            max_attempts=2,
            max_tokens_per_minute=10**7,
        )
    finally:
        process.terminate()
        process.wait(60)


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=1.0).status_code == 200
    except httpx.HTTPError:
        return False


def pairs(num: int) -> list[dict[str, str]]:
    return [
        make_pair(f"night nurse {n // 2}", "Nurse, 5 yrs ICU.", f"Posting {n}: ward nurse, nights.", slice="s")
        for n in range(num)
    ]


def answers_of(judge: OpenAIJudge, rows: list[dict[str, str]]) -> Answers:
    async def run() -> Answers:
        grader = judge.open()
        async with grader.client:
            return await grader.grade(pa.Table.from_pylist(rows))

    return asyncio.run(run())


def next_token_masses(model_dir: Path, judge: OpenAIJudge, pair: dict[str, str], dimension: str) -> list[float]:
    """What transformers gives the five digits after the same chat."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()
    text = tokenizer.apply_chat_template(judge.chat(pair, dimension), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        probs = torch.softmax(model(input_ids=ids).logits[0, -1].float(), dim=-1)
    return [float(probs[tokenizer.encode(str(grade), add_special_tokens=False)[0]]) for grade in range(NUM_GRADES)]


def test_a_real_servers_grades_are_the_models_own(server: Endpoint, smollm_dir: Path) -> None:
    judge = OpenAIJudge(endpoint=server, policy=POLICY, dimensions=DIMENSIONS)
    answers = answers_of(judge, pairs(6))
    replies = {(reply.pair_id, reply.dimension): reply for reply in answers.replies}
    assert replies.keys() == {(pair["pair_id"], name) for pair in pairs(6) for name in DIMENSIONS}
    for reply in replies.values():
        assert reply.reason is None and reply.label_mass is not None and reply.probs is not None
        assert 0 < reply.label_mass < 1, "what the model would rather say than a digit must not be lost"
        assert sum(reply.probs) == pytest.approx(1.0)
    assert answers.usage.num_prompt_tokens > 12 * 500
    assert answers.usage.num_generated_tokens == 12
    assert 0 < answers.usage.num_cached_tokens < answers.usage.num_prompt_tokens

    pair = pairs(6)[3]
    reply = replies[pair["pair_id"], "role"]
    found = np.array(reply.probs) * (reply.label_mass or 0.0)
    wanted = np.array(next_token_masses(smollm_dir, judge, pair, "role"))
    assert found == pytest.approx(wanted, abs=2e-2)
    assert found.argmax() == wanted.argmax()


def test_a_real_server_gives_reasons_before_its_grade(server: Endpoint) -> None:
    reasoned = replace(server, rationale_tokens=60)
    (reply,) = answers_of(OpenAIJudge(endpoint=reasoned, policy=POLICY, dimensions=("role",)), pairs(1)).replies
    # A model this small may not keep to the form: then what it wrote is a reject, never a guess.
    if reply.reason is None:
        assert reply.label_mass is not None and 0 < reply.label_mass <= 1
    else:
        assert reply.reason == NO_GRADE and reply.raw
