"""Events joined to a served log: what becomes of each, what propensities rest on, and what the stage leaves behind."""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preceptor.cli import main
from preceptor.contracts import (
    IMPRESSIONS,
    PAIRS,
    REJECTS,
    SERVED,
    is_sampled,
    make_pair,
    read_table,
    rows_to_table,
    split_of,
    write_table,
)
from preceptor.errors import DriftError, InputError, RecipeError, RejectCeilingError
from preceptor.feedback import FeedbackConfig, feedback
from preceptor.feedback.events import Event, read_events
from preceptor.feedback.join import REASONS, join_part
from preceptor.feedback.propensity import estimate_curve, read_curve
from preceptor.record import read_record
from preceptor.teachers.engagement import click_examples, exposures

NOON = datetime.datetime(2025, 1, 6, 12, tzinfo=datetime.UTC)
CURVE = "position,propensity\n1,1\n2,0.5\n3,0.25\n"


def answer(
    request_id: str, documents: Iterable[str], *, query: str = "nurse", part: int = 0, rate: float = 1.0, at=NOON
) -> list[dict[str, Any]]:
    """SERVED rows of one query, in the order of `documents`, which are also the caller's ids."""
    rows = []
    for position, document in enumerate(documents, start=1):
        pair = make_pair(query, "ward", document, slice="served")
        rows.append(
            {
                **{name: pair[name] for name in ("pair_id", "query_id", "profile_id", "document_id")},
                "request_id": request_id,
                "part": part,
                "served_at": at,
                "document_name": document,
                "position": position,
                "score": 1 / position,
                "expected_grade": 4 / position,
                "actions": {"click": 0.5, "apply": 0.1},
                "rate": rate,
                "bundle_id": "b",
                "policy_version": "p",
            }
        )
    return rows


def event(request_id: str = "r", action: str = "click", **options: Any) -> Event:
    return Event(
        **{
            "request_id": request_id,
            "action": action,
            "document": None,
            "position": None,
            "part": None,
            "at": None,
            **options,
        }
    )


def joined(
    rows: list[dict[str, Any]], events: list[Event], **options: Any
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    by_request: dict[str, list[Event]] = {}
    for one in events:
        by_request.setdefault(one.request_id, []).append(one)
    defaults: dict[str, Any] = {"splits": {}, "late_after_s": 3600, "clock_skew_s": 5, "skip": frozenset()}
    found, outcomes = join_part(rows, by_request, **(defaults | options))
    return found, dict(outcomes)


# What becomes of an event


@pytest.mark.parametrize(
    ("options", "becomes"),
    [
        ({"document": "b"}, "joined"),
        ({"position": 2}, "joined"),
        ({"document": "b", "position": 2}, "joined"),
        ({"document": make_pair("nurse", "ward", "b", slice="")["document_id"]}, "joined"),
        ({"document": "b", "at": NOON + datetime.timedelta(seconds=3600)}, "joined"),
        ({"document": "b", "at": NOON + datetime.timedelta(seconds=3601)}, "late"),
        ({"document": "b", "at": NOON - datetime.timedelta(seconds=5)}, "joined"),
        ({"document": "b", "at": NOON - datetime.timedelta(seconds=6)}, "before it was served"),
        ({"position": 4}, "position out of range"),
        ({"document": "b", "position": 4}, "position out of range"),
        ({"document": "z"}, "unknown document"),
        ({"document": "z", "position": 2}, "unknown document"),
        ({"document": "b", "position": 1}, "document and position disagree"),
        ({"document": "a", "part": 1}, "unknown document"),
    ],
)
def test_an_event_is_joined_or_says_why_not(options: dict[str, Any], becomes: str) -> None:
    rows, outcomes = joined(answer("r", "abc"), [event(**options)])
    assert outcomes == {becomes: 1} and becomes in REASONS
    assert [row["click"] for row in rows] == [False, becomes == "joined", False]


def test_the_same_action_counts_once_and_another_one_too() -> None:
    rows, outcomes = joined(
        answer("r", "ab"), [event(position=1), event(document="a"), event(action="apply", position=1)]
    )
    assert outcomes == {"joined": 2, "duplicate": 1}
    assert [(row["click"], row["apply"], row["num_events"]) for row in rows] == [(True, True, 2), (False, False, 0)]


def test_a_document_of_several_parts_needs_its_part() -> None:
    rows = answer("r", "ab") + answer("r", "ba", query="ward", part=1)
    assert joined(rows, [event(document="a")])[1] == {"document in several places": 1}
    found, outcomes = joined(rows, [event(document="a", part=1)])
    assert outcomes == {"joined": 1}
    assert [(row["request_id"], row["position"]) for row in found if row["click"]] == [("r/1", 2)]


def test_of_a_request_answered_twice_the_first_answer_counts() -> None:
    later = NOON + datetime.timedelta(seconds=9)
    rows, outcomes = joined(answer("r", "ab") + answer("q", "a") + answer("r", "ba", at=later), [event(position=1)])
    assert [row["request_id"] for row in rows] == ["r", "r", "q"] and outcomes == {"joined": 1}
    clicked = next(row for row in rows if row["click"])
    assert clicked["document_id"] == make_pair("", "", "a", slice="")["document_id"]


def test_a_known_split_of_the_query_wins() -> None:
    (row,) = joined(answer("r", "a"), [])[0]
    assert row["split"] == split_of(row["query_id"])
    (row,) = joined(answer("r", "a"), [], splits={row["query_id"]: "calibration"})[0]
    assert row["split"] == "calibration"


# Reading events


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ('{"action": "click", "position": 1}', "request_id is not text"),
        ('{"request_id": "", "action": "click", "position": 1}', "request_id is not text"),
        ('{"request_id": "r", "action": "view", "position": 1}', "action is not click or apply"),
        ('{"request_id": "r", "action": ["click"], "position": 1}', "action is not click or apply"),
        ('{"request_id": "r", "action": "click"}', "no document and no position"),
        ('{"request_id": "r", "action": "click", "document": 7}', "document is not text"),
        ('{"request_id": "r", "action": "click", "position": 0}', "position is not a whole number from 1"),
        ('{"request_id": "r", "action": "click", "position": true}', "position is not a whole number from 1"),
        ('{"request_id": "r", "action": "click", "position": 1.5}', "position is not a whole number from 1"),
        ('{"request_id": "r", "action": "click", "position": 1, "part": -1}', "part is not a whole number from 0"),
        ('{"request_id": "r", "action": "click", "position": 1, "at": "noon"}', "at is not an ISO 8601 time"),
        ('{"request_id": "r", "action": "click", "position": 1, "at": 17}', "at is not an ISO 8601 time"),
        ('{"request_id": "r", "action": "click", "position": 1, "at": "2025-01-06T12:00:00"}', "at has no time zone"),
    ],
)
def test_a_bad_line_is_named_with_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "clicks.jsonl"
    good = '{"request_id": "r", "action": "apply", "position": 3, "at": "2025-01-06T13:00:00+01:00", "more": 1}'
    file.write_text(f"{good}\n\n{line}\n{good}\n")
    events, rejects = read_events(file)
    assert events == [event(action="apply", position=3, at=NOON)] * 2
    assert [(row["id"], row["reason"], row["raw"]) for row in rejects] == [(f"{file}:3", reason, rejects[0]["raw"])]
    rows_to_table(rejects, REJECTS)


def test_parquet_and_json_lines_of_a_folder_are_read_alike(tmp_path: Path) -> None:
    rows = [
        {"request_id": "r", "action": "click", "position": 1, "at": NOON},
        {"request_id": "r", "action": "?", "position": 1, "at": NOON},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text(json.dumps({"request_id": "r", "action": "click", "document": "d"}))
    (tmp_path / ".c.jsonl").write_text("{")
    events, rejects = read_events(tmp_path)
    assert events == [event(position=1, at=NOON), event(document="d")]
    assert [row["id"] for row in rejects] == [f"{tmp_path / 'a.parquet'}: row 2"]


@pytest.mark.parametrize(("drop", "missing"), [("action", "action"), ("position", "document or position")])
def test_a_parquet_file_without_a_column_is_refused(tmp_path: Path, drop: str, missing: str) -> None:
    row = {"request_id": "r", "action": "click", "position": 1}
    pq.write_table(pa.Table.from_pylist([{name: row[name] for name in row if name != drop}]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=f"events need {missing}"):
        read_events(tmp_path)


def test_no_events_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no events"):
        read_events(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_events(tmp_path / "none")


# Propensities


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("position,prob\n1,1\n", r":1: the header must be position,propensity"),
        ("position,propensity\n2,1\n", r":2: column 'position': must be 1, got '2'"),
        ("position,propensity\n1,1\n1,1\n", r":3: column 'position': must be 2"),
        ("position,propensity\n1,0\n", r":2: column 'propensity': must be a number above 0"),
        ("position,propensity\n1,1.1\n", "at most 1, got '1.1'"),
        ("position,propensity\n1,nan\n", "got 'nan'"),
        ("position,propensity\n1\n", "got 'None'"),
        ("position,propensity\n", "no position"),
    ],
)
def test_a_wrong_curve_is_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "curve.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        read_curve(tmp_path / "curve.csv")


def simulated(curve: list[float], *, num_pairs: int, num_shown: int, split: str = "train", seed: int = 3) -> pa.Table:
    """Impressions of pairs whose attraction grows with how high they are mostly shown, so that raw rates mislead."""
    rng = random.Random(seed)
    rows = []
    for number in range(num_pairs):
        home = number % (len(curve) - 1)
        attraction = 0.9 - 0.5 * home / len(curve)
        for shown in range(num_shown):
            position = home + (shown % 4 == 0)
            clicked = rng.random() < curve[position] * attraction
            rows.append({"pair_id": f"p{number}", "position": position + 1, "click": clicked, "split": split})
    return pa.Table.from_pylist(
        rows,
        pa.schema([("pair_id", pa.string()), ("position", pa.int32()), ("click", pa.bool_()), ("split", pa.string())]),
    )


def test_the_estimate_recovers_the_curve_that_made_the_clicks() -> None:
    truth = [1.0, 0.7, 0.5, 0.4]
    found = estimate_curve([simulated(truth, num_pairs=60, num_shown=2000)])
    # With 2,000 clicks on the rarer side a ratio is good to 3 %. Raw rates would say 0.25 for the last.
    assert found.source == "estimated" and found.values == pytest.approx(truth, abs=0.05)
    assert min(found.clicks) > 2000


def test_the_estimate_does_not_look_at_the_holdout_nor_depend_on_parts() -> None:
    train = simulated([1.0, 0.5], num_pairs=20, num_shown=100)
    other = simulated([0.1, 0.9], num_pairs=20, num_shown=100, split="holdout")
    alone = estimate_curve([train])
    assert estimate_curve([train.slice(1000), other, train.slice(0, 1000)]) == alone


def test_the_curve_ends_where_clicks_do() -> None:
    found = estimate_curve([simulated([1.0, 0.6, 0.0], num_pairs=40, num_shown=100)])
    assert len(found.values) == 2


def test_too_few_clicks_are_no_estimate() -> None:
    with pytest.raises(InputError, match=r"cannot be estimated: \d+ clicks .* 50 are needed"):
        estimate_curve([simulated([1.0, 0.5], num_pairs=2, num_shown=10)])
    with pytest.raises(InputError, match="0 clicks"):
        estimate_curve([])


def test_a_ratio_over_one_is_cut_and_counted() -> None:
    found = estimate_curve([simulated([0.4, 0.8], num_pairs=20, num_shown=100)])
    assert found.values == (1.0, 1.0) and found.num_clipped == 1


# The stage


@pytest.fixture
def config(tmp_path: Path) -> FeedbackConfig:
    """Two parts of a log at rate 0.5, events of every kind, a curve of three positions, texts of two documents."""
    kept = [name for name in map(str, range(20)) if is_sampled(name, 0.5)]
    left_out = next(name for name in map(str, range(20)) if not is_sampled(name, 0.5))
    log = tmp_path / "log"
    first = [row for name in kept[:2] for row in answer(name, "abcd", rate=0.5)]
    second = [row for name in kept[2:4] for row in answer(name, "badc", rate=0.5)]
    again = answer(kept[0], "dcba", rate=0.5, at=NOON + datetime.timedelta(days=1))
    write_table(rows_to_table(first, SERVED), log / "a.parquet", SERVED)
    write_table(rows_to_table(second + again, SERVED), log / "b.parquet", SERVED)
    texts = [make_pair("nurse", "ward", name, slice="served", split="train") for name in "ab"]
    write_table(rows_to_table(texts, PAIRS), tmp_path / "texts" / "a.parquet", PAIRS)
    events: list[dict[str, Any]] = [
        {"request_id": kept[0], "action": "click", "document": "a"},
        {"request_id": kept[0], "action": "click", "document": "a"},
        {"request_id": kept[2], "action": "apply", "position": 1},
        {"request_id": kept[3], "action": "click", "position": 4},
        {"request_id": kept[3], "action": "click", "position": 9},
        {"request_id": kept[1], "action": "click", "position": 1, "at": "2025-02-01T00:00:00Z"},
        {"request_id": left_out, "action": "click", "position": 1},
        {"request_id": next(name for name in kept[4:]), "action": "click", "position": 1},
        {"request_id": kept[0], "action": "stare", "position": 1},
    ]
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "e.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in events))
    (tmp_path / "curve.csv").write_text(CURVE)
    return FeedbackConfig(
        served=log,
        events=tmp_path / "events",
        propensities=tmp_path / "curve.csv",
        late_after_s=3600,
        texts=(tmp_path / "texts",),
        max_bad_share=0.2,
    )


def snapshot(folder: Path) -> Mapping[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.parquet"))}


def test_the_stage_writes_impressions_and_says_what_became_of_every_event(
    config: FeedbackConfig, tmp_path: Path
) -> None:
    record = feedback(config, out=tmp_path / "out" / "v1")
    found = {reason: num for reason, num in record.metrics["events"].items() if num}
    assert found == {
        "joined": 2,
        "duplicate": 1,
        "late": 1,
        "position out of range": 1,
        "no propensity at its position": 1,
        "request not sampled": 1,
        "unknown request": 1,
    }
    assert (record.num_rows_in, record.num_rows_kept) == (9, 2)
    assert record.num_rows_in == record.num_rows_kept + sum(record.rejected.values())
    rows = read_table(record.path / "impressions", IMPRESSIONS).to_pylist()
    assert len(rows) == 12 and record.metrics["num_rows_without_propensity"] == 4
    assert {(row["position"], row["propensity"]) for row in rows} == {(1, 1.0), (2, 0.5), (3, 0.25)}
    assert [(row["click"], row["apply"]) for row in rows].count((True, False)) == 1
    assert sum(row["apply"] for row in rows) == 1 and {row["split"] for row in rows} == {"train"}
    assert record.metrics["num_requests"] == 4 and record.metrics["num_requests_answered_again"] == 1
    assert record.metrics["propensity"]["source"] == "file"
    (bad,) = read_table(record.path / "rejects", REJECTS).to_pylist()
    assert bad["id"].endswith("e.jsonl:9")
    table = (record.path / "table.md").read_text()
    assert "| request not sampled | 1 | 11.1% |" in table and "Propensities were given in a file." in table
    assert not (record.path / "work").exists()


def test_the_engagement_teacher_reads_what_the_stage_wrote(config: FeedbackConfig, tmp_path: Path) -> None:
    record = feedback(config, out=tmp_path / "out" / "v1")
    shown = list(exposures(record))
    examples = {(row["pair_id"], row["head"]): row for row in click_examples(shown)}
    first = make_pair("nurse", "ward", "a", slice="")["pair_id"]
    # Shown twice at position 1 and twice at 2, clicked once: 1 / (1 + 1 + 0.5 + 0.5).
    assert examples[first, "click"]["target"] == [pytest.approx(1 / 3)]
    texts = {row["pair_id"] for row in read_table(record.path / "pairs", PAIRS).to_pylist()}
    assert len(texts) == record.metrics["num_pairs_with_text"] == 2 and texts <= {row["pair_id"] for row in shown}


def test_a_rerun_is_skipped_and_other_events_are_drift(config: FeedbackConfig, tmp_path: Path) -> None:
    out = tmp_path / "out" / "v1"
    first = feedback(config, out=out)
    assert feedback(config, out=out).finished_at == first.finished_at
    # The same files elsewhere are the same work.
    config.served.rename(tmp_path / "moved")
    assert feedback(replace(config, served=tmp_path / "moved"), out=out).finished_at == first.finished_at
    (config.events / "f.jsonl").write_text('{"request_id": "r", "action": "click", "position": 1}\n')
    with pytest.raises(DriftError, match="events"):
        feedback(replace(config, served=tmp_path / "moved"), out=out)


def test_a_run_that_was_cut_short_goes_on_and_ends_the_same(config: FeedbackConfig, tmp_path: Path) -> None:
    whole = feedback(config, out=tmp_path / "whole" / "v1")
    out = tmp_path / "cut" / "v1"
    second = config.served / "b.parquet"
    content = second.read_bytes()
    estimated = replace(config, propensities=None)
    with pytest.raises(InputError, match="cannot be estimated"):
        feedback(estimated, out=out)
    assert read_record(out) is None and not (out / "impressions").exists()
    times = {file: file.stat().st_mtime_ns for file in (out / "work").iterdir()}
    (out / "work" / "part-000001.json").unlink()
    with pytest.raises(InputError, match="cannot be estimated"):
        feedback(estimated, out=out)
    again = {file for file in (out / "work").iterdir() if file.stat().st_mtime_ns == times[file]}
    assert {file.name for file in again} == {"part-000000.parquet", "part-000000.json"}
    # Under another config nothing of it is taken over.
    assert feedback(config, out=out).metrics == whole.metrics and second.read_bytes() == content
    assert snapshot(out) == snapshot(whole.path)


def test_the_stage_estimates_propensities_from_its_own_log(tmp_path: Path) -> None:
    query = next(name for name in map(str, range(9)) if make_pair(name, "", "", slice="")["split"] == "train")
    # Two rankers that differ in one place; the top is clicked always, the second place every other time.
    rows = [row for n in range(200) for row in answer(f"r{n}", ("ab", "ba")[n % 2], query=query)]
    clicked = [(n, position) for n in range(200) for position in (1, 2) if position == 1 or n % 4 < 2]
    write_table(rows_to_table(rows, SERVED), tmp_path / "log" / "a.parquet", SERVED)
    lines = [json.dumps({"request_id": f"r{n}", "action": "click", "position": position}) for n, position in clicked]
    (tmp_path / "e.jsonl").write_text("\n".join(lines))
    config = FeedbackConfig(served=tmp_path / "log", events=tmp_path / "e.jsonl", propensities=None, late_after_s=1)
    record = feedback(config, out=tmp_path / "out" / "v1")
    assert record.metrics["propensity"] == {
        "source": "estimated",
        "values": (1.0, pytest.approx(0.5)),
        "clicks": (100, 100),
        "num_clipped": 0,
    }
    shown = read_table(record.path / "impressions", IMPRESSIONS)
    assert {(row["position"], row["propensity"]) for row in shown.to_pylist()} == {(1, 1.0), (2, 0.5)}
    assert "Propensities were estimated" in (record.path / "table.md").read_text()
    assert record.config["propensities"] == "estimated"


def test_too_many_bad_rows_end_the_stage(config: FeedbackConfig, tmp_path: Path) -> None:
    with pytest.raises(RejectCeilingError, match=r"1 of 9 event rows are bad.*e\.jsonl:9: action is not"):
        feedback(replace(config, max_bad_share=0.1), out=tmp_path / "out" / "v1")
    assert read_record(tmp_path / "out" / "v1") is None


def test_a_damaged_part_of_the_log_is_named(config: FeedbackConfig, tmp_path: Path) -> None:
    file = config.served / "b.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"b\.parquet: not readable as Parquet"):
        feedback(config, out=tmp_path / "out" / "v1")


def test_hidden_files_of_the_log_are_not_parts_of_it(config: FeedbackConfig, tmp_path: Path) -> None:
    (config.served / ".c.parquet.partial").write_bytes(b"half")
    assert feedback(config, out=tmp_path / "out" / "v1").metrics["num_requests"] == 4


def test_the_command_joins_and_prints_the_table(
    config: FeedbackConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["feedback", "join", "--served", config.served, "--events", config.events, "--late-after-s", 3600]
    asked += ["--propensities", config.propensities, "--root", tmp_path / "live", "--max-bad-share", 0.2]
    assert main([str(word) for word in asked]) == 0
    printed = capsys.readouterr().out
    assert "| duplicate | 1 |" in printed and "feedback: 2 of 9 events, 12 impressions" in printed
    assert main([str(word) for word in [*asked[:8], "--propensities", "none.csv", "--root", tmp_path]]) == 2
    assert "none.csv: not readable" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"), [({"late_after_s": 0}, "late_after_s"), ({"max_bad_share": 2}, "max_bad")]
)
def test_wrong_limits_are_refused(config: FeedbackConfig, change: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        replace(config, **change)
