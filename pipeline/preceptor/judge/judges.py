"""Which judge a config means."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from preceptor.contracts import OVERALL, content_id
from preceptor.errors import InputError
from preceptor.judge.completions import Prices
from preceptor.judge.endpoint import Endpoint
from preceptor.judge.fake import FakeJudge
from preceptor.judge.hosted import HostedJudge, read_checkpoint, teacher_id
from preceptor.judge.openai_judge import OpenAIJudge
from preceptor.judge.replies import Judge
from preceptor.judge.vllm_judge import VllmJudge
from preceptor.policy import Policy, prompt_hash
from preceptor.ranker.backbones import resolve_backbone
from preceptor.recipe import JudgeConfig
from preceptor.record import Record

_SAMPLE_BYTES: Final = 2**20


def open_judge(config: JudgeConfig, policy: Policy, *, teacher: Record | None, model: str | None) -> Judge:
    """The judge of `config`; with a `teacher`, that teacher's checkpoint hosted by vLLM, whatever the kind.

    `model` is a directory or Hugging Face name to load in place of the one `config.model` resolves to. Nothing starts
    before the judge is asked. Raises PolicyError for an unknown dimension, InputError for an unusable checkpoint.
    """
    if teacher is not None:
        return _hosted(config, teacher)
    dimensions = config.dimensions or policy.rubric.names
    for name in dimensions:
        if name != OVERALL:
            policy.rubric.dimension(name)
    if config.kind == "fake":
        return FakeJudge(dimensions=dimensions, judge_id=f"fake:{config.model}")
    if config.kind == "openai":
        return openai_judge(config, policy)
    loaded = model or resolve_backbone(config.model)
    return VllmJudge(
        judge_id=vllm_id(config, loaded),
        model=loaded,
        policy=policy,
        dimensions=dimensions,
        engine=config.engine,
        rationale_tokens=config.rationale_tokens,
    )


def vllm_id(config: JudgeConfig, loaded: str) -> str:
    """``vllm:MODEL@REVISION``, ``+ADAPTER@REVISION`` for a LoRA adapter, ``+reasons`` where reasons come first."""
    lora = config.engine.lora
    adapter = f"+{Path(lora).name}@{revision_of(lora)}" if lora is not None else ""
    reasons = "+reasons" if config.rationale_tokens else ""
    return f"vllm:{Path(config.model).name}@{revision_of(loaded)}{adapter}{reasons}"


def openai_judge(config: JudgeConfig, policy: Policy) -> OpenAIJudge:
    """The endpoint of `config` as a judge; its key comes from OPENAI_API_KEY."""
    read, written = config.usd_per_million_prompt_tokens, config.usd_per_million_generated_tokens
    cached = config.usd_per_million_cached_tokens
    return OpenAIJudge(
        endpoint=Endpoint(
            base_url=config.base_url or "",
            model=config.model,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            max_concurrency=config.max_concurrency,
            timeout_s=config.timeout_s,
            max_attempts=config.max_attempts,
            num_actors=config.engine.num_replicas,
            rationale_tokens=config.rationale_tokens,
            max_requests_per_minute=config.max_requests_per_minute,
            max_tokens_per_minute=config.max_tokens_per_minute,
            prices=Prices(
                prompt=read / 1e6, cached=(read if cached is None else cached) / 1e6, generated=written / 1e6
            ),
        ),
        policy=policy,
        dimensions=config.dimensions or policy.rubric.names,
    )


def revision_of(model: str) -> str:
    """Which weights `model` stands for, in 8 hex digits: a hub's commit, or a hash of a directory's files.

    Of a file over 2 MiB only the size and its first and last MiB count: seven billion weights are not read for a name.
    Empty where a hub's model is not on this disk yet.
    """
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, "config.json")
        return Path(found).parent.name[:8] if isinstance(found, str) else ""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors", ".bin"))
    return content_id(*(part for file in files for part in (file.name, *_sampled(file))))[:8]


def _sampled(file: Path) -> tuple[str, str]:
    size = file.stat().st_size
    with file.open("rb") as source:
        first = source.read(_SAMPLE_BYTES)
        source.seek(max(size - _SAMPLE_BYTES, 0))
        return str(size), hashlib.blake2b(first + source.read(), digest_size=8).hexdigest()


def prompt_hashes(judge: Judge, policy: Policy) -> dict[str, str]:
    """The hash of what the policy says of each dimension, with the judge's own way of asking.

    A tuned teacher reads no prompt, but its labels mean what the policy says: a dimension that is worded anew is stale
    for it too.
    """
    return {name: prompt_hash(policy, name, asking=judge.asking) for name in judge.dimensions}


def _hosted(config: JudgeConfig, teacher: Record) -> HostedJudge:
    checkpoint = read_checkpoint(teacher.path / "model")
    wanted = {*(config.dimensions or checkpoint.grade_heads), OVERALL}
    dimensions = tuple(name for name in checkpoint.grade_heads if name in wanted)
    if not dimensions:
        have = ", ".join(checkpoint.grade_heads) or "none"
        raise InputError(f"{checkpoint.path}/config.json: no grade head for {sorted(wanted)}; it has: {have}.")
    return HostedJudge(
        judge_id=teacher_id(teacher),
        checkpoint=checkpoint,
        dimensions=dimensions,
        engine=config.engine,
        heads=tuple(checkpoint.heads),
    )


def live_teacher(config: JudgeConfig, policy: Policy, teacher: Record) -> HostedJudge:
    """A tuned teacher that answers from its engine and keeps no logits, on the dimensions `policy` still has.

    Its labels are those of the same teacher's stored logits, so that each may take over the other's.
    """
    judge = _hosted(config, teacher)
    known = (*policy.rubric.names, OVERALL)
    return replace(judge, heads=(), dimensions=tuple(name for name in judge.dimensions if name in known))
