"""Running a plan: the Ray cluster it needs, its steps one by one, and the report at the end, whatever the end is."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from preceptor.contracts import GATE_REPORT, read_table
from preceptor.errors import DriftError, InputError, JudgeRefused, PreceptorError, RecipeError
from preceptor.local_ray import ray_cluster
from preceptor.plan import make_plan
from preceptor.recipe import CorporaConfig, HeadlinesConfig, JobmatchConfig, MarketConfig, Recipe
from preceptor.record import Record, read_record, write_json
from preceptor.steps import Step, base_record, execute, gather, status

if TYPE_CHECKING:
    from preceptor.judge.watch import Watch


@contextmanager
def watching(*, host: str, port: int | None) -> Iterator[Watch | None]:
    """What stages count their rows in, scraped at http://host:port/metrics while the body runs; None without a port."""
    if port is None:
        yield None
        return
    from preceptor.judge.watch import Watch, served

    watch = Watch()
    with served(watch, host=host, port=port) as url:
        say(f"metrics at {url}")
        yield watch


def run_steps(recipe: Recipe, steps: Sequence[Step], *, root: Path, serve: bool = False) -> dict[str, Record]:
    """The record of each step, and a report of the plan's finished steps in ``{root}/report.html``.

    With `serve` the report also shows three pairs that the exported bundle scored over HTTP. The report is written even
    where a step fails; the failure is raised after it. Ray starts only where something is to be done.
    """
    records: dict[str, Record] = {}
    try:
        with ExitStack() as cluster:
            if any(status(step, root=root, version=recipe.version) != "done" for step in steps):
                cluster.enter_context(ray_cluster())
            _run_all(recipe, steps, records, root)
            if serve:
                serve_examples(recipe, root=root)
    except PreceptorError:
        # What failed is what the user must read; a report that fails as well must not take its place.
        with suppress(PreceptorError):
            _report_finished(recipe, records, root)
        raise
    _report_finished(recipe, records, root)
    return records


def _report_finished(recipe: Recipe, records: Mapping[str, Record], root: Path) -> None:
    finished = finished_records(recipe, root=root) | dict(records)
    if finished:
        report(recipe, finished, root=root)


def _run_all(recipe: Recipe, steps: Sequence[Step], records: dict[str, Record], root: Path) -> None:
    for number, step in enumerate(steps, start=1):
        label = f"[{number}/{len(steps)}] {step.name}"
        before = status(step, root=root, version=recipe.version)
        if base_record(step, records, root=root, version=recipe.version, base=recipe.base) is not None:
            before = "based"
        if before not in ("done", "based"):
            say(f"{label}: {step.rows}{' (resumed)' if before == 'resume' else ''}")
        started_s = time.monotonic()
        record = execute(step, records, root=root, version=recipe.version, base=recipe.base)
        if before == "based":
            say(f"{label}: finished in {recipe.base}")
        elif before == "done":
            say(f"{label}: finished before, {record.cost.get('wall_s', 0):.1f} s")
        else:
            say(f"{label}: done in {time.monotonic() - started_s:.1f} s{_outcome(step, record)}")
        if step.name == "zeroshot":
            _show_refusal(recipe, record)


def _outcome(step: Step, record: Record) -> str:
    if step.name in ("zeroshot", "calibrate"):
        metrics = record.metrics
        return f", kappa {metrics['kappa']:.3f} [{metrics['kappa_low']:.3f}, {metrics['kappa_high']:.3f}]"
    if record.rejected:
        return f", kept {record.num_rows_kept:,} of {record.num_rows_in:,}, rejected {dict(record.rejected)}"
    return f", {record.num_rows_kept:,} rows"


def _show_refusal(recipe: Recipe, calibration: Record) -> None:
    """Say whether the zero-shot judge may label. Where it may not, the tuned teacher has to earn it."""
    from preceptor.judge.judges import open_judge
    from preceptor.judge.label import require_calibrated
    from preceptor.policy import load_policy

    assert recipe.judge is not None
    policy = load_policy(recipe.policy)
    try:
        require_calibrated(open_judge(recipe.judge, policy, teacher=None, model=None), calibration, policy)
    except JudgeRefused as refused:
        say(f"labelling refused: {refused}")


def dry_run(recipe: Recipe, steps: Sequence[Step], *, root: Path) -> str:
    """The plan in words: each step's inputs and rows, and whether it would be skipped, resumed or run."""
    lines = [f"recipe {recipe.name}, version {recipe.version}, root {root}"]
    width = max(len(step.name) for step in steps)
    for number, (step, expected) in enumerate(forecast(recipe, steps, root=root).items(), start=1):
        needs = ", ".join(step.needs) or "nothing"
        lines.append(f"{number:>3}  {step.name:<{width}}  {expected:<14}  {step.rows}; needs {needs}")
    lines.append("nothing was run")
    return "\n".join(lines)


def forecast(recipe: Recipe, steps: Sequence[Step], *, root: Path) -> dict[Step, str]:
    """What a run would do with each step: run, resume, skip, or refuse it as drift. Nothing is run."""
    records: dict[str, Record] = {}
    found: dict[Step, str] = {}
    for step in steps:
        before = {other.name: doing for other, doing in found.items() if other.name in step.needs}
        cause = next((name for name, doing in before.items() if doing.startswith("drift")), None)
        waits = any(not doing.startswith("skip") for doing in before.values())
        found[step] = _expected(recipe, step, records, root=root, cause=cause, waits=waits)
    return found


def _expected(
    recipe: Recipe, step: Step, records: dict[str, Record], *, root: Path, cause: str | None, waits: bool
) -> str:
    """What a run would do with the step. A finished stage does no work: it answers with its record or a DriftError."""
    where: dict[str, Any] = {"root": root, "version": recipe.version, "base": recipe.base}
    now = status(step, **where)
    if now in ("run", "resume") or (now == "based" and waits):  # what is to be made first cannot be compared with
        return "resume" if now == "resume" else "run"
    if cause is not None:  # its record is of what was finished as other work, and of no use
        return f"drift: {cause}"
    try:
        gather(step, records, **where)
        if now == "based":
            record = base_record(step, records, **where)
            if record is None:
                return "run"
            records[step.name] = record
            return f"skip: {recipe.base}"
        execute(step, records, **where)
    except DriftError as drift:
        return f"drift: {drift}\n      "
    except PreceptorError:
        return "run"
    return "skip: finished"


def label_dry_run(recipe: Recipe, *, root: Path) -> str:
    """How many (pair, dimension) rows the stage `label` would ask anew, take over and ask again, in words.

    Raises RecipeError where no judge is asked, InputError where the corpus is not there yet.
    """
    if recipe.judge is None or recipe.labeller != "judge":
        raise RecipeError(
            f"recipe {recipe.name} asks no judge for its labels: its teacher's stored scores give them. "
            "Add --judge openai, or use a recipe whose labeller is 'judge'."
        )
    from preceptor.judge.judges import open_judge
    from preceptor.judge.label import label_forecast
    from preceptor.policy import load_policy

    corpus = read_record(root / "corpus" / recipe.version)
    if corpus is None:
        raise InputError(
            f"{root / 'corpus' / recipe.version}: no finished corpus. Run `preceptor run RECIPE --only corpus` first."
        )
    judge = open_judge(recipe.judge, load_policy(recipe.policy), teacher=None, model=None)
    out = root / "label" / recipe.version
    found = label_forecast(judge, policy=recipe.policy, corpus=corpus, out=out)
    return (
        f"{out}, judge {judge.judge_id}: {found.num_new:,} rows new, {found.num_reused:,} reused, "
        f"{found.num_stale:,} stale and asked again; nothing was asked"
    )


def finished_records(recipe: Recipe, *, root: Path) -> dict[str, Record]:
    """The records of the plan's finished steps, in its order."""
    found = {step.name: read_record(root / step.name / recipe.version) for step in make_plan(recipe)}
    return {name: record for name, record in found.items() if record is not None}


def report(recipe: Recipe, records: Mapping[str, Record], *, root: Path) -> Path:
    """The report's file, after writing it and printing its headline table."""
    from rich.console import Console
    from rich.markdown import Markdown

    from preceptor.evaluation.agreement_sheets import terminal_sheets
    from preceptor.evaluation.report import summary_table, write_report

    gate, plots = None, None
    if "gate" in records:
        gate = read_table(records["gate"].path / "gate.parquet", GATE_REPORT)
        plots = json.loads((records["gate"].path / "plots.json").read_text())
    served = root / "served" / recipe.version / "examples.json"
    file = write_report(
        root / "report.html",
        title=f"Preceptor: {recipe.name}",
        records=records,
        gate=gate,
        plots=plots,
        notes=notes(recipe),
        examples=json.loads(served.read_text()) if served.is_file() else [],
    )
    console = Console(file=sys.stderr)
    console.print(summary_table(records, gate))
    for sheet in terminal_sheets(records):
        say(f"\n{sheet.text()}")
    for record in records.values():
        if (table := record.path / "table.md").is_file():
            console.print(Markdown(table.read_text()))
    return file


def notes(recipe: Recipe) -> tuple[str, ...]:
    """What a reader must know about where the data comes from."""
    if isinstance(recipe.source, MarketConfig):
        return (
            "Postings, profiles, queries, grades and clicks come from a synthetic job market. "
            "The truth is constructed by its rules; no person graded anything.",
        )
    if isinstance(recipe.source, JobmatchConfig):
        return (
            "Occupations, postings and relevance judgements are real (O*NET, ESCO and their crosswalk; unlisted pairs "
            "count as grade 0, which is an assumption). Profiles are assembled from occupation descriptions.",
            "Impressions and clicks are simulated by a click model over the real texts: constructed, not human.",
        )
    if isinstance(recipe.source, CorporaConfig):
        writer = recipe.source.writer
        return (
            "Postings and profiles are the user's own. "
            f"Queries are synthetic, written by {'rule templates' if writer is None else writer.model}.",
            "Pairs were chosen by grades predicted from similarity: guesses, not judgements.",
        )
    assert isinstance(recipe.source, HeadlinesConfig)
    return ("Headlines, impressions and clicks are real and were randomised (Upworthy Research Archive).",)


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


def serve_examples(recipe: Recipe, *, root: Path) -> list[dict[str, Any]]:
    """Three example pairs scored over HTTP by the exported bundle behind a real Ray Serve, printed and kept.

    A bundle that was asked before is not asked again: the line then says so, and the scores come from ``served/``.
    """
    export = read_record(root / "export" / recipe.version)
    if export is None:
        raise PreceptorError(f"{root}: no exported bundle to serve. Run the whole recipe first.")
    file = root / "served" / recipe.version / "examples.json"
    if file.is_file():
        known = json.loads(file.read_text())
        if known and known[0].get("bundle_id") == export.metrics["bundle_id"]:
            _say_served(known, "served before")
            return list(known)
    with ray_cluster():
        rows = _ask_server(export.path / "bundle")
    write_json(file, rows)
    _say_served(rows, "served over HTTP")
    return rows


def _say_served(rows: Sequence[Mapping[str, Any]], how: str) -> None:
    for row in rows:
        say(f"{how}: score {row['score']:.3f}  {row['document'][:70]}")


_EXAMPLE: Final = {
    "query": "staff nurse manchester",
    "profile": "Registered nurse, 5 yrs on medical wards. Manchester. NMC pin held. Looking for a permanent day post.",
    "documents": [
        "Staff Nurse, medical ward, Manchester. Permanent, full time. NMC registration required. £31-35k.",
        "Healthcare assistant for a care home in Manchester. No licence needed, part time, nights.",
        "AMAZING earnings! Work from anywhere as a crypto sales closer. No experience, start today!!!",
    ],
}


def _ask_server(bundle: Path) -> list[dict[str, Any]]:
    import httpx
    from ray import serve

    from preceptor_serve.start import run_app

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        url = run_app(bundle, port=free_port(), block=False)
        answer = httpx.post(f"{url}/v1/score", json=_EXAMPLE, timeout=60.0)
        answer.raise_for_status()
        body = answer.json()
    finally:
        serve.shutdown()
    return [
        {
            "query": _EXAMPLE["query"],
            "document": _EXAMPLE["documents"][item["index"]],
            "score": item["score"],
            "expected_grade": item["expected_grade"],
            **{f"P({action})": prob for action, prob in item["actions"].items()},
            "bundle_id": body["bundle_id"],
            "policy_version": body["policy_version"],
        }
        for item in body["results"]
    ]


def free_port() -> int:
    """A TCP port that was free on the loopback interface a moment ago."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
