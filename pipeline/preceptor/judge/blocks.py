"""A block of pairs, answered whole by one worker: read, asked, retried, and written as parts of the open shard.

The parts of block N of a shard are ``open/SHARD/labels-N.parquet``, ``rejects-N.parquet``, for a hosted teacher
``scores-N.parquet``, and, written last, ``done-N.json``. A worker that dies leaves no done file: the block is computed
again. A block that was there at several deaths is asked pair by pair, and the pair that kills engines is rejected.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from preceptor.contracts import LABELS, REJECTS, TEACHER_SCORES, rows_to_table, write_table
from preceptor.judge.pool import Pool, Shard, read_block
from preceptor.judge.replies import (
    ASK,
    ENGINE_DIED,
    ENGINE_ERROR,
    Answers,
    Grader,
    Judge,
    Reply,
    is_passing,
    label_rows,
    rejected,
    score_rows,
    with_overall,
)
from preceptor.judge.reuse import NOTHING, Asked, Earlier, earlier_labels
from preceptor.judge.tally import Tally, tally_of, tally_rows
from preceptor.policy import Policy
from preceptor.record import write_json

RELEVANCE: Final = "relevance"
MAX_DEATHS: Final = 2
"""A block that was in work at this many deaths of its worker is asked pair by pair."""

_RETRY_WAIT_S: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every block of a stage has in common. It travels to each worker once.

    `run_id` names this run of the driver, so that a block's deaths are counted within one run: a killed driver is no
    fault of the block. Without a `policy` no labels are written: only a teacher's logits are wanted. `prompt_hashes` is
    by dimension; `max_attempts` bounds the tries of a row whose failure may pass.
    """

    stage: str
    judge: Judge
    policy: Policy | None
    prompt_hashes: Mapping[str, str]
    pool: Pool
    out: Path
    run_id: str
    max_attempts: int

    @property
    def kinds(self) -> dict[str, pa.Schema]:
        """The contract of each kind of part a block leaves."""
        kinds = {} if self.policy is None else {"labels": LABELS}
        return {**kinds, **({"scores": TEACHER_SCORES} if self.judge.heads else {}), "rejects": REJECTS}

    def folder(self, shard: Shard) -> Path:
        """Where the parts of `shard` lie while it is open."""
        return self.out / "open" / shard.name

    @property
    def stop_file(self) -> Path:
        """A file that tells the workers to take no further block."""
        return self.out / "open" / "stop"


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """One block to answer."""

    shard: Shard
    block: int


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A worker's word that it works on a block: the deaths before it, and which pairs died alone or are asked alone."""

    run_id: str
    deaths: int = 0
    alone: str | None = None
    poison: tuple[str, ...] = ()


class BlockWorker:
    """Answers blocks in one process, `at_once` of them at a time. The judge is opened when the first needs it."""

    def __init__(self, work: Work, at_once: int) -> None:
        self.work = work
        self._gate = asyncio.Semaphore(at_once)
        self._opening = asyncio.Lock()
        self._grader: Grader | None = None
        self._known: tuple[Shard, Earlier] | None = None

    async def __call__(self, tickets: pa.Table) -> pa.Table:
        """For each ticket (a row of shard, num_shards, block) its tally as JSON; empty where it was told to stop."""
        found = []
        for row in tickets.to_pylist():
            # Ray begins several tickets of a task at once.
            async with self._gate:
                found.append(await self.answer(ticket_of(row)))
        texts = ["" if tally is None else json.dumps(tally.to_json()) for tally in found]
        return tickets.append_column("tally", pa.array(texts, pa.string()))

    async def answer(self, ticket: Ticket) -> Tally | None:
        """The tally of a block, after its parts are written; None where the run is to stop."""
        if self.work.stop_file.exists():
            return None
        done = done_file(self.work, ticket)
        if done.is_file():
            # Ray repeats a task whose result was lost with its worker.
            return tally_of(json.loads(done.read_text()))
        pairs = read_block(self.work.pool.file(ticket.shard), ticket.block)
        known = self._known_of(ticket.shard)
        rows = rows_of(pairs, self.work.judge)
        wanted = set(rows) - known.replies.keys()
        asking = _to_ask(pairs, wanted)
        answers = Answers(replies=())
        if asking.num_rows:
            claim = _claimed(self.work, ticket)
            answers = _complete(await self._ask(asking, ticket, claim), wanted)
        held = [known.replies[row] for row in rows if row in known.replies]
        tally = _write(self.work, ticket, pairs, answers, held)
        claim_file(self.work, ticket).unlink(missing_ok=True)
        return tally

    async def _ask(self, asking: pa.Table, ticket: Ticket, claim: Claim) -> Answers:
        if claim.deaths < MAX_DEATHS:
            return await self._patiently(asking)
        gathered = Answers(replies=())
        for row in range(asking.num_rows):
            pair = asking.slice(row, 1)
            pair_id = pair.column("pair_id")[0].as_py()
            if pair_id in claim.poison:
                names = pair.column(ASK)[0].as_py()
                replies = tuple(
                    rejected(pair_id, name, ENGINE_DIED, raw=f"{MAX_DEATHS + 1} engines", attempt=MAX_DEATHS + 1)
                    for name in names
                )
                gathered = _joined(gathered, Answers(replies=replies))
                continue
            write_json(claim_file(self.work, ticket), asdict(replace(claim, alone=pair_id)))
            gathered = _joined(gathered, await self._patiently(pair))
        return gathered

    async def _patiently(self, asking: pa.Table) -> Answers:
        """Answers to all of `asking`; rows that failed for the moment have been tried `max_attempts` times."""
        grader = await self._opened()
        answers = await grader.grade(asking)
        attempt = 1
        while attempt < self.work.max_attempts:
            failed = {(r.pair_id, r.dimension) for r in answers.replies if _may_be_tried(r, self.work.max_attempts)}
            if not failed:
                break
            await asyncio.sleep(_RETRY_WAIT_S * 2 ** (attempt - 1) * random.random())
            attempt += 1
            again = await grader.grade(_to_ask(asking.drop_columns(ASK), failed))
            kept = tuple(reply for reply in answers.replies if (reply.pair_id, reply.dimension) not in failed)
            retried = tuple(replace(reply, attempt=max(reply.attempt, attempt)) for reply in again.replies)
            answers = _joined(replace(answers, replies=kept), replace(again, replies=retried))
        return answers

    def _known_of(self, shard: Shard) -> Earlier:
        # Blocks come shard by shard: what is known of one is read once.
        if self._known is None or self._known[0] != shard:
            self._known = shard, known_of(self.work, shard)
        return self._known[1]

    async def _opened(self) -> Grader:
        async with self._opening:
            if self._grader is None:
                self._grader = self.work.judge.open()
        return self._grader


def done_file(work: Work, ticket: Ticket) -> Path:
    """The file that makes a block whole; it holds the block's tally."""
    return work.folder(ticket.shard) / f"done-{ticket.block:05d}.json"


def claim_file(work: Work, ticket: Ticket) -> Path:
    """The file that says a worker has begun with the block."""
    return work.folder(ticket.shard) / f"claim-{ticket.block:05d}.json"


def part_file(work: Work, ticket: Ticket, kind: str) -> Path:
    """The block's part of `kind`: labels, rejects or scores."""
    return work.folder(ticket.shard) / f"{kind}-{ticket.block:05d}.parquet"


def known_of(work: Work, shard: Shard) -> Earlier:
    """What earlier versions know of `shard`. A hosted teacher answers with its logits, which no earlier label holds."""
    if work.judge.heads:
        return NOTHING
    return earlier_labels(work.out, shard, judge_id=work.judge.judge_id, prompt_hashes=work.prompt_hashes)


def ticket_of(row: Mapping[str, int]) -> Ticket:
    """The ticket that a row of shard, num_shards and block stands for."""
    return Ticket(shard=Shard(index=row["shard"], num_shards=row["num_shards"]), block=row["block"])


def _may_be_tried(reply: Reply, max_attempts: int) -> bool:
    """Whether a failed row has tries left. A judge that tries by itself counts its own."""
    return reply.reason is not None and is_passing(reply.reason) and reply.attempt < max_attempts


def rows_of(pairs: pa.Table, judge: Judge) -> list[Asked]:
    """Every pair of `pairs` with every dimension of `judge`, in order."""
    return [(pair_id, name) for pair_id in pairs.column("pair_id").to_pylist() for name in judge.dimensions]


def _to_ask(pairs: pa.Table, wanted: set[Asked]) -> pa.Table:
    """The pairs that have a row in `wanted`, with the dimensions to ask of each."""
    names: dict[str, list[str]] = {}
    for pair_id, name in sorted(wanted):
        names.setdefault(pair_id, []).append(name)
    asks = [names.get(pair_id, []) for pair_id in pairs.column("pair_id").to_pylist()]
    return pairs.append_column(ASK, pa.array(asks, type=pa.list_(pa.string()))).filter(pa.array(map(bool, asks)))


def _claimed(work: Work, ticket: Ticket) -> Claim:
    """This worker's claim, after writing it: a claim of the same run that is still there means that its worker died."""
    file = claim_file(work, ticket)
    claim = Claim(run_id=work.run_id)
    if file.is_file():
        found = json.loads(file.read_text())
        before = Claim(**{**found, "poison": tuple(found["poison"])})
        if before.run_id == work.run_id:
            poison = before.poison + ((before.alone,) if before.alone else ())
            claim = Claim(run_id=work.run_id, deaths=before.deaths + 1, poison=poison)
    write_json(file, asdict(claim))
    return claim


def _complete(answers: Answers, wanted: set[Asked]) -> Answers:
    """`answers` with exactly one reply for each row in `wanted`; a row the grader forgot is a reject like any other."""
    found = {(reply.pair_id, reply.dimension): reply for reply in answers.replies}
    forgotten = f"{ENGINE_ERROR}: no answer"
    return replace(answers, replies=tuple(found.get(row) or rejected(*row, forgotten) for row in sorted(wanted)))


def _joined(first: Answers, second: Answers) -> Answers:
    return Answers(
        replies=first.replies + second.replies,
        logits={**first.logits, **second.logits},
        usage=first.usage + second.usage,
    )


def _write(work: Work, ticket: Ticket, pairs: pa.Table, answers: Answers, held: Sequence[Reply]) -> Tally:
    """The block's tally, after writing its parts, the done file last."""
    replies = [*held, *answers.replies]
    policy = work.policy
    labels, rejects = label_rows(
        replies if policy is None else with_overall(policy.rubric, replies),
        stage=work.stage,
        judge_id=work.judge.judge_id,
        policy_version="" if policy is None else policy.version,
        prompt_hashes=work.prompt_hashes,
    )
    rows: dict[str, Sequence[Mapping[str, Any]]] = {"labels": labels, "rejects": rejects}
    if work.judge.heads:
        rows["scores"] = score_rows(answers.logits, teacher=RELEVANCE)
    for kind, schema in work.kinds.items():
        write_table(rows_to_table(rows[kind], schema), part_file(work, ticket, kind), schema)
    tally = tally_rows(
        labels,
        rejects,
        num_pairs=pairs.num_rows,
        asked=Counter(reply.dimension for reply in answers.replies),
        reused=Counter(reply.dimension for reply in held),
        usage=answers.usage,
    )
    write_json(done_file(work, ticket), tally.to_json())
    return tally
