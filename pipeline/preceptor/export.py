"""The `export` stage: a student that passed its gate becomes a bundle, written whole and only where engines agree."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from preceptor.bundle import (
    BUNDLE_FILE,
    KNOWN_TOKENS,
    PLAIN_TOKENIZER,
    KnownAnswer,
    load_bundle,
    request_logits,
    require_overall,
    require_policy,
)
from preceptor.contracts import PAIRS, iter_tables
from preceptor.errors import GateFailed, StageFailed, reason_of
from preceptor.parity import check_parity
from preceptor.ranker.text import features_of
from preceptor.recipe import Blend
from preceptor.record import Record, begin, write_json

PROBES: Final = (
    (
        "nurse leeds",
        "Registered nurse, six years on surgical wards.",
        ("Ward nurse, Leeds, permanent, days.", "Forklift driver, nights, warehouse near Hull."),
    ),
    ("", "", ("Ten things nobody tells you about night shifts",)),
)
"""Requests whose logits are stored in the bundle, so that a server can prove that it computes the same. Documents of
one request are scored together, and compared with engines that see each pair alone."""

_ORIGINS: Final = {
    "smollm2-135m": "SmolLM2-135M-Instruct (Hugging Face, Apache-2.0)",
    "random-tiny": "random weights: it is for tests and ranks by chance",
}

_NUM_READ: Final = 200
"""Training documents that are looked at for the numbers they end with."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How a bundle ranks, the language model it derives from, and whether vLLM must agree before it is written."""

    backbone: str
    blend: Blend
    check_vllm: bool


def export(config: ExportConfig, *, student: Record, gate: Record, out: Path) -> Record:
    """The record of the bundle in ``bundle/``: written only where the gate passed and every engine agrees.

    Its known answers are computed by the trained student; the exported files must come close to them in this project's
    packed scoring, in plain transformers and, with `config.check_vllm`, in vLLM. The largest differences are in the
    record. Raises GateFailed, ParityError or StageFailed (a full disk), and then leaves no bundle.
    """
    if not gate.metrics.get("passed"):
        raise GateFailed(f"{gate.path}: the gate did not pass; nothing is exported. Read its report, retrain, rerun.")
    inputs = {"student": student, "gate": gate}
    run = begin("export", config, out=out, inputs=inputs, policy_version=student.policy_version)
    if run.record is not None:
        return run.record
    bundle_id = f"{student.stage}-{run.fingerprint}"
    target, partial = out / "bundle", out / ".bundle.partial"
    for leftover in (target, partial):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        _write(partial, bundle_id, config, student=student, gate=gate)
        parity = check_parity(load_bundle(partial), with_vllm=config.check_vllm)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    differences = {engine: asdict(found) for engine, found in parity.items()}
    return run.finish(num_rows_in=1, num_rows_kept=1, metrics={"bundle_id": bundle_id, "parity": differences})


def _write(target: Path, bundle_id: str, config: ExportConfig, *, student: Record, gate: Record) -> None:
    """All files of the bundle, in `target`; weights in bfloat16."""
    import torch

    from preceptor.ranker.model import load_ranker
    from preceptor.ranker.plain_tokenizer import known_tokens, plain_digest

    ranker, tokenizer = load_ranker(student.path / "model", dtype=torch.bfloat16)
    require_overall(ranker.heads, student.path / "model")
    require_policy(ranker.policy_version, student.policy_version, student.path / "model")
    ranker.set_policy_version(student.policy_version)
    answers = [
        KnownAnswer(query=query, profile=profile, document=document, logits=tuple(row))
        for (query, profile, documents), rows in zip(PROBES, request_logits(ranker, tokenizer, PROBES), strict=True)
        for document, row in zip(documents, rows, strict=True)
    ]
    described: dict[str, Any] = {
        "bundle_id": bundle_id,
        "policy_version": student.policy_version or "none",
        "backbone": config.backbone,
        "blend": asdict(config.blend),
        "lineage": {"student": student.fingerprint, "gate": gate.fingerprint, "inputs": dict(student.inputs)},
        "gate": dict(gate.metrics),
        "features": features_read(student),
        "known_answers": [asdict(answer) for answer in answers],
    }
    try:
        ranker.save(target, tokenizer)
        described |= {PLAIN_TOKENIZER: plain_digest(target, tokenizer), KNOWN_TOKENS: known_tokens(tokenizer)}
        (target / "README.md").write_text(model_card(described, student))
    except Exception as error:  # safetensors and tokenizers raise types of their own where the disk refuses.
        raise StageFailed(
            f"{target.parent}: the bundle could not be written ({reason_of(error)}). "
            "Free some space or choose another --root."
        ) from error
    write_json(target / "record.json", {key: value for key, value in asdict(student).items() if key != "path"})
    write_json(target / BUNDLE_FILE, described)


def features_read(student: Record) -> list[str]:
    """The numeric features, by name, that most of the first of the student's training documents end with."""
    folder = student.path / "training" / "pairs"
    if not folder.is_dir():
        return []
    first = next(iter_tables(folder, PAIRS), None)
    documents = [] if first is None else first["document"].slice(0, _NUM_READ).to_pylist()
    counted = Counter(name for document in documents for name in features_of(document))
    return sorted(name for name, num in counted.items() if 2 * num > len(documents))


def model_card(described: Mapping[str, Any], student: Record) -> str:
    """The bundle's README.md: what it is, how to use it, what it was measured at, and its limits."""
    values = described["gate"].get("values", {})
    measured = "\n".join(f"- {name}: {value:.4f}" for name, value in sorted(values.items()) if value is not None)
    return f"""---
library_name: transformers
pipeline_tag: text-classification
---
# {described["bundle_id"]}

A student ranker distilled by Preceptor from a relevance teacher and an engagement teacher, under policy
{described["policy_version"]}. Rows of its score matrix are named in config.json (`preceptor_heads`): five grade logits
for `overall`, one logit for each action.

Read a pair as `Query: ...`, `Member: ...`, `Posting: ...`, `Grade: ` on lines of their own, the posting with its line
break tokenised apart from what precedes it. Use raw logits: softmax the five, sigmoid the others. It ranks by
{described["blend"]} (expected grade / 4 and action probabilities).

{_features(described["features"])}Its weights derive from {_ORIGINS.get(described["backbone"], described["backbone"])}.
{_share(student)}How it was trained: `record.json`. Where it comes from, and pairs with the logits any engine must come
close to: `{BUNDLE_FILE}`.

## Measured at the gate
{measured or "Nothing: the recipe's holdouts were empty."}

## Limits
What it learnt is as good as its policy, its graded examples and its clicks. Read the run's report for how they came
about; truth that was constructed is called so there.
"""


def _features(names: Sequence[str]) -> str:
    """What has to stand at the end of a posting, where anything does."""
    if not names:
        return ""
    shown = "`, `".join(names)
    return (
        f"Postings must end with the numbers it learnt to read (`{shown}`),\n"
        "written by `preceptor.ranker.text` as in its training. Without them its scores mean little.\n\n"
    )


def _share(student: Record) -> str:
    """How much smaller than its teacher it is, where both are rankers."""
    share = student.metrics.get("share_of_teacher")
    return "" if share is None else f"Share of the teacher's layer parameters: {share:.2f}. "
