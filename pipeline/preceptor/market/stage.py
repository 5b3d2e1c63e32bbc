"""The corpus stage of the synthetic market: pairs, impressions, golden and truth, streamed through Ray Data.

The unit of work is a chunk of consecutive indices. A chunk is a function of the config and its number alone, and
writes its own files, so that the output is the same bytes however many blocks or workers there are, and a rerun skips
the chunks that were finished.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from preceptor import errors
from preceptor.contracts import GOLDEN, IMPRESSIONS, OVERALL, PAIRS, SPLITS, rows_to_table, write_table
from preceptor.errors import PreceptorError, StageFailed
from preceptor.market import clicks
from preceptor.market.groups import Candidate, Group, generate_pairs, generate_request
from preceptor.record import Record, begin, file_digest, to_jsonable, write_json

if TYPE_CHECKING:
    from preceptor.policy import Policy
    from preceptor.recipe import MarketConfig

CHUNK_QUERIES: Final = 128
CHUNK_REQUESTS: Final = 512
_TASK_CPUS: Final = 0.25
_MAX_BLOCKS: Final = 1000
_OUTCOME: Final = pa.schema([pa.field("error", pa.string()), pa.field("message", pa.string())])


def market(config: MarketConfig, *, policy: Path, out: Path) -> Record:
    """The record of the finished corpus directory `out`, with pairs/, impressions/, golden/ and truth/.

    truth/ holds the constructed grades of the whole pool under the GOLDEN contract: for evaluating labels, never for
    training. Ray must be running. DriftError where `out` is another work's, as after an edit of a golden file;
    StageFailed where a task dies or the disk refuses.
    """
    from preceptor.policy import load_golden, load_policy

    loaded = load_policy(policy)
    # Before `begin`, which may clear what an earlier run left: golden that is refused must cost nothing.
    golden = load_golden(policy / "golden", loaded)
    run = begin("market", work_of(config, policy=policy), out=out, policy_version=loaded.version)
    if run.record is not None:
        return run.record
    for split in SPLITS:  # A file each, so that the holdout's can be sealed from what tunes a judge.
        write_table(golden.filter(pc.equal(golden["split"], split)), out / "golden" / f"{split}.parquet", GOLDEN)
    num_requests = config.num_requests + config.num_holdout_requests
    tally = _stream(partial(pairs_chunk, config=config, policy=loaded, out=out), config.num_queries, CHUNK_QUERIES)
    tally += _stream(partial(requests_chunk, config=config, policy=loaded, out=out), num_requests, CHUNK_REQUESTS)
    num_asked = config.num_queries * config.documents_per_query
    num_pairs = tally["pairs"]
    return run.finish(
        num_rows_in=num_asked,
        num_rows_kept=num_pairs,
        rejected={"duplicate text": num_asked - num_pairs} if num_asked > num_pairs else {},
        metrics=_metrics(tally),
    )


def work_of(config: MarketConfig, *, policy: Path) -> dict[str, Any]:
    """`config` for the record, with a digest of each of the policy's golden files.

    The policy's version leaves golden out: without the digests a corrected grade would never reach the corpus.
    """
    from preceptor.policy import golden_files

    return {**to_jsonable(config), "golden": {f.name: file_digest(f) for f in golden_files(policy / "golden")}}


def pairs_chunk(number: int, *, config: MarketConfig, policy: Policy, out: Path) -> Counter[str]:
    """Counts of chunk `number` of the pool, after writing its pairs and their truth."""
    start = number * CHUNK_QUERIES
    groups = list(generate_pairs(config, policy.rubric, start=start, stop=start + CHUNK_QUERIES))
    items = [item for group in groups for item in group.candidates]
    name = f"part-{number:06d}.parquet"
    write_table(rows_to_table(_truth_rows(items, policy.version), GOLDEN), out / "truth" / name, GOLDEN)
    write_table(rows_to_table((dict(item.pair) for item in items), PAIRS), out / "pairs" / name, PAIRS)
    return _tally_groups(groups)


def requests_chunk(number: int, *, config: MarketConfig, policy: Policy, out: Path) -> Counter[str]:
    """Counts of chunk `number` of the traffic, after writing its impressions."""
    num_requests = config.num_requests + config.num_holdout_requests
    indices = range(number * CHUNK_REQUESTS, min((number + 1) * CHUNK_REQUESTS, num_requests))
    rows = [row for index in indices for row in generate_request(index, config, policy.rubric)]
    write_table(rows_to_table(rows, IMPRESSIONS), out / "impressions" / f"part-{number:06d}.parquet", IMPRESSIONS)
    tally: Counter[str] = Counter()
    for row in rows:
        tally[f"impressions {row['split']}"] += 1
        tally[f"clicks {row['split']}"] += bool(row["click"])
        tally[f"applies {row['split']}"] += bool(row["apply"])
    return tally


def _stream(chunk: partial[Counter[str]], num_items: int, chunk_size: int) -> Counter[str]:
    """The summed counts of all chunks, computed by Ray Data tasks."""
    import ray.data
    from ray.exceptions import RayError

    num_chunks = -(-num_items // chunk_size)
    if num_chunks == 0:
        return Counter()
    blocks = ray.data.range(num_chunks, override_num_blocks=min(num_chunks, _MAX_BLOCKS))
    done = blocks.map_batches(
        partial(_run_chunks, chunk=chunk), batch_size=1, batch_format="pyarrow", num_cpus=_TASK_CPUS
    )
    tally: Counter[str] = Counter()
    try:
        for row in done.iter_rows():
            if row["error"] is not None:
                raise getattr(errors, row["error"])(row["message"])
            tally.update(json.loads(row["message"]))
    except RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise StageFailed(
            f"market: a generating task died ({reason}). Run it again: finished parts are kept."
        ) from error
    return tally


def _run_chunks(batch: pa.Table, *, chunk: partial[Counter[str]]) -> pa.Table:
    """One row for each chunk: its counts as JSON, or the error it raised on purpose.

    Ray loses the cause of an exception on its way to the driver, so it travels as a row.
    """
    rows: list[dict[str, str | None]] = []
    for number in batch["id"].to_pylist():
        try:
            rows.append({"error": None, "message": json.dumps(_finish_once(chunk, number))})
        except PreceptorError as error:
            rows.append({"error": type(error).__name__, "message": str(error)})
    return pa.Table.from_pylist(rows, schema=_OUTCOME)


def _finish_once(chunk: partial[Counter[str]], number: int) -> dict[str, int]:
    """The chunk's counts; read back where an earlier attempt at the same stage finished it."""
    done = chunk.keywords["out"] / "chunks" / f"{chunk.func.__name__}-{number:06d}.json"
    if done.is_file():
        found: dict[str, int] = json.loads(done.read_text())
        return found
    tally = dict(chunk(number))
    write_json(done, tally)
    return tally


def _truth_rows(items: Iterable[Candidate], policy_version: str) -> Iterator[dict[str, object]]:
    for item in items:
        for dimension, value in item.grades.items():
            yield {
                **item.pair,
                "dimension": dimension,
                "grade": value,
                "grader_id": "market-truth",
                "reason": item.reason if dimension == OVERALL else None,
                "policy_version": policy_version,
            }


def _tally_groups(groups: Iterable[Group]) -> Counter[str]:
    tally: Counter[str] = Counter()
    for group in groups:
        tally[f"queries {group.ask.split}"] += 1
        for item in group.candidates:
            tally["pairs"] += 1
            tally[f"pairs {group.ask.split}"] += 1
            tally[f"grade {item.overall}"] += 1
            tally["attractive"] += clicks.shine(item.posting) >= clicks.SHINY
            tally["attractive but unsuitable"] += clicks.shine(item.posting) >= clicks.SHINY and item.overall <= 1
    return tally


def _metrics(tally: Counter[str]) -> dict[str, Any]:
    """Counts, and the rates that say whether the market is worth learning from."""
    impressions = sum(count for name, count in tally.items() if name.startswith("impressions"))
    num_clicks = sum(count for name, count in tally.items() if name.startswith("clicks"))
    applies = sum(count for name, count in tally.items() if name.startswith("applies"))
    return {
        "truth": "constructed by the synthetic market; clicks are simulated",
        "counts": {name: tally[name] for name in sorted(tally)},
        "attractive_but_unsuitable_share": tally["attractive but unsuitable"] / max(tally["pairs"], 1),
        "click_rate": num_clicks / max(impressions, 1),
        "apply_rate": applies / max(impressions, 1),
    }
