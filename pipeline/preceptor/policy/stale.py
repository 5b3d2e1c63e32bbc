"""What of a runs directory a change of policy makes stale: labels, teachers, students, bundles.

Labels are counted by what their prompt said (`prompt_hash`), file by file and without their ids, so that a billion of
them take no more memory than one shard. A label without a prompt of its own (an overall grade that was derived) and a
model say only under which policy they were made; where that is neither of the two that are compared, nothing is claimed
of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import pyarrow as pa

from preceptor.contracts import LABELS, OVERALL, conform, read_parquet
from preceptor.errors import InputError
from preceptor.policy.diff import PolicyDiff
from preceptor.policy.document import Policy
from preceptor.policy.prompts import ANSWER, REASONED_ANSWER, UNASKED, prompt_hash
from preceptor.record import Record, read_record

State = Literal["stale", "holds", "other"]
STATES: Final[tuple[State, ...]] = ("stale", "holds", "other")
"""Made under the policy before and overtaken; still true; made under a policy that is neither of the two."""

_MODELS: Final = {"relevance_teacher": "teacher", "distill": "student", "recover": "student", "export": "bundle"}
"""What a stage makes, in the order in which they learn from each other."""

_COLUMNS: Final = ("dimension", "prompt_hash", "policy_version")
_COUNTED: Final = pa.schema([LABELS.field(name) for name in _COLUMNS], metadata=LABELS.metadata)


@dataclass(frozen=True, kw_only=True)
class LabelCount:
    """How many labels of one dimension lie in one stage's folder, such as ``label/v1``, by their state."""

    place: str
    dimension: str
    by_state: Mapping[State, int]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A finished teacher, student or bundle; `stale_heads` are those of its heads that learnt what no longer holds."""

    kind: str
    place: str
    policy_version: str
    state: State
    stale_heads: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Staleness:
    """What lies under `root`, and how it stands after a change of policy."""

    root: Path
    labels: tuple[LabelCount, ...]
    models: tuple[Model, ...]


def staleness(root: Path, before: Policy, after: Policy, change: PolicyDiff) -> Staleness:
    """How the labels and models under the runs directory `root` stand after `change`; InputError where it is missing.

    Parts of unfinished stages count too: a part that is there is whole.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such directory. Give the --root of a run, such as runs/demo.")
    stages = [stage for stage in sorted(root.glob("*/*")) if stage.is_dir()]
    labels = [count for stage in stages for count in _labels_of(stage, before, after, change)]
    records = [record for stage in stages if (record := read_record(stage)) is not None]
    models = [_model(record, root, change) for stage in _MODELS for record in records if record.stage == stage]
    return Staleness(root=root, labels=tuple(labels), models=tuple(models))


def _labels_of(stage: Path, before: Policy, after: Policy, change: PolicyDiff) -> Iterator[LabelCount]:
    counts = Counter[tuple[str, str, str]]()
    for part in sorted((stage / "labels").glob("*.parquet")):
        table = conform(read_parquet(part, columns=list(_COLUMNS)), _COUNTED, where=part)
        for row in table.group_by(list(_COLUMNS)).aggregate([([], "count_all")]).to_pylist():
            counts[row["dimension"], row["prompt_hash"], row["policy_version"]] += row["count_all"]
    old, new = _hashes(before), _hashes(after)
    by_dimension: dict[str, Counter[State]] = {}
    for (dimension, said, version), num in counts.items():
        state = _state_of_prompt(dimension, said, old, new) if said else _state(version, dimension, change)
        by_dimension.setdefault(dimension, Counter())[state] += num
    order = [*dict.fromkeys((*after.rubric.names, *before.rubric.names)), OVERALL]
    for dimension in sorted(by_dimension, key=lambda name: order.index(name) if name in order else len(order)):
        found = by_dimension[dimension]
        yield LabelCount(
            place=f"{stage.parent.name}/{stage.name}",
            dimension=dimension,
            by_state={state: found[state] for state in STATES},
        )


def _hashes(policy: Policy) -> frozenset[tuple[str, str]]:
    """(dimension, prompt hash) of every way to ask: the digit alone, reasons first, or a tuned teacher unasked."""
    names = (*policy.rubric.names, OVERALL)
    return frozenset(
        (name, prompt_hash(policy, name, asking=way)) for name in names for way in (ANSWER, REASONED_ANSWER, UNASKED)
    )


def _state_of_prompt(
    dimension: str, said: str, old: frozenset[tuple[str, str]], new: frozenset[tuple[str, str]]
) -> State:
    if (dimension, said) in new:
        return "holds"
    return "stale" if (dimension, said) in old else "other"


def _state(version: str, dimension: str, change: PolicyDiff) -> State:
    if version == change.after:
        return "holds"
    if version != change.before:
        return "other"
    return "stale" if dimension in change.stale else "holds"


def _model(record: Record, root: Path, change: PolicyDiff) -> Model:
    version = record.policy_version or "none"
    # A student, and so a bundle, learns the overall grade alone.
    heads = record.metrics.get("heads", (OVERALL,))
    states = {head: _state(version, head, change) for head in heads}
    stale = tuple(head for head, state in states.items() if state == "stale")
    return Model(
        kind=_MODELS[record.stage],
        place=str(record.path.relative_to(root)),
        policy_version=version,
        state="stale" if stale else next(iter(states.values()), "other"),
        stale_heads=stale,
    )
