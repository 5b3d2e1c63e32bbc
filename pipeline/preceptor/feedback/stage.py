"""The stage `feedback`: a served log and events become IMPRESSIONS that an engagement teacher trains on.

Its directory has the layout of a corpus: ``impressions/``, and ``pairs/`` with their texts where those are given.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from preceptor.contracts import (
    ACTIONS,
    IMPRESSIONS,
    PAIRS,
    REJECTS,
    SERVED,
    conform,
    is_sampled,
    parquet_files,
    read_parquet,
    read_table,
    rows_to_table,
    whole_file,
    write_table,
)
from preceptor.errors import InputError, RecipeError, RejectCeilingError
from preceptor.feedback.events import STAGE, Event, event_files, read_events
from preceptor.feedback.files import digest_of, pairs_of, splits_of
from preceptor.feedback.join import JOINED, REASONS, join_part
from preceptor.feedback.propensity import Curve, estimate_curve, read_curve
from preceptor.feedback.table import table_of
from preceptor.record import Record, begin, to_jsonable, write_json

TABLE: Final = "table.md"


@dataclass(frozen=True, kw_only=True)
class FeedbackConfig:
    """What is joined. `propensities` is a CSV file, or None to estimate them; `texts` are PAIRS folders, which may be
    none. An event later than `late_after_s` after its answer is not counted; one up to `clock_skew_s` before it is."""

    served: Path
    events: Path
    propensities: Path | None
    late_after_s: float
    texts: tuple[Path, ...] = ()
    clock_skew_s: float = 5.0
    max_bad_share: float = 0.05

    def __post_init__(self) -> None:
        if not self.late_after_s > 0 or not self.clock_skew_s >= 0:
            raise RecipeError(
                f"late_after_s must be above 0 and clock_skew_s not below, got {self.late_after_s:g} and "
                f"{self.clock_skew_s:g}."
            )
        if not 0 <= self.max_bad_share <= 1:
            raise RecipeError(f"max_bad_share is a share from 0 to 1, got {self.max_bad_share:g}.")


@dataclass(frozen=True, kw_only=True)
class Known:
    """The requests of the log: which file each belongs to, how many times others repeat one, and the log's rate."""

    owner: Mapping[str, int]
    num_repeated: int
    rate: float


def feedback(config: FeedbackConfig, *, out: Path) -> Record:
    """The record of ``impressions/``, ``rejects/`` and, where texts are given, ``pairs/``; table.md counts them.

    Rows in and kept count events. Resumes at the first part of the log that is not joined. InputError where a file is
    missing or wrong, no request is in the log, or propensities can neither be read nor estimated; RejectCeilingError
    where more than `max_bad_share` of the event rows are bad.
    """
    files = parquet_files(config.served)
    run = begin(STAGE, _with_content(config, files), out=out)
    if run.record is not None:
        return run.record
    curve = None if config.propensities is None else read_curve(config.propensities)
    events, rejects = read_events(config.events)
    write_table(rows_to_table(rejects, REJECTS), out / "rejects" / "part-0.parquet", REJECTS)
    _require_few_bad(rejects, len(events), config)
    known = _known(files)
    outcomes = _strangers(events, known)
    outcomes += _join_all(config, files, events, known, out=out)
    curve = curve or estimate_curve(read_table(file, JOINED) for file in _parts(out))
    totals = _write_impressions(out, curve)
    outcomes["joined"] -= totals["events without propensity"]
    outcomes["no propensity at its position"] += totals["events without propensity"]
    texts = _write_pairs(config, out)
    metrics = {
        "events": {reason: outcomes[reason] for reason in REASONS},
        "num_events_without_time": sum(event.at is None for event in events),
        "num_requests": len(known.owner),
        "num_requests_answered_again": known.num_repeated,
        "num_impressions": totals["impressions"],
        "num_rows_without_propensity": totals["rows without propensity"],
        **{f"num_{action}": totals[action] for action in ACTIONS},
        "rate": known.rate,
        "propensity": asdict(curve),
        **texts,
    }
    with whole_file(out / TABLE) as sink:
        sink.write(table_of(metrics, Counter(row["reason"] for row in rejects)).encode())
    shutil.rmtree(out / "work", ignore_errors=True)
    lost = Counter(row["reason"] for row in rejects) + Counter({r: outcomes[r] for r in REASONS if r != "joined"})
    return run.finish(
        num_rows_in=len(events) + len(rejects), num_rows_kept=outcomes["joined"], rejected=lost, metrics=metrics
    )


def _with_content(config: FeedbackConfig, files: Sequence[Path]) -> dict[str, Any]:
    """`config` for a record, with what the files hold in the place of where they are."""
    texts = [file for folder in config.texts for file in parquet_files(folder)]
    given: dict[str, Any] = to_jsonable(config)
    return {
        **given,
        "served": digest_of(files),
        "events": digest_of(event_files(config.events)),
        "texts": digest_of(texts),
        "propensities": "estimated" if config.propensities is None else digest_of([config.propensities]),
    }


def _require_few_bad(rejects: Sequence[Mapping[str, Any]], num_good: int, config: FeedbackConfig) -> None:
    num_rows = len(rejects) + num_good
    if len(rejects) > config.max_bad_share * num_rows:
        first = rejects[0]
        raise RejectCeilingError(
            f"{len(rejects):,} of {num_rows:,} event rows are bad, at most {config.max_bad_share:.0%} may be; "
            f"the first: {first['id']}: {first['reason']}. Mend them, or raise --max-bad-share."
        )


def _known(files: Sequence[Path]) -> Known:
    owner: dict[str, int] = {}
    num_repeated, rate = 0, 0.0
    for number, file in enumerate(files):
        table = read_parquet(file, columns=["request_id", "rate"])
        for request_id in table["request_id"].unique().to_pylist():
            num_repeated += owner.setdefault(request_id, number) != number
        rate = max(rate, pc.max(table["rate"]).as_py() or 0.0)
    if not owner:
        raise InputError(f"{files[0].parent}: the log holds no request. Check --served.")
    return Known(owner=owner, num_repeated=num_repeated, rate=rate)


def _strangers(events: Sequence[Event], known: Known) -> Counter[str]:
    """What becomes of events whose request is not in the log."""
    strange = (event.request_id for event in events if event.request_id not in known.owner)
    # A log whose rate was changed keeps what its highest rate keeps; what even that leaves out was never sampled.
    return Counter("unknown request" if is_sampled(name, known.rate) else "request not sampled" for name in strange)


def _join_all(
    config: FeedbackConfig, files: Sequence[Path], events: Sequence[Event], known: Known, *, out: Path
) -> Counter[str]:
    """What became of the events of known requests, after writing ``work/``; parts found there are not joined again."""
    by_request: dict[str, list[Event]] = {}
    for event in events:
        by_request.setdefault(event.request_id, []).append(event)
    splits = splits_of(config.texts)
    total: Counter[str] = Counter()
    for number, file in enumerate(files):
        part = out / "work" / f"part-{number:06d}.parquet"
        tally = part.with_suffix(".json")
        if not tally.is_file():
            served = conform(read_parquet(file), SERVED, where=file)
            repeated = {name for name in served["request_id"].unique().to_pylist() if known.owner[name] != number}
            rows, outcomes = join_part(
                served.drop_columns(["actions"]).to_pylist(),
                by_request,
                splits=splits,
                late_after_s=config.late_after_s,
                clock_skew_s=config.clock_skew_s,
                skip=frozenset(repeated),
            )
            write_table(rows_to_table(rows, JOINED), part, JOINED)
            write_json(tally, outcomes)
        total += Counter(json.loads(tally.read_text()))
    return total


def _parts(out: Path) -> list[Path]:
    return sorted((out / "work").glob("part-*.parquet"))


def _write_impressions(out: Path, curve: Curve) -> Counter[str]:
    """Counts, after writing a part of ``impressions/`` for each joined one."""
    totals: Counter[str] = Counter()
    last = len(curve.values)
    for file in _parts(out):
        table = read_table(file, JOINED)
        inside = pc.less_equal(table["position"], last)
        kept, left = table.filter(inside), table.filter(pc.invert(inside))
        values = pa.array(curve.values, pa.float32()).take(pc.subtract(kept["position"], 1).combine_chunks())
        impressions = kept.append_column(IMPRESSIONS.field("propensity"), values)
        write_table(impressions.select(IMPRESSIONS.names), out / "impressions" / file.name, IMPRESSIONS)
        totals["impressions"] += kept.num_rows
        totals["rows without propensity"] += left.num_rows
        totals["events without propensity"] += pc.sum(left["num_events"]).as_py() or 0
        for action in ACTIONS:
            totals[action] += pc.sum(kept[action]).as_py() or 0
    return totals


def _write_pairs(config: FeedbackConfig, out: Path) -> dict[str, int]:
    """How many pairs were shown and how many have a text, after writing those to ``pairs/``."""
    shown: set[str] = set()
    for file in sorted((out / "impressions").glob("*.parquet")):
        shown |= set(read_parquet(file, columns=["pair_id"])["pair_id"].unique().to_pylist())
    num_found = 0
    for number, table in enumerate(_chunks(pairs_of(config.texts, shown))):
        write_table(table, out / "pairs" / f"part-{number:06d}.parquet", PAIRS)
        num_found += table.num_rows
    return {"num_pairs": len(shown), "num_pairs_with_text": num_found}


def _chunks(tables: Iterator[pa.Table], *, num_rows: int = 50_000) -> Iterator[pa.Table]:
    """`tables` in parts of about `num_rows` rows."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(one.num_rows for one in held) >= num_rows:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)
