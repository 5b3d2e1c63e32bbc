"""Bundles: the student as one directory that this project, transformers and vLLM load, with where it came from.

A bundle is a Hugging Face directory plus ``bundle.json`` (identity, lineage, blend, known answers) and a model card.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from preceptor.contracts import NUM_GRADES, OVERALL, SCORES, rows_to_table
from preceptor.errors import GateFailed, InputError, ParityError
from preceptor.recipe import Blend
from preceptor.record import Record, begin, to_jsonable, write_json

BUNDLE_FILE: Final = "bundle.json"
TOLERANCE: Final = 2e-2
"""Largest accepted difference of a probability between two engines that compute in bfloat16."""

PROBES: Final = (
    ("nurse leeds", "Registered nurse, six years on surgical wards.", "Ward nurse, Leeds, permanent, days."),
    ("nurse leeds", "Registered nurse, six years on surgical wards.", "Forklift driver, nights, warehouse near Hull."),
    ("", "", "Ten things nobody tells you about night shifts"),
)
"""Pairs whose scores are stored in the bundle, so that a server can prove that it computes the same."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How a bundle ranks, and whether vLLM must agree before it is written."""

    blend: Blend
    check_vllm: bool


@dataclass(frozen=True, kw_only=True)
class DocumentScore:
    """What a bundle says of one document of a request."""

    grade_probs: tuple[float, ...]
    expected_grade: float
    actions: Mapping[str, float]
    score: float


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A loaded bundle: scores requests in this process."""

    path: Path
    bundle_id: str
    policy_version: str
    blend: Blend
    probes: tuple[Mapping[str, Any], ...]
    _ranker: Any
    _tokenizer: Any

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of its heads, in the order of the score matrix's rows."""
        return tuple(head.name for head in self._ranker.heads)

    def score(self, query: str, profile: str, documents: Sequence[str]) -> list[DocumentScore]:
        """One DocumentScore for each document, in order; the documents share one pass over query and profile."""
        return self.score_many([(query, profile, documents)])[0]

    def score_many(self, requests: Sequence[tuple[str, str, Sequence[str]]]) -> list[list[DocumentScore]]:
        """A list of DocumentScores for each (query, profile, documents)."""
        from preceptor.ranker.batches import Request
        from preceptor.ranker.scoring import score_requests

        wanted = [Request(query=q, profile=p, documents=tuple(d)) for q, p, d in requests]
        logits = score_requests(self._ranker, self._tokenizer, wanted)
        return [[to_score(row, self._ranker.heads, self.blend) for row in rows.tolist()] for rows in logits]

    def probe(self) -> float:
        """The largest difference of a probability from the bundle's known answers; ParityError above TOLERANCE."""
        worst = 0.0
        for known in self.probes:
            got = self.score(known["query"], known["profile"], [known["document"]])[0]
            worst = max(worst, difference(got, known["score"]))
        if not worst <= TOLERANCE:
            raise ParityError(
                f"{self.path}: known answers differ by {worst:.4f}, more than {TOLERANCE}. Export the bundle again."
            )
        return worst


def to_score(logits_R: Sequence[float], heads: Sequence[Any], blend: Blend) -> DocumentScore:
    """The DocumentScore of one document's raw logits; without a grade head all mass is on grade 0."""
    probs: tuple[float, ...] = (1.0, *[0.0] * (NUM_GRADES - 1))
    actions: dict[str, float] = {}
    start = 0
    for head in heads:
        rows = list(logits_R[start : start + head.size])
        start += head.size
        if head.name == OVERALL:
            powers = [math.exp(row - max(rows)) for row in rows]
            probs = tuple(power / sum(powers) for power in powers)
        elif head.kind == "action":
            actions[head.name] = 1.0 / (1.0 + math.exp(-rows[0])) if rows[0] > -700 else 0.0
    expected = sum(grade * prob for grade, prob in enumerate(probs))
    score = blend.relevance * expected / (NUM_GRADES - 1)
    score += blend.click * actions.get("click", 0.0) + blend.apply * actions.get("apply", 0.0)
    return DocumentScore(grade_probs=probs, expected_grade=expected, actions=actions, score=score)


def difference(got: DocumentScore, known: Mapping[str, Any]) -> float:
    """Largest absolute difference of a grade or action probability; infinite where a head is missing."""
    pairs = list(zip(got.grade_probs, known["grade_probs"], strict=True))
    pairs += [(got.actions.get(name, math.inf), prob) for name, prob in known["actions"].items()]
    return max(abs(mine - theirs) for mine, theirs in pairs)


def load_bundle(path: Path, *, threads: int | None = None) -> Bundle:
    """The bundle at `path`, in bfloat16; InputError where it is missing, incomplete or damaged."""
    import torch

    from preceptor.ranker.model import load_ranker

    described = _describe(path)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        ranker, tokenizer = load_ranker(path, dtype=torch.bfloat16)
    except InputError:
        raise
    except Exception as error:  # transformers raises whatever its readers raise on a damaged file.
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{path}: not loadable ({reason}). The bundle is damaged; export it again.") from error
    return Bundle(
        path=path,
        bundle_id=described["bundle_id"],
        policy_version=described["policy_version"],
        blend=Blend(**described["blend"]),
        probes=tuple(described["probes"]),
        _ranker=ranker,
        _tokenizer=tokenizer,
    )


def score_table(bundle: Bundle, pairs: pa.Table) -> pa.Table:
    """SCORES for a PAIRS table, one row a pair, in its order; pairs of one request share its prefix."""
    from preceptor.ranker.batches import group_requests

    grouped = group_requests(pairs.to_pylist())
    answers = bundle.score_many([(r.query, r.profile, r.documents) for r, _ in grouped])
    by_pair = {
        pair_id: answer
        for (_, pair_ids), scores in zip(grouped, answers, strict=True)
        for pair_id, answer in zip(pair_ids, scores, strict=True)
    }
    return rows_to_table(
        (
            {
                "pair_id": pair_id,
                "grade_probs": list(by_pair[pair_id].grade_probs),
                "expected_grade": by_pair[pair_id].expected_grade,
                "actions": list(by_pair[pair_id].actions.items()),
                "score": by_pair[pair_id].score,
                "bundle_id": bundle.bundle_id,
                "policy_version": bundle.policy_version,
            }
            for pair_id in pairs.column("pair_id").to_pylist()
        ),
        SCORES,
    )


def export(config: ExportConfig, *, student: Record, gate: Record, out: Path) -> Record:
    """The record of the bundle in ``bundle/``: written only where the gate passed and every engine agrees.

    Parity is checked between this project's packed scoring, plain transformers and, with `config.check_vllm`, vLLM;
    the largest difference is stated in the record. Raises GateFailed or ParityError, and then leaves no bundle.
    """
    if not gate.metrics.get("passed"):
        raise GateFailed(f"{gate.path}: the gate did not pass; nothing is exported. Read its report, retrain, rerun.")
    inputs = {"student": student, "gate": gate}
    run = begin("export", config, out=out, inputs=inputs, policy_version=student.policy_version)
    if run.record is not None:
        return run.record
    partial = out / ".bundle.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(student.path / "model", partial)
    described = {
        "bundle_id": f"{student.stage}-{run.fingerprint}",
        "policy_version": student.policy_version or "none",
        "blend": asdict(config.blend),
        "lineage": {"student": student.fingerprint, "gate": gate.fingerprint, "inputs": dict(student.inputs)},
        "probes": [],
    }
    write_json(partial / BUNDLE_FILE, described)
    bundle = load_bundle(partial)
    described["probes"] = [
        {"query": q, "profile": p, "document": d, "score": to_jsonable(bundle.score(q, p, [d])[0])} for q, p, d in PROBES
    ]
    write_json(partial / BUNDLE_FILE, described)
    (partial / "README.md").write_text(model_card(described, student, gate))
    parity = check_parity(partial, with_vllm=config.check_vllm)
    shutil.rmtree(out / "bundle", ignore_errors=True)
    partial.rename(out / "bundle")
    return run.finish(num_rows_in=1, num_rows_kept=1, metrics={"bundle_id": described["bundle_id"], "parity": parity})


def check_parity(path: Path, *, with_vllm: bool) -> dict[str, float]:
    """Largest probability difference of the probes by engine; ParityError above TOLERANCE."""
    from preceptor.parity import transformers_difference, vllm_difference

    found = {"transformers": transformers_difference(path)}
    if with_vllm:
        found["vllm"] = vllm_difference(path)
    for engine, worst in found.items():
        if not worst <= TOLERANCE:
            raise ParityError(
                f"{path}: {engine} differs by {worst:.4f} from the trained student, more than {TOLERANCE}. "
                "Nothing was exported; check the versions in the record."
            )
    return found


def model_card(described: Mapping[str, Any], student: Record, gate: Record) -> str:
    """The bundle's README.md: what it is, how to use it, what it was measured at, and its limits."""
    measured = "\n".join(f"- {name}: {value}" for name, value in sorted(gate.metrics.items()) if name != "failures")
    return f"""---
library_name: transformers
pipeline_tag: text-classification
---
# {described["bundle_id"]}

A student ranker distilled by Preceptor from a relevance teacher and an engagement teacher, under policy
{described["policy_version"]}. Rows of its score matrix are named in config.json (`preceptor_heads`): five grade logits
for `overall`, one logit for each action.

Read a pair as `Query: ...`, `Member: ...`, `Posting: ...`, `Grade: ` on lines of their own. Use raw logits: softmax the five,
sigmoid the others. It ranks by {described["blend"]} (expected grade / 4 and action probabilities).

Share of the teacher's layer parameters: {student.metrics.get("share_of_teacher", 0):.2f}.

## Measured at the gate
{measured}

## Limits
What it learnt is as good as its policy, its graded examples and its clicks. Read the run's report for how they came
about; truth that was constructed is called so there.
"""


def _describe(path: Path) -> dict[str, Any]:
    file = path / BUNDLE_FILE
    if not file.is_file():
        raise InputError(f"{path}: no {BUNDLE_FILE}; not a bundle. Point at the bundle/ directory of an export stage.")
    try:
        described = json.loads(file.read_text())
        missing = {"bundle_id", "policy_version", "blend", "probes"} - described.keys()
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not readable ({error}). The bundle is damaged; export it again.") from error
    if missing:
        raise InputError(f"{file}: lacks {', '.join(sorted(missing))}. The bundle is damaged; export it again.")
    return described
