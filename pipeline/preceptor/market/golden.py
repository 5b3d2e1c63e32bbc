"""The shipped golden pairs of policy/job_match: constructed from a seed region of their own.

``python -m preceptor.market.golden [POLICY]`` writes them again, with their counts and the holdout's seal. Their grader
is 'market-truth': the truth of the synthetic market, nobody's judgement.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from preceptor.contracts import SPLITS
from preceptor.errors import StageFailed
from preceptor.golden.census import refresh
from preceptor.market.groups import Candidate, generate_ask, generate_group
from preceptor.policy import Rubric, load_policy
from preceptor.recipe import POLICY_DIR

GRADER: Final = "market-truth"
REGION: Final = "golden"
"""The seed region of golden pairs, disjoint from the pool's."""

GOLDEN_SEED: Final = 2026


def write_golden(
    policy: Path,
    *,
    num_queries: int = 220,
    train_documents: int = 8,
    calibration_documents: int = 14,
    holdout_documents: int = 20,
    seed: int = GOLDEN_SEED,
    out: Path | None = None,
) -> tuple[Path, ...]:
    """The files ``golden/{split}.jsonl`` under `out` (default: the policy itself), one line for each pair.

    The split of a query is that of its text everywhere (contracts.split_of); holdout queries get more documents,
    because they are ranked.
    """
    rubric = load_policy(policy).rubric
    num_documents = dict(zip(SPLITS, (train_documents, calibration_documents, holdout_documents), strict=True))
    lines: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    for index in range(num_queries):
        split = generate_ask(index, seed=seed, region=REGION).split
        group = generate_group(index, seed=seed, num_documents=num_documents[split], rubric=rubric, region=REGION)
        for item in group.candidates:
            lines[split].setdefault(item.pair["pair_id"], _line(item, rubric))
    directory = (policy if out is None else out) / "golden"
    return tuple(_write(directory / f"{split}.jsonl", lines[split].values()) for split in SPLITS)


def _line(item: Candidate, rubric: Rubric) -> str:
    content = {
        **{name: item.pair[name] for name in ("query", "profile", "document", "slice", "split")},
        "grades": item.grades,
        "grader_id": GRADER,
        "reason": item.reason,
        "policy_version": rubric.version,
    }
    return json.dumps(content, ensure_ascii=False)


def _write(file: Path, lines: Iterable[str]) -> Path:
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise StageFailed(f"{file}: could not be written ({error}). Check the disk and the folder's rights.") from error
    return file


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else POLICY_DIR
    for written in (*write_golden(directory), *refresh(load_policy(directory))):
        print(written)
