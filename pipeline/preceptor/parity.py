"""Does another engine compute the same as the trained student? Differences from the bundle's known answers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from preceptor.bundle import TOLERANCE, Bundle, difference, largest_gap, request_logits
from preceptor.errors import ParityError, StageFailed

_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far an engine is from the known answers at most; infinite where a value is missing or not finite."""

    prob: float
    logit: float


def check_parity(bundle: Bundle, *, with_vllm: bool) -> dict[str, Difference]:
    """The difference of each engine: this project's packed scoring, plain transformers and, where asked for, vLLM.

    Raises ParityError where a probability differs by more than TOLERANCE, or where a logit is not finite.
    """
    found = {"preceptor": packed_difference(bundle), "transformers": transformers_difference(bundle)}
    if with_vllm:
        found["vllm"] = vllm_difference(bundle)
    for engine, worst in found.items():
        if not (worst.prob <= TOLERANCE and math.isfinite(worst.logit)):
            raise ParityError(
                f"{bundle.bundle_id}: {engine} differs by {worst.prob:.4f} (logits by {worst.logit:.4f}) from the "
                f"trained student, more than {TOLERANCE}. Nothing was exported; check the versions in the record."
            )
    return found


def packed_difference(bundle: Bundle) -> Difference:
    """How far this project's own scoring of the exported files is from the trained student, pair by pair."""
    asked = [(known.query, known.profile, [known.document]) for known in bundle.known_answers]
    rows = [request_logits(bundle.ranker, bundle.tokenizer, [request])[0][0] for request in asked]
    return _difference(bundle, rows)


def transformers_difference(bundle: Bundle) -> Difference:
    """How far plain transformers is from the trained student, pair by pair."""
    import torch
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(bundle.path, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        rows = [plain(input_ids=torch.tensor([ids])).logits[0].float().tolist() for ids in _token_ids(bundle)]
    return _difference(bundle, rows)


def vllm_difference(bundle: Bundle) -> Difference:
    """How far vLLM's pooling runner, in a process of its own, is; StageFailed where it cannot load the bundle."""
    limits = bundle.ranker.limits
    asked = {
        "model": str(bundle.path),
        "prompts": _token_ids(bundle),
        "max_model_len": limits.max_prefix_tokens + limits.max_document_tokens + 1,
    }
    # A process of its own, so that the engine's memory is back when it ends.
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **os.environ}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _VLLM_PROGRAM],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise StageFailed(
            f"{bundle.path}: vLLM gave no answer in {_TIMEOUT_S:.0f} s. Run again, or see its log."
        ) from error
    answers = [line for line in done.stdout.splitlines() if line.startswith(_ANSWER)]
    if done.returncode or not answers:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1][:300]
        raise StageFailed(
            f"{bundle.path}: vLLM could not load the bundle ({reason}). See the versions in constraints.txt."
        )
    return _difference(bundle, json.loads(answers[-1].removeprefix(_ANSWER)))


def _difference(bundle: Bundle, rows: Sequence[Sequence[float]]) -> Difference:
    known = bundle.known_answers
    if len(rows) != len(known):
        return Difference(prob=math.inf, logit=math.inf)
    pairs = list(zip(rows, known, strict=True))
    return Difference(
        prob=max(difference(bundle.to_score(row), bundle.to_score(answer.logits)) for row, answer in pairs),
        logit=max(largest_gap(row, answer.logits) for row, answer in pairs),
    )


def _token_ids(bundle: Bundle) -> list[list[int]]:
    from preceptor.ranker.text import prompt_token_ids

    limits = bundle.ranker.limits
    return [
        prompt_token_ids(
            bundle.tokenizer,
            known.query,
            known.profile,
            known.document,
            max_prefix_tokens=limits.max_prefix_tokens,
            max_document_tokens=limits.max_document_tokens,
        )
        for known in bundle.known_answers
    ]


_ANSWER: Final = "LOGITS "
_VLLM_PROGRAM: Final = f"""
import json, sys
from vllm import LLM, PoolingParams
asked = json.load(sys.stdin)
engine = LLM(
    asked["model"], runner="pooling", enforce_eager=True, dtype="bfloat16", max_model_len=asked["max_model_len"]
)
prompts = [{{"prompt_token_ids": ids}} for ids in asked["prompts"]]
done = engine.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
print("{_ANSWER}" + json.dumps([list(map(float, item.outputs.probs)) for item in done]), flush=True)
"""
