"""How many golden pairs there are, by split, slice, grade and grader: in the folder's README, and in its seal."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from preceptor.contracts import NUM_GRADES, OVERALL, SPLITS, whole_file
from preceptor.errors import InputError
from preceptor.golden.graders import CONSTRUCTED
from preceptor.policy import Policy, load_golden
from preceptor.policy.document import GOLDEN_DIR
from preceptor.policy.findings import refuse
from preceptor.policy.golden import GoldenPair, golden_files, read_golden
from preceptor.policy.seal import SEAL, seal_of

README: Final = "README.md"
BEGIN: Final = "<!-- counts: written by `preceptor golden census` -->"
END: Final = "<!-- end of counts -->"


def refresh(policy: Policy) -> tuple[Path, Path]:
    """The README and the seal of the policy's golden folder, after writing both from the golden files as they are.

    InputError where the README has lost the marks between which the counts stand; PolicyError where golden is broken.
    """
    texts = {file: text for file, text in fresh(policy).items()}
    for file, text in texts.items():
        with whole_file(file) as sink:
            sink.write(text.encode())
    readme, seal = texts
    return readme, seal


def fresh(policy: Policy) -> dict[Path, str]:
    """What the README and the seal of the policy's golden folder should hold, in this order."""
    folder = policy.path / GOLDEN_DIR
    readme = folder / README
    text = readme.read_text(encoding="utf-8") if readme.is_file() else f"# Golden\n\n{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{readme}: has no place for the counts. Put back the two lines: {BEGIN} and {END}")
    seal = dataclasses.asdict(seal_of(load_golden(folder, policy)))
    return {
        readme: f"{before}{BEGIN}\n\n{counts(policy)}\n\n{END}{after}",
        folder / SEAL: json.dumps(seal, indent=1, ensure_ascii=False) + "\n",
    }


def counts(policy: Policy) -> str:
    """The golden pairs of the policy in Markdown tables: by split, slice and overall grade; by dimension and grade; by
    grader."""
    pairs, findings = read_golden(golden_files(policy.path / GOLDEN_DIR), policy.rubric)
    refuse(findings)
    return "\n\n".join([_graders(pairs), _slices(pairs), _dimensions(pairs, (*policy.rubric.names, OVERALL))])


def _graders(pairs: Sequence[GoldenPair]) -> str:
    lines = []
    for grader, num in sorted(Counter(pair.grader_id for pair in pairs).items()):
        what = "constructed: no person graded them" if grader == CONSTRUCTED else "people"
        lines.append(f"- {num:,} pairs graded by `{grader}` ({what})")
    return f"{len(pairs):,} pairs of {len(_queries(pairs)):,} queries.\n\n" + "\n".join(lines)


def _slices(pairs: Sequence[GoldenPair]) -> str:
    """Pairs by split and slice, and by their overall grade."""
    rows = []
    for split in SPLITS:
        mine = [pair for pair in pairs if pair.pair["split"] == split]
        for slice_ in sorted({pair.pair["slice"] for pair in mine}):
            rows.append(_row((split, slice_), [pair for pair in mine if pair.pair["slice"] == slice_]))
        rows.append(_row((f"**{split}**", "all"), mine))
    return _table(("split", "slice", "pairs", "queries", *_grade_names("overall")), rows)


def _row(names: tuple[str, ...], pairs: Sequence[GoldenPair]) -> tuple[object, ...]:
    found = Counter(pair.grades[OVERALL] for pair in pairs)
    return (*names, len(pairs), len(_queries(pairs)), *(found[grade] for grade in range(NUM_GRADES)))


def _dimensions(pairs: Sequence[GoldenPair], names: Iterable[str]) -> str:
    """Grades of each dimension, over all splits."""
    rows = []
    for name in names:
        found = Counter(pair.grades[name] for pair in pairs if name in pair.grades)
        rows.append((f"`{name}`", *(found[grade] for grade in range(NUM_GRADES))))
    return _table(("dimension", *_grade_names("grade")), rows)


def _grade_names(first: str) -> tuple[str, ...]:
    return (f"{first} 0", *(str(grade) for grade in range(1, NUM_GRADES)))


def _queries(pairs: Iterable[GoldenPair]) -> set[str]:
    return {pair.pair["query_id"] for pair in pairs}


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in line) + " |" for line in lines
    )
