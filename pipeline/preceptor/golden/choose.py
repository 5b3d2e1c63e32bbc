"""Which pairs people should grade: a number of each stratum, vigilance items among them, two graders for each."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from preceptor.contracts import PAIRS, SPLITS, conform, content_id, make_pair, parquet_files, read_parquet
from preceptor.errors import InputError, PolicyError, located
from preceptor.golden.rounds import Round, Stratum, Task
from preceptor.policy import Policy
from preceptor.policy.document import GOLDEN_DIR
from preceptor.policy.findings import refuse
from preceptor.policy.golden import GoldenPair, golden_files, read_golden

STRATA: Final = ("slice", "split")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A PAIRS row that could be graded, and the stratum it stands in."""

    pair: Mapping[str, str]
    stratum: tuple[str, ...]


def make_round(
    policy: Policy,
    candidates: Sequence[Candidate],
    *,
    columns: Sequence[str] = STRATA,
    graders: Sequence[str],
    per_stratum: int,
    vigilance_share: float,
    seed: int = 0,
) -> Round:
    """The round of at most `per_stratum` pairs of every stratum, two graders each, with known pairs among them.

    Precedents and pairs that are golden already are not asked again. Vigilance items are golden-train pairs that have a
    grade in every dimension, chosen by the seed, `vigilance_share` of all tasks. The same inputs give the same round.
    InputError where no pair is left, PolicyError where too few pairs have known grades.
    """
    golden, findings = read_golden(golden_files(policy.path / GOLDEN_DIR), policy.rubric)
    refuse(findings)
    decided = {plain_id(item.query, item.profile, item.document) for item in policy.precedents}
    graded = {item.pair["pair_id"] for item in golden}
    fates = {_pair_id(item): _fate(item.pair, graded, decided) for item in candidates}
    open_ = list({_pair_id(item): item for item in candidates if not fates[_pair_id(item)]}.values())
    skipped = Counter(fate for fate in fates.values() if fate)
    chosen, strata = _pick(open_, columns, per_stratum, seed)
    if not chosen:
        raise InputError(f"no pair is left to grade: {dict(skipped) or 'the file has no row'}. Bring other pairs.")
    known = _vigilance(golden, policy, len(chosen), vigilance_share, seed)
    pairs = {pair["pair_id"]: pair for pair in (*(item.pair for item in chosen), *(item.pair for item in known))}
    grades = {item.pair["pair_id"]: dict(item.grades) for item in known}
    who = {
        **_assigned(sorted(_pair_id(item) for item in chosen), graders, seed),
        **_assigned(sorted(grades), graders, seed),
    }
    settings = (policy.version, *graders, str(seed), *sorted(pairs))
    id = content_id("round", *settings)[:8]
    order = sorted(pairs, key=lambda pair_id: content_id("order", id, pair_id))
    return Round(
        id=id,
        policy_version=policy.version,
        dimensions=policy.rubric.names,
        graders=tuple(graders),
        seed=seed,
        columns=tuple(columns),
        strata=strata,
        skipped=dict(sorted(skipped.items())),
        tasks=tuple(
            Task(id=f"{id}-{pair_id}", pair=pairs[pair_id], graders=who[pair_id], known=grades.get(pair_id))
            for pair_id in order
        ),
    )


def read_candidates(path: Path, columns: Sequence[str] = STRATA) -> list[Candidate]:
    """The pairs of a PAIRS file or folder, with their values of `columns`, which may be further text columns of it.

    Ids and split are those of the texts, by which golden is told apart and parted. InputError where a column is missing
    or is not text.
    """
    candidates: list[Candidate] = []
    for file in parquet_files(path):
        table = read_parquet(file)
        rows = conform(table, PAIRS, where=file).to_pylist()
        pairs = [make_pair(row["query"], row["profile"], row["document"], slice=row["slice"]) for row in rows]
        values = [
            [pair[name] for pair in pairs] if name in PAIRS.names else _texts(table, name, file) for name in columns
        ]
        strata = list(zip(*values, strict=True)) if columns else [()] * len(pairs)
        candidates += [Candidate(pair=pair, stratum=stratum) for pair, stratum in zip(pairs, strata, strict=True)]
    return candidates


def _texts(table: pa.Table, name: str, file: Path) -> list[str]:
    if name not in table.column_names:
        known = ", ".join(table.column_names)
        raise InputError(located(f"no such column for a stratum; the file has: {known}.", file=file, column=name))
    column = table[name]
    if not pa.types.is_string(column.type) or column.null_count:
        raise InputError(
            located(f"a stratum needs text without nulls, got {column.type}. Mend it.", file=file, column=name)
        )
    values: list[str] = column.to_pylist()
    return values


def _pair_id(item: Candidate) -> str:
    return item.pair["pair_id"]


def _fate(pair: Mapping[str, str], graded: set[str], decided: set[str]) -> str:
    """Why a pair is not asked, or nothing."""
    if pair["pair_id"] in graded:
        return "golden already"
    return "precedent" if plain_id(pair["query"], pair["profile"], pair["document"]) in decided else ""


def plain_id(*texts: str) -> str:
    """One id for texts that differ in case or spacing alone, as `policy lint` compares golden with precedents."""
    return content_id(*(" ".join(text.casefold().split()) for text in texts))


def _pick(
    items: Iterable[Candidate], columns: Sequence[str], per_stratum: int, seed: int
) -> tuple[list[Candidate], tuple[Stratum, ...]]:
    """At most `per_stratum` of each stratum, over as many queries as there are, and what each stratum got.

    Strata are all combinations of the columns' values, and all splits: one without any pair lacks them all.
    """
    groups: dict[tuple[str, ...], list[Candidate]] = {}
    for item in items:
        groups.setdefault(item.stratum, []).append(item)
    values = [
        sorted({name[place] for name in groups} | (set(SPLITS) if column == "split" else set()))
        for place, column in enumerate(columns)
    ]
    chosen: list[Candidate] = []
    strata: list[Stratum] = []
    for name in itertools.product(*values):
        groups.setdefault(name, [])
        taken = _over_queries(groups[name], seed)[:per_stratum]
        chosen += taken
        strata.append(Stratum(name=name, num_available=len(groups[name]), num_asked=per_stratum, num_taken=len(taken)))
    return chosen, tuple(strata)


def _over_queries(items: Iterable[Candidate], seed: int) -> list[Candidate]:
    """Every query's first pair, then every query's second, and so on, each in the order of a seeded hash."""
    ordered = sorted(items, key=lambda item: content_id("golden", str(seed), _pair_id(item)))
    seen: Counter[str] = Counter()
    turns: list[tuple[int, Candidate]] = []
    for item in ordered:
        turns.append((seen[item.pair["query_id"]], item))
        seen[item.pair["query_id"]] += 1
    return [item for _, item in sorted(turns, key=lambda turn: turn[0])]


def _vigilance(
    golden: Iterable[GoldenPair], policy: Policy, num_chosen: int, share: float, seed: int
) -> list[GoldenPair]:
    """The golden-train pairs, `share` of all tasks, whose known grades tell how a grader grades."""
    if not 0 <= share < 1:
        raise InputError(f"the vigilance share must be at least 0 and under 1, got {share}.")
    wanted = round(num_chosen * share / (1 - share))
    if share and not wanted:
        wanted = 1
    whole = [pair for pair in golden if pair.pair["split"] == "train" and set(policy.rubric.names) <= set(pair.grades)]
    if len(whole) < wanted:
        raise PolicyError(
            f"{policy.path / GOLDEN_DIR}: {wanted} vigilance items need as many golden pairs of split train, got "
            f"{len(whole)}. Lower --vigilance-share; 0 is right for a policy's first round."
        )
    return sorted(whole, key=lambda pair: content_id("vigilance", str(seed), pair.pair["pair_id"]))[:wanted]


def _assigned(pair_ids: Iterable[str], graders: Sequence[str], seed: int) -> dict[str, tuple[str, ...]]:
    """Two graders for every pair: all twosomes in turn, so that each grader gets an equal share of it."""
    shuffled = sorted(pair_ids, key=lambda pair_id: content_id("assign", str(seed), pair_id))
    return dict(zip(shuffled, itertools.cycle(itertools.combinations(graders, 2)), strict=False))
