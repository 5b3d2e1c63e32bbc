"""Which judge a config means."""

from __future__ import annotations

import os
from pathlib import Path

from preceptor.contracts import OVERALL
from preceptor.errors import InputError
from preceptor.judge.fake import FakeJudge
from preceptor.judge.hosted import HostedJudge, read_checkpoint
from preceptor.judge.openai_judge import Endpoint, OpenAIJudge
from preceptor.judge.replies import Judge
from preceptor.judge.vllm_judge import VllmJudge
from preceptor.policy import Policy, prompt_hash
from preceptor.ranker.backbones import resolve_backbone
from preceptor.recipe import JudgeConfig
from preceptor.record import Record


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
        return OpenAIJudge(
            judge_id=f"openai:{config.model}",
            endpoint=Endpoint(
                base_url=config.base_url or "",
                model=config.model,
                api_key=os.environ.get("OPENAI_API_KEY", "none"),
                max_concurrency=config.max_concurrency,
                timeout_s=config.timeout_s,
                max_attempts=config.max_attempts,
                num_actors=config.engine.num_replicas,
            ),
            policy=policy,
            dimensions=dimensions,
        )
    return VllmJudge(
        judge_id=f"vllm:{Path(config.model).name}",
        model=model or resolve_backbone(config.model),
        policy=policy,
        dimensions=dimensions,
        engine=config.engine,
    )


def prompt_hashes(judge: Judge, policy: Policy) -> dict[str, str]:
    """The prompt hash of each dimension the judge is asked in words; a hosted teacher reads no prompt and has none."""
    return {} if judge.heads else {name: prompt_hash(policy, name) for name in judge.dimensions}


def _hosted(config: JudgeConfig, teacher: Record) -> HostedJudge:
    checkpoint = read_checkpoint(teacher.path / "model")
    wanted = {*(config.dimensions or checkpoint.grade_heads), OVERALL}
    dimensions = tuple(name for name in checkpoint.grade_heads if name in wanted)
    if not dimensions:
        have = ", ".join(checkpoint.grade_heads) or "none"
        raise InputError(f"{checkpoint.path}/config.json: no grade head for {sorted(wanted)}; it has: {have}.")
    return HostedJudge(
        judge_id=f"teacher:{teacher.fingerprint}", checkpoint=checkpoint, dimensions=dimensions, engine=config.engine
    )
