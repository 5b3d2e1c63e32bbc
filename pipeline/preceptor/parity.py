"""Does another engine compute the same as the bundle's own scorer? Differences of probabilities, engine by engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from preceptor.bundle import difference, load_bundle, to_score
from preceptor.errors import StageFailed


def transformers_difference(path: Path) -> float:
    """Largest probability difference between the stored known answers and plain transformers, pair by pair."""
    import torch
    from transformers import AutoModelForSequenceClassification

    bundle = load_bundle(path)
    plain = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.bfloat16).eval()
    worst = 0.0
    for known, ids in zip(bundle.probes, _probe_ids(path, bundle), strict=True):
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([ids])).logits[0].float().tolist()
        worst = max(worst, difference(to_score(logits, bundle._ranker.heads, bundle.blend), known["score"]))
    return worst


def vllm_difference(path: Path) -> float:
    """Largest probability difference between the stored known answers and vLLM's pooling runner (own process)."""
    bundle = load_bundle(path)
    payload = json.dumps({"model": str(path), "prompts": list(_probe_ids(path, bundle))})
    # A process of its own, so that the engine's memory is back when it ends.
    done = subprocess.run(
        [sys.executable, "-c", _VLLM_PROGRAM], input=payload, capture_output=True, text=True, timeout=600, check=False
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("LOGITS ")]
    if done.returncode or not answers:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1][:300]
        raise StageFailed(f"{path}: vLLM could not load the bundle ({reason}). See the versions in constraints.txt.")
    rows = json.loads(answers[-1].removeprefix("LOGITS "))
    scored = [to_score(row, bundle._ranker.heads, bundle.blend) for row in rows]
    return max(difference(got, known["score"]) for got, known in zip(scored, bundle.probes, strict=True))


def _probe_ids(path: Path, bundle: Any) -> Any:
    from preceptor.ranker.text import prompt_token_ids

    limits = bundle._ranker.limits
    for known in bundle.probes:
        yield prompt_token_ids(
            bundle._tokenizer,
            known["query"],
            known["profile"],
            known["document"],
            max_prefix_tokens=limits.max_prefix_tokens,
            max_document_tokens=limits.max_document_tokens,
        )


_VLLM_PROGRAM = """
import json, sys
from vllm import LLM, PoolingParams
asked = json.load(sys.stdin)
engine = LLM(asked["model"], runner="pooling", enforce_eager=True, dtype="bfloat16", max_model_len=1024)
prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
done = engine.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
print("LOGITS", json.dumps([list(map(float, item.outputs.probs)) for item in done]), flush=True)
"""
