"""What was kept and why the rest was dropped, as a table for people and as counts for the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from preceptor.contracts import NUM_GRADES
from preceptor.generate.drafts import ORIGINS, quotas
from preceptor.generate.queries import NOT_NEEDED
from preceptor.generate.select import HARD
from preceptor.recipe import CorporaConfig

_STEPS: Final = ("read", "screen for personal data", "drop repeats")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The counts of each step, as its parts gave them. Their names begin with the corpus, the style or the kind."""

    read: Mapping[str, Mapping[str, int]]
    screened: Mapping[str, int]
    kept: Mapping[str, int]
    drafted: Mapping[str, int]
    queries: Mapping[str, int]
    scales: Mapping[str, Mapping[str, float]]
    mined: Mapping[str, int]

    def of_texts(self, corpus: str) -> tuple[Mapping[str, int], ...]:
        """The counts of `corpus` in each of the steps that texts go through."""
        return self.read[corpus], _below(self.screened, corpus), _below(self.kept, corpus)

    def metrics(self, config: CorporaConfig) -> dict[str, Any]:
        """What the record says of the finished corpus."""
        mined = self.mined
        num_pairs = sum(_below(mined, "pairs").values())
        return {
            "truth": "none: predicted grades are guesses from similarity, not judgements",
            "written_by": "templates" if config.writer is None else config.writer.model,
            "num_pairs": num_pairs,
            "num_pairs_by_style": _below(mined, "pairs"),
            "num_pairs_by_split": _below(mined, "split"),
            "num_pairs_by_kind": _below(mined, "kind"),
            "predicted_grade_shares": {
                str(grade): round(_of_grade(mined, grade) / max(num_pairs, 1), 4) for grade in range(NUM_GRADES)
            },
            "num_queries": sum(count for name, count in self.queries.items() if name.endswith(" kept")),
            "texts": {corpus: {"kept": self.of_texts(corpus)[-1].get("kept", 0)} for corpus in self.read},
            "personal_data": {corpus: _personal(_below(self.screened, corpus)) for corpus in self.read},
            "similarity_scales": self.scales,
        }


def num_rows_in(counts: Counts) -> int:
    """Texts read and queries drafted, without the spare drafts that were not needed."""
    num_spare = sum(count for name, count in counts.queries.items() if name.endswith(f" dropped {NOT_NEEDED}"))
    return sum(found["in"] for found in counts.read.values()) + sum(counts.drafted.values()) - num_spare


def rejected(counts: Counts) -> dict[str, int]:
    """How many texts and drafts were dropped, by what they were and reason; a spare draft was not dropped."""
    found: Counter[str] = Counter()
    for corpus in counts.read:
        for step in counts.of_texts(corpus):
            found.update({f"{corpus}: {reason}": count for reason, count in _below(step, "dropped").items() if count})
    for style in _styles(counts):
        for reason, count in _below(_below(counts.queries, style), "dropped").items():
            found[f"queries: {reason}"] += count if reason != NOT_NEEDED else 0
    return {reason: count for reason, count in sorted(found.items()) if count}


def table_of(counts: Counts, config: CorporaConfig) -> str:
    """The whole table.md."""
    return "\n".join(
        [
            "# Own corpora: what was kept, and why the rest was dropped",
            "",
            *_markdown(("step", "of", "in", "kept", "dropped because"), _rows(counts, config)),
            "",
            f"Personal data ({config.personal_data}): {_personal_line(counts)}. "
            "Names and postal addresses are not looked for.",
            "",
            *_markdown(("pairs of style", *_grade_names(), "all", "similarity scale"), _strata_rows(counts)),
            "",
            f"Asked of the strata: {_shares(counts, config)}; {config.hard_negatives:.0%} hard negatives beside them "
            f"({_hard_line(counts)}). Predicted grades are guesses from similarity; nobody judged them. "
            "0 on the scale is the mean similarity to random postings, 1 the median best match.",
            "",
        ]
    )


def _rows(counts: Counts, config: CorporaConfig) -> Iterator[tuple[str, ...]]:
    for corpus in counts.read:
        num_in = counts.read[corpus]["in"]
        for name, step in zip(_STEPS, counts.of_texts(corpus), strict=True):
            yield name, corpus, f"{num_in:,}", f"{step.get('kept', 0):,}", _reasons(_below(step, "dropped"))
            num_in = step.get("kept", 0)
    for style in _styles(counts):
        found = _below(counts.queries, style)
        num_in = sum(count for name, count in counts.drafted.items() if name.split(" ", 1)[1] == style)
        num_asked = sum(num for origin in ORIGINS for name, num in quotas(config, origin).items() if name == style)
        num_kept = found.get("kept", 0)
        dropped = _reasons(_below(found, "dropped"))
        fewer = f"; {num_asked - num_kept:,} fewer than asked" if num_kept < num_asked else ""
        yield "accept queries", style, f"{num_in:,}", f"{num_kept:,}", f"{dropped}{fewer}"
    num_pairs = sum(_below(counts.mined, "pairs").values())
    repeated = sum(found.get("repeated", 0) for found in (_below(counts.mined, style) for style in _styles(counts)))
    short = sum(found.get("short", 0) for found in (_below(counts.mined, style) for style in _styles(counts)))
    reasons = {"pair met before": repeated, "fewer postings than asked": short}
    num_asked = num_pairs + repeated + short
    yield "pair", "all styles", f"{num_asked:,}", f"{num_pairs:,}", _reasons(reasons)


def _strata_rows(counts: Counts) -> Iterator[tuple[str, ...]]:
    for style in _styles(counts):
        by_grade = _below(_below(counts.mined, "grade"), style)
        total = sum(by_grade.values())
        cells = [f"{by_grade.get(str(grade), 0) / max(total, 1):.0%}" for grade in range(NUM_GRADES)]
        scale = counts.scales.get(style, {"low": 0.0, "high": 0.0})
        yield style, *cells, f"{total:,}", f"{scale['low']:.2f} to {scale['high']:.2f}"


def _grade_names() -> tuple[str, ...]:
    return tuple(f"predicted {grade}" for grade in range(NUM_GRADES))


def _styles(counts: Counts) -> list[str]:
    return sorted({name.split(" ", 1)[1] for name in counts.drafted})


def _of_grade(mined: Mapping[str, int], grade: int) -> int:
    return sum(count for name, count in _below(mined, "grade").items() if name.endswith(f" {grade}"))


def _below(found: Mapping[str, int], first: str) -> dict[str, int]:
    """The counts whose names begin with the word `first`, named by what follows it."""
    return {name.removeprefix(f"{first} "): count for name, count in found.items() if name.startswith(f"{first} ")}


def _personal(found: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in found.items() if name.endswith(" found") or name == "texts masked"}


def _personal_line(counts: Counts) -> str:
    return "; ".join(
        f"{corpus}: "
        + (
            ", ".join(
                f"{count:,} {name}" for name, count in _personal(_below(counts.screened, corpus)).items() if count
            )
            or "none found"
        )
        for corpus in counts.read
    )


def _hard_line(counts: Counts) -> str:
    kinds = _below(counts.mined, "kind")
    return ", ".join(f"{kinds.get(kind, 0):,} {kind.removeprefix('hard: ')}" for kind in HARD)


def _shares(counts: Counts, config: CorporaConfig) -> str:
    strata = _below(counts.mined, "stratum")
    total = max(sum(strata.values()), 1)
    return ", ".join(
        f"{share:.0%} predicted {grade} (got {strata.get(str(grade), 0) / total:.0%})"
        for grade, share in sorted(config.strata.items())
    )


def _reasons(found: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(found.items()) if count)


def _markdown(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"| {' | '.join('---' for _ in header)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"
