"""What `preceptor plan` prints: the figures of several pool sizes side by side, and what they were reckoned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from preceptor import capacity
from preceptor.capacity import Endpoint, Labeller, Sizing

Cell = Callable[[Sizing], str]


def render(sizings: Sequence[Sizing], endpoint: Endpoint, *, labeller: Labeller) -> str:
    """A Markdown table with a column for each sizing, closed by the values that all of them share.

    The endpoint's rows are left out for a hosted teacher, which no endpoint has.
    """
    rows = [*_WORK, *_GPUS, *(_endpoint_rows(endpoint) if labeller == "judge" else ()), *_STORED, *_RISK]
    header = ["", *(f"{_count(sizing.num_pairs)} pairs" for sizing in sizings)]
    lines = [_line(header), _line(["---"] + ["---:"] * len(sizings))]
    lines += [_line([name, *(cell(sizing) for sizing in sizings)]) for name, cell in rows]
    return "\n".join([*lines, "", _reckoned_from(sizings[0], endpoint, labeller)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _count(value: float) -> str:
    """`value` in full below a million, in four digits of its unit above."""
    for unit, size in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if value >= size:
            return f"{value / size:,.4g} {unit}"
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:,.3g} {unit}"
    return f"{value:,.3g} B"


def _hours(value: float) -> str:
    return f"{value:,.0f} h" if value >= 100 else f"{value:,.2g} h"


def _usd(value: float) -> str:
    return f"${value:,.0f}" if value >= 10 else f"${value:,.2f}"


def _share(part: float, whole: float) -> str:
    return f"{_count(part)} ({100 * part / whole:.1f} %)" if whole else _count(part)


_WORK: Final[tuple[tuple[str, Cell], ...]] = (
    ("rows (pairs x dimensions)", lambda s: _count(capacity.num_rows(s))),
    ("prompts", lambda s: _count(capacity.num_prompts(s))),
    ("prompt tokens asked", lambda s: _count(capacity.asked_tokens(s))),
    ("of these computed", lambda s: _share(capacity.computed_tokens(s), capacity.asked_tokens(s))),
)
_GPUS: Final[tuple[tuple[str, Cell], ...]] = (
    ("rows/s of one replica", lambda s: _count(capacity.rows_per_second(s))),
    ("wall time", lambda s: _hours(capacity.wall_hours(s))),
    ("GPU hours", lambda s: _count(capacity.gpu_hours(s))),
    ("GPU cost", lambda s: _usd(capacity.cost_usd(s))),
    ("replicas to keep the deadline", lambda s: _count(capacity.replicas_for_deadline(s))),
)
_STORED: Final[tuple[tuple[str, Cell], ...]] = (
    ("shards", lambda s: _count(capacity.num_shards(s.num_pairs))),
    ("pairs a shard", lambda s: _count(capacity.pairs_per_shard(s))),
    ("blocks", lambda s: _count(capacity.num_blocks(s))),
    ("files when finished", lambda s: _count(capacity.num_files(s))),
    ("open parts, at most", lambda s: _count(capacity.num_open_parts(s))),
    ("pool", lambda s: _bytes(capacity.pool_bytes(s))),
    ("labels", lambda s: _bytes(capacity.label_bytes(s))),
    ("rejects, at most", lambda s: _bytes(capacity.reject_bytes(s))),
    ("object store, a pair", lambda s: _bytes(capacity.traffic_bytes_per_pair(s))),
    ("object store, in all", lambda s: _bytes(capacity.traffic_bytes(s))),
    ("driver's memory above its libraries", lambda s: _bytes(capacity.driver_bytes(s))),
)
_RISK: Final[tuple[tuple[str, Cell], ...]] = (
    ("rows asked again when a replica is killed, at most", lambda s: _count(capacity.rows_lost(s))),
    ("its time until they are in again, at most", lambda s: f"{capacity.seconds_lost(s):,.0f} s"),
)


def _endpoint_rows(endpoint: Endpoint) -> tuple[tuple[str, Cell], ...]:
    return (
        ("by an endpoint: time under its limits", lambda s: _hours(capacity.endpoint_hours(s, endpoint))),
        ("by an endpoint: cost", lambda s: _usd(capacity.endpoint_usd(s, endpoint))),
    )


def _reckoned_from(s: Sizing, endpoint: Endpoint, labeller: Labeller) -> str:
    said = [
        _prompts_of(s) if labeller == "judge" else f"pairs of {s.pair_tokens:,} tokens, every dimension in one pass",
        f"{s.num_replicas:,} replicas of {s.gpus_per_replica:,} GPUs at {s.prompt_tokens_per_s:,.0f} prompt tokens/s "
        f"each, ${s.usd_per_gpu_hour:g} a GPU hour, {s.engine_start_s:g} s to start an engine, a deadline of "
        f"{s.deadline_hours:g} h",
        f"blocks of {s.pairs_per_block:,} pairs, {s.blocks_in_flight:,} in flight a replica",
    ]
    if labeller == "judge":
        said.append(
            f"an endpoint at ${endpoint.usd_per_million_prompt_tokens:g} and "
            f"${endpoint.usd_per_million_generated_tokens:g} a million tokens read and written, "
            f"{_count(endpoint.tokens_per_minute)} tokens and {_count(endpoint.requests_per_minute)} requests a minute"
        )
    return "Reckoned from " + ";\n".join(said) + "."


def _prompts_of(s: Sizing) -> str:
    cache = f"a measured cached share of {s.cached_share:g}" if s.cached_share is not None else "ideal prefix caching"
    if s.cached_share is None and s.evicted_share:
        cache = f"{s.evicted_share:g} of the prompts finding nothing in the prefix cache"
    decoded = f"; answers at {s.generated_tokens_per_s:,.0f} tokens/s a replica" if s.generated_tokens > 1 else ""
    return (
        f"policy {s.policy_tokens:,}, pair {s.pair_tokens:,}, question {s.question_tokens:,}, answer "
        f"{s.generated_tokens:,} tokens; {cache}{decoded}"
    )
