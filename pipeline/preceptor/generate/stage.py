"""The corpus stage of a user's own postings and profiles: read, screened, without repeats, asked, searched, paired.

``work/`` holds what the steps hand on; it is removed when the stage is finished. Unscreened texts are removed as soon
as they are screened.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from preceptor.contracts import GOLDEN, REJECTS, conform, iter_tables, parquet_files, rows_to_table, write_table
from preceptor.errors import InputError
from preceptor.generate.corpora import Corpus, config_of_content, open_corpus
from preceptor.generate.drafts import draw
from preceptor.generate.duplicates import DuplicateWork
from preceptor.generate.embed import EmbedPart, EmbedWork, encoder_source, gather_vectors
from preceptor.generate.index import IndexWork
from preceptor.generate.mine import MineWork, Shelf, measure_scales
from preceptor.generate.parts import in_parts, once
from preceptor.generate.queries import accept, write_queries
from preceptor.generate.screen import ScreenWork, reject
from preceptor.generate.select import Scale
from preceptor.generate.summary import Counts, num_rows_in, rejected, table_of
from preceptor.generate.texts import TEXTS, Mapped
from preceptor.policy import load_policy
from preceptor.recipe import CorporaConfig
from preceptor.record import Record, begin

PART_ROWS: Final = 2048
"""Texts a part: what a killed run reads, screens or embeds again is at most the parts in flight."""

EMPTY_TEXT: Final = "empty text"


def generate(config: CorporaConfig, *, policy: Path, out: Path) -> Record:
    """The record of the finished corpus directory `out`, with pairs/, candidates/, rejects/, golden/ and table.md.

    candidates/ says why each pair was chosen and which grade its similarity predicts, for comparing with labels later.
    Rows in and kept count texts and queries. Ray must be running. A rerun goes on at the first unfinished part.
    Raises InputError, before anything is computed, where a corpus, a mapped column, the golden rows or the encoder is
    missing or wrong; StageFailed where an actor dies or the disk refuses.
    """
    corpora = _opened(config)
    encoder = encoder_source(config.encoder.source)
    golden = list(iter_tables(config.golden, GOLDEN)) if config.golden is not None else []
    run = begin("generate", config_of_content(config), out=out, policy_version=load_policy(policy).version)
    if run.record is not None:
        return run.record
    for number, table in enumerate(golden):
        write_table(table, out / "golden" / f"part-{number:06d}.parquet", GOLDEN)
    job = _Job(config=config, out=out, names=tuple(corpora), encoder=encoder)
    read = {name: once(job.work, f"read-{name}", partial(_read, job, name, corpus)) for name, corpus in corpora.items()}
    screened = _screen(job, num_rows=sum(found["kept"] for found in read.values()))
    kept = _drop_repeats(job, num_rows=sum(screened.get(f"{name} kept", 0) for name in corpora))
    drafted, queries = _ask(job, golden)
    _embed(job)
    scales = _index(job)
    counts = Counts(
        read=read,
        screened=screened,
        kept=kept,
        drafted=drafted,
        queries=queries,
        scales=scales,
        mined=_mine(job, scales),
    )
    (out / "table.md").write_text(table_of(counts, config))
    reasons = rejected(counts)
    num_in = num_rows_in(counts)
    record = run.finish(
        num_rows_in=num_in,
        num_rows_kept=num_in - sum(reasons.values()),
        rejected=reasons,
        metrics=counts.metrics(config),
    )
    shutil.rmtree(job.work, ignore_errors=True)
    return record


@dataclass(frozen=True, kw_only=True)
class _Job:
    config: CorporaConfig
    out: Path
    names: tuple[str, ...]
    encoder: str

    @property
    def work(self) -> Path:
        """What the steps hand on, and which of them are done."""
        return self.out / "work"

    @property
    def rejects(self) -> Path:
        """REJECTS files, each named by its step."""
        return self.out / "rejects"

    def texts(self) -> dict[str, Mapped]:
        """The texts without repeats, of each corpus."""
        return {name: Mapped(self.texts_file(name)) for name in self.names}

    def texts_file(self, name: str) -> Path:
        """Where the texts of corpus `name` are kept."""
        return self.work / "texts" / f"{name}.arrow"

    def vectors_file(self, name: str) -> Path:
        """Where the vectors of corpus `name`, or of the queries, are kept."""
        return self.work / "vectors" / f"{name}.npy"


def _opened(config: CorporaConfig) -> dict[str, Corpus]:
    files = {"postings": config.postings, "profiles": config.profiles}
    return {name: open_corpus(file) for name, file in files.items() if file is not None}


def _read(job: _Job, name: str, corpus: Corpus) -> Mapping[str, int]:
    """Counts, after writing the corpus as TEXTS parts."""
    num_rows = 0
    empty: list[dict[str, Any]] = []
    for number, rows in enumerate(_chunks(corpus.texts())):
        num_rows += len(rows)
        kept = [row for row in rows if row["text"]]
        empty += [reject(name, row["row"], "read", EMPTY_TEXT, raw=None) for row in rows if not row["text"]]
        table = conform(pa.Table.from_pylist(kept, schema=TEXTS), TEXTS)
        write_table(table, job.work / "read" / name / f"part-{number:06d}.parquet", TEXTS)
    if empty:
        write_table(rows_to_table(empty, REJECTS), job.rejects / f"read-{name}.parquet", REJECTS)
    if num_rows == len(empty):
        raise InputError(f"{corpus.where}: {num_rows} rows and none has text. Check the column mapped to text.")
    return {"in": num_rows, "kept": num_rows - len(empty), f"dropped {EMPTY_TEXT}": len(empty)}


def _chunks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == PART_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _screen(job: _Job, *, num_rows: int) -> Mapping[str, int]:
    """Counts by corpus, after which no unscreened text is left on disk."""
    source = job.work / "read"

    def screened() -> Mapping[str, int]:
        work = ScreenWork(
            parts=tuple((name, file.name) for name in job.names for file in parquet_files(source / name)),
            source=source,
            target=job.work / "screened",
            rejects=job.rejects,
            action=job.config.personal_data,
            regions=job.config.phone_regions,
        )
        return in_parts(
            work,
            len(work.parts),
            num_rows=num_rows,
            out=job.work,
            step="screen",
            num_actors=job.config.num_workers,
        )

    found = once(job.work, "screened", screened)
    shutil.rmtree(source, ignore_errors=True)
    return found


def _drop_repeats(job: _Job, *, num_rows: int) -> Mapping[str, int]:
    work = DuplicateWork(
        corpora=job.names,
        source=job.work / "screened",
        target=job.work / "texts",
        rejects=job.rejects,
        threshold=job.config.near_duplicate,
        seed=job.config.seed,
    )
    found = in_parts(
        work,
        len(job.names),
        num_rows=num_rows,
        out=job.work,
        step="duplicates",
        num_actors=job.config.num_workers,
    )
    shutil.rmtree(job.work / "screened", ignore_errors=True)
    return found


def _ask(job: _Job, golden: list[pa.Table]) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """What was drafted, by origin and style, and what became of it, by style, after writing the accepted queries."""
    file = job.work / "drafts.arrow"
    drafted = once(job.work, "draft", lambda: draw(job.config, job.texts(), file))
    drafts = Mapped(file)
    written = job.work / "written"
    once(job.work, "write", lambda: write_queries(job.config, drafts, written))
    splits = {
        query: split
        for table in golden
        for query, split in zip(table["query_id"].to_pylist(), table["split"].to_pylist(), strict=True)
    }
    found = once(
        job.work,
        "accept",
        lambda: accept(
            job.config,
            drafts,
            written,
            golden_splits=splits,
            file=job.work / "queries.arrow",
            rejects=job.rejects,
        ),
    )
    if not any(name.endswith(" kept") for name in found):
        raise InputError(f"{job.out}: no query could be written: {found}. Map title, place or skills in columns.")
    return drafted, found


def _embed(job: _Job) -> None:
    """Writes the vectors of queries and texts."""
    encoder = job.config.encoder
    files = {"queries": job.work / "queries.arrow", **{name: job.texts_file(name) for name in job.names}}
    folder = job.work / "embeddings"
    parts = tuple(
        EmbedPart(
            file=file,
            column="query" if name == "queries" else "text",
            batch=batch,
            target=folder / name / f"part-{batch:06d}.parquet",
        )
        for name, file in files.items()
        for batch in range(Mapped(file).num_batches)
    )
    in_parts(
        EmbedWork(parts=parts, encoder=job.encoder, precision=encoder.precision),
        len(parts),
        num_rows=sum(Mapped(file).num_rows for file in files.values()),
        out=job.work,
        step="embed",
        num_actors=encoder.num_actors,
        cpus_per_actor=encoder.cpus_per_actor,
        gpus_per_actor=encoder.gpus_per_actor,
    )
    for name, file in files.items():
        work = partial(gather_vectors, folder / name, job.vectors_file(name), num_rows=Mapped(file).num_rows)
        once(job.work, f"vectors-{name}", work)
        shutil.rmtree(folder / name, ignore_errors=True)


def _index(job: _Job) -> Mapping[str, Mapping[str, float]]:
    """The similarity scale of each style, after writing the indexes."""
    work = IndexWork(vectors=tuple(job.vectors_file(name) for name in job.names), seed=job.config.seed)
    num_rows = sum(texts.num_rows for texts in job.texts().values())
    in_parts(work, len(work.vectors), num_rows=num_rows, out=job.work, step="index", num_actors=1)
    with_profiles = job.config.profiles is not None
    return once(
        job.work,
        "scales",
        lambda: measure_scales(Shelf.open(job.work, with_profiles=with_profiles), job.config.seed),
    )


def _mine(job: _Job, scales: Mapping[str, Mapping[str, float]]) -> Mapping[str, int]:
    work = MineWork(
        config=job.config,
        work=job.work,
        out=job.out,
        scales={style: Scale(**found) for style, found in scales.items()},
    )
    queries = Mapped(job.work / "queries.arrow")
    return in_parts(
        work,
        queries.num_batches,
        num_rows=queries.num_rows,
        out=job.work,
        step="mine",
        num_actors=job.config.num_workers,
    )
