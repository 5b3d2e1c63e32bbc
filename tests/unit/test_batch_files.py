"""Batch files both ways: requests out, results in, and every way in which results go wrong."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preceptor.batch import batch_export, batch_import
from preceptor.cli import main
from preceptor.contracts import (
    GOLDEN,
    LABELS,
    OVERALL,
    PAIRS,
    REJECTS,
    make_pair,
    read_table,
    rows_to_table,
    write_table,
)
from preceptor.errors import InputError, JudgeRefused, RecipeError, RejectCeilingError
from preceptor.judge.batch_files import BatchFileGrader, BatchFileJudge, index_results, rows_to_ask_again, sort_rows
from preceptor.judge.batch_requests import Requests, asked_ids, batch_dialect, custom_id, rows_of, write_requests
from preceptor.judge.completions import Prices
from preceptor.judge.endpoint import Endpoint
from preceptor.judge.openai_judge import OpenAIJudge
from preceptor.judge.replies import ASK, EXPIRED, NO_ANSWER, NO_GRADE, UNREADABLE, is_passing
from preceptor.plan import choose, make_plan
from preceptor.policy import load_policy, messages
from preceptor.recipe import POLICY_DIR, JudgeConfig, Recipe
from preceptor.recipes import tiny
from preceptor.record import read_record, write_json
from preceptor.steps import execute

POLICY = load_policy(POLICY_DIR)
ENDPOINT = Endpoint(
    base_url="http://127.0.0.1:9/v1",
    model="m",
    api_key="secret",
    max_concurrency=1,
    timeout_s=1.0,
    max_attempts=3,
    prices=Prices(prompt=2e-6, cached=1e-6, generated=8e-6),
)
ONLINE = OpenAIJudge(endpoint=ENDPOINT, policy=POLICY, dimensions=("role", "pay"))
USED = {"prompt_tokens": 1000, "completion_tokens": 1}
COST = 1000 * 2e-6 + 8e-6

Line = dict[str, Any]


def pool(num: int, *, split: str = "train") -> list[dict[str, str]]:
    return [make_pair(f"{split} {n // 4}", "a welder", f"posting {n}", slice="s", split=split) for n in range(num)]


def table(num: int) -> pa.Table:
    return pa.Table.from_pylist(pool(num))


def exported(out: Path, pairs: pa.Table, judge: OpenAIJudge = ONLINE, **limits: int) -> Requests:
    rows = rows_of(pairs, judge.dimensions)
    return write_requests(judge, rows, out=out, dialect=batch_dialect(top_logprobs=20), **limits)


def read_lines(file: Path) -> list[Line]:
    return [json.loads(line) for line in file.read_text().split("\n") if line]


def write_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def body(content: str = "3", tops: Mapping[str, float] | None = None) -> dict[str, Any]:
    listed = [{"token": token, "logprob": value} for token, value in (tops or {"3": -0.1, "2": -3.0}).items()]
    message = {"role": "assistant", "content": content}
    logprobs = {"content": [{**listed[0], "top_logprobs": listed}]}
    return {"choices": [{"index": 0, "message": message, "logprobs": logprobs}], "usage": USED}


def result(name: str, content: Any = None, *, status: int = 200, number: int = 0) -> Line:
    response = {"status_code": status, "request_id": "r", "body": body() if content is None else content}
    return {"id": f"batch_req_{number}", "custom_id": name, "response": response, "error": None}


def failure(name: str, code: str, *, number: int = 0) -> Line:
    error = {"code": code, "message": "This request could not be executed."}
    return {"id": f"batch_req_{number}", "custom_id": name, "response": None, "error": error}


def grader(*files: Path, online: OpenAIJudge = ONLINE, price_share: float = 1.0) -> BatchFileGrader:
    return BatchFileJudge(online=online, results=files, price_share=price_share).open()


ASKED = asked_ids(ONLINE)


def name_of(pair: Mapping[str, str], dimension: str) -> str:
    return custom_id(pair["pair_id"], dimension, ASKED)


# ---------------------------------------------------------------- requests


def test_a_request_asks_what_the_endpoint_would_be_asked(tmp_path: Path) -> None:
    written = exported(tmp_path / "requests.jsonl", table(3))
    assert (written.files, written.num_requests) == ((tmp_path / "requests.jsonl",), 6)
    lines = read_lines(written.files[0])
    assert [line["custom_id"].split("/")[:2] for line in lines] == [
        [pair["pair_id"], name] for pair in pool(3) for name in ("role", "pay")
    ]
    pair = pool(3)[0]
    assert lines[0]["method"] == "POST" and lines[0]["url"] == "/v1/chat/completions"
    assert lines[0]["body"] == {
        "model": "m",
        "messages": messages(POLICY, "role", query=pair["query"], profile=pair["profile"], document=pair["document"]),
        "max_completion_tokens": 1,
        "temperature": 0.0,
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert all(len(line["custom_id"]) <= 64 for line in lines)
    assert "secret" not in written.files[0].read_text()


def test_only_the_dimensions_that_wait_are_written(tmp_path: Path) -> None:
    pairs = pa.Table.from_pylist([{**pair, ASK: names} for pair, names in zip(pool(2), ([], ["pay"]), strict=True)])
    written = exported(tmp_path / "requests.jsonl", pairs)
    (line,) = read_lines(written.files[0])
    assert line["custom_id"] == name_of(pool(2)[1], "pay")


def test_nothing_to_ask_writes_nothing(tmp_path: Path) -> None:
    assert exported(tmp_path / "requests.jsonl", table(1).slice(0, 0)) == Requests(files=(), num_requests=0)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(num=st.integers(1, 9), max_requests=st.integers(1, 8), max_kib=st.integers(1, 40))
def test_files_keep_both_limits_and_lose_no_line(tmp_path: Path, num: int, max_requests: int, max_kib: int) -> None:
    out = tmp_path / f"{len(list(tmp_path.iterdir()))}" / "requests.jsonl"
    written = exported(out, table(num), max_requests=max_requests, max_bytes=max_kib * 1024)
    parts = [read_lines(file) for file in written.files]
    assert [line["custom_id"] for part in parts for line in part] == [
        name_of(pair, name) for pair in pool(num) for name in ("role", "pay")
    ]
    for file, part in zip(written.files, parts, strict=True):
        assert len(part) <= max_requests
        assert file.stat().st_size <= max_kib * 1024 or len(part) == 1
    assert written.files[0] == out and written.num_requests == 2 * num
    assert [file.name for file in written.files[1:]] == [f"requests-{n}.jsonl" for n in range(2, len(parts) + 1)]


@pytest.mark.parametrize("known", ["requests.jsonl", "requests-2.jsonl"])
def test_an_export_never_mixes_with_an_earlier_one(tmp_path: Path, known: str) -> None:
    (tmp_path / known).touch()
    (tmp_path / "requests-old.jsonl").touch()
    with pytest.raises(InputError, match=known):
        exported(tmp_path / "requests.jsonl", table(1))


# ---------------------------------------------------------------- results


def test_an_answer_is_the_label_that_the_endpoint_online_would_give(tmp_path: Path) -> None:
    requests = read_lines(exported(tmp_path / "requests.jsonl", table(3)).files[0])
    lines = [result(line["custom_id"]) for line in requests]
    random.Random(5).shuffle(lines)
    found = grader(write_lines(tmp_path / "out.jsonl", lines), price_share=0.5)
    assert found.judge.judge_id == ONLINE.judge_id == "openai:m@127.0.0.1:9/v1"
    assert found.judge.workers is None
    assert pickle.loads(pickle.dumps(found.judge)) == found.judge
    answers = asyncio.run(found.grade(table(3)))
    assert [(reply.pair_id, reply.dimension) for reply in answers.replies] == [
        (pair["pair_id"], name) for pair in pool(3) for name in ("role", "pay")
    ]
    for reply in answers.replies:
        assert (reply.reason, reply.attempt) == (None, 1)
        assert reply.label_mass == pytest.approx(math.exp(-0.1) + math.exp(-3.0))
    assert answers.usage.num_prompt_tokens == 6000
    assert answers.usage.cost_usd == pytest.approx(6 * COST / 2)


CASES: dict[str, tuple[Callable[[str], Line], str, bool]] = {
    "expired": (lambda name: failure(name, "batch_expired"), EXPIRED, True),
    "cancelled": (lambda name: failure(name, "batch_cancelled"), "batch error: batch_cancelled", True),
    "nothing": (lambda name: {"custom_id": name, "response": None, "error": None}, "batch error: None", True),
    "odd": (lambda name: {"custom_id": name, "response": "no", "error": ["no"]}, "batch error: None", True),
    "429": (lambda name: result(name, {"error": {"message": "slow down"}}, status=429), "http 429", True),
    "500": (lambda name: result(name, None, status=500), "http 500", True),
    "400": (lambda name: result(name, {"error": {"message": "too long"}}, status=400), "http 400", False),
    "no-choice": (lambda name: result(name, {"choices": [], "usage": USED}), UNREADABLE, True),
    "list": (lambda name: result(name, [1]), UNREADABLE, True),
    "prose": (lambda name: result(name, body("Fine.", {"Fine": -0.1})), NO_GRADE, False),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_answer_is_rejected_with_its_reason(tmp_path: Path, case: str) -> None:
    line, reason, passing = CASES[case]
    (pair,) = pool(1)
    found = grader(write_lines(tmp_path / "out.jsonl", [line(name_of(pair, "role")), result(name_of(pair, "pay"))]))
    role, pay = asyncio.run(found.grade(table(1))).replies
    assert (role.reason, role.probs, role.attempt) == (reason, None, 1)
    assert is_passing(reason) is passing
    assert role.raw is not None
    assert pay.reason is None


def test_a_row_without_a_line_says_so_and_is_tried_again(tmp_path: Path) -> None:
    found = grader(write_lines(tmp_path / "out.jsonl", [result(name_of(pool(1)[0], "pay"))]))
    role, _ = asyncio.run(found.grade(table(1))).replies
    assert role.reason == NO_ANSWER and is_passing(NO_ANSWER)


def test_output_and_error_files_of_all_tries_are_read_together(tmp_path: Path) -> None:
    (pair,) = pool(1)
    role, pay = name_of(pair, "role"), name_of(pair, "pay")
    first = write_lines(tmp_path / "out.jsonl", [result(pay)])
    errors = write_lines(tmp_path / "errors.jsonl", [failure(role, "batch_expired", number=1)])
    again = write_lines(tmp_path / "out2.jsonl", [result(role, {"choices": [], "usage": USED}, number=2)])
    last = write_lines(tmp_path / "out3.jsonl", [result(role, number=3)])
    answers = asyncio.run(grader(first, errors, again, last).grade(table(1)))
    assert [(reply.reason, reply.attempt) for reply in answers.replies] == [(None, 3), (None, 1)]
    assert answers.usage.cost_usd == pytest.approx(3 * COST), "an unreadable answer was billed as well"
    late = asyncio.run(grader(first, errors, again).grade(table(1)))
    assert [(reply.reason, reply.attempt) for reply in late.replies] == [(UNREADABLE, 2), (None, 1)]


def test_a_line_or_file_given_twice_counts_once_and_the_first_good_answer_stays(tmp_path: Path) -> None:
    (pair,) = pool(1)
    role, pay = name_of(pair, "role"), name_of(pair, "pay")
    lines = [result(role), result(role), result(pay), result(pay, body("1", {"1": -0.1}), number=9)]
    file = write_lines(tmp_path / "out.jsonl", lines)
    answers = asyncio.run(grader(file, file, tmp_path / "." / "out.jsonl").grade(table(1)))
    assert [reply.attempt for reply in answers.replies] == [1, 2]
    assert all(reply.probs is not None and reply.probs[3] > 0.9 for reply in answers.replies)
    assert answers.usage.cost_usd == pytest.approx(3 * COST)


def test_answers_to_other_words_or_of_another_model_are_not_taken(tmp_path: Path) -> None:
    lines = [result(name_of(pair, name)) for pair in pool(2) for name in ("role", "pay")]
    file = write_lines(tmp_path / "out.jsonl", lines)
    others = (
        replace(ONLINE, endpoint=replace(ENDPOINT, model="other")),
        replace(ONLINE, endpoint=replace(ENDPOINT, base_url="http://127.0.0.1:10/v1")),
        replace(ONLINE, endpoint=replace(ENDPOINT, rationale_tokens=32)),
    )
    for online in others:
        replies = asyncio.run(grader(file, online=online).grade(table(2))).replies
        assert {reply.reason for reply in replies} == {NO_ANSWER}


def test_reasons_come_back_as_rationales(tmp_path: Path) -> None:
    online = replace(ONLINE, endpoint=replace(ENDPOINT, rationale_tokens=32), dimensions=("role",))
    (line,) = read_lines(exported(tmp_path / "requests.jsonl", table(1), online).files[0])
    assert line["body"]["max_completion_tokens"] > 32
    answer = {"choices": [{"message": {"content": "Same trade.\nGrade: 4"}}]}
    file = write_lines(tmp_path / "out.jsonl", [result(line["custom_id"], answer)])
    (reply,) = asyncio.run(grader(file, online=online).grade(table(1))).replies
    assert (reply.rationale, reply.probs) == ("Same trade.", (0, 0, 0, 0, 1))


# ---------------------------------------------------------------- files that are damaged


def test_a_cut_last_line_is_a_row_without_an_answer(tmp_path: Path) -> None:
    lines = [result(name_of(pair, "role")) for pair in pool(2)]
    file = write_lines(tmp_path / "out.jsonl", lines)
    file.write_bytes(file.read_bytes()[:-40])
    found = grader(file, online=replace(ONLINE, dimensions=("role",)))
    assert found.index.num_unreadable == 1
    assert [reply.reason for reply in asyncio.run(found.grade(table(2))).replies] == [None, NO_ANSWER]


def test_no_newline_blank_lines_and_carriage_returns_do_no_harm(tmp_path: Path) -> None:
    texts = [json.dumps(result(name_of(pair, "role"))) for pair in pool(2)]
    file = tmp_path / "out.jsonl"
    file.write_bytes(("\r\n\r\n" + "\r\n".join(texts)).encode())
    found = grader(file, online=replace(ONLINE, dimensions=("role",)))
    assert found.index.num_unreadable == 0
    assert [reply.reason for reply in asyncio.run(found.grade(table(2))).replies] == [None, None]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damage=st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["cut", "junk", "drop", "twice", "list"])), max_size=6)
)
def test_whatever_is_damaged_every_row_gets_one_reply_and_whole_lines_their_grade(
    tmp_path: Path, damage: list[tuple[int, str]]
) -> None:
    lines = [json.dumps(result(name_of(pair, "role"))).encode() for pair in pool(9)]
    whole = {pair["pair_id"] for pair in pool(9)}
    for row, kind in damage:
        if kind != "twice":
            whole.discard(pool(9)[row]["pair_id"])
        damaged = {"cut": lines[row][:70], "junk": b"\xff{]", "drop": b"", "list": b'["custom_id"]'}
        lines[row] = b"\n".join([lines[row], lines[row]]) if kind == "twice" else damaged[kind]
    file = tmp_path / "out.jsonl"
    good = json.dumps(result("another/row/0")).encode()
    file.write_bytes(b"\n".join([*lines, good]))
    replies = asyncio.run(grader(file, online=replace(ONLINE, dimensions=("role",))).grade(table(9))).replies
    assert [reply.pair_id for reply in replies] == [pair["pair_id"] for pair in pool(9)]
    assert {reply.pair_id for reply in replies if reply.reason is None} == whole
    assert all(reply.reason in (None, NO_ANSWER) for reply in replies)


def test_files_that_are_no_results_are_named(tmp_path: Path) -> None:
    requests = exported(tmp_path / "requests.jsonl", table(1)).files[0]
    with pytest.raises(InputError, match=r"requests\.jsonl:1: a request, not an answer"):
        index_results([requests])
    with pytest.raises(InputError, match="cannot be read"):
        index_results([tmp_path / "nowhere.jsonl"])
    (tmp_path / "prose.jsonl").write_text("hello\nworld\n")
    with pytest.raises(InputError, match="no line of batch results among 2"):
        index_results([tmp_path / "prose.jsonl"])
    (tmp_path / "empty.jsonl").touch()
    assert index_results([tmp_path / "empty.jsonl"]).num_lines == 0


# ---------------------------------------------------------------- asking again


def test_what_another_try_may_cure_is_asked_again_up_to_the_limit(tmp_path: Path) -> None:
    pairs = pool(5)
    online = replace(ONLINE, dimensions=("role",))
    names = [name_of(pair, "role") for pair in pairs]
    lines = [
        result(names[0]),
        failure(names[1], "batch_expired", number=1),
        failure(names[1], "batch_expired", number=2),
        failure(names[2], "batch_expired", number=3),
        result(names[3], {"error": "too long"}, status=400),
    ]
    found = grader(write_lines(tmp_path / "out.jsonl", lines), online=online)
    rows = list(rows_of(table(5), ("role",)))
    again = list(rows_to_ask_again(found, rows, max_attempts=2))
    assert [pair["pair_id"] for pair, _ in again] == [pairs[2]["pair_id"], pairs[4]["pair_id"]]
    sorting = sort_rows(found, rows, max_attempts=2)
    assert sorting.num_graded == 1
    assert sorting.again == Counter({EXPIRED: 1, NO_ANSWER: 1})
    assert sorting.given_up == Counter({EXPIRED: 1, "http 400": 1})
    assert (sorting.num_rows, sorting.num_found) == (5, 4)


# ---------------------------------------------------------------- the commands


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a finished corpus of 12 pairs to label and 8 to calibrate on."""
    corpus = tmp_path / "root" / "corpus" / "v1"
    write_table(rows_to_table(pool(12), PAIRS), corpus / "pairs" / "a.parquet", PAIRS)
    golden = [
        {**pair, "dimension": name, "grade": 3 - n % 2, "grader_id": "t", "reason": None, "policy_version": "v"}
        for n, pair in enumerate(pool(8, split="calibration"))
        for name in ("role", "pay", OVERALL)
    ]
    write_table(rows_to_table(golden, GOLDEN), corpus / "golden" / "a.parquet", GOLDEN)
    record = {"stage": "corpus", "version": "v1", "fingerprint": "c0", "config": {}}
    write_json(corpus / "record.json", record)
    return tmp_path / "root"


def recipe(**changes: Any) -> Recipe:
    judge = JudgeConfig(
        kind="openai",
        model="m",
        base_url="http://127.0.0.1:9/v1",
        floor=-1.0,
        max_reject_share=0.3,
        num_calibration_pairs=8,
        dimensions=("role", "pay"),
        usd_per_million_prompt_tokens=2.0,
        usd_per_million_generated_tokens=8.0,
        max_attempts=2,
    )
    return replace(tiny(), judge=replace(judge, **changes), version="v1")


def answered(requests: Sequence[Line], *, number: int = 0) -> Iterator[Line]:
    for line in requests:
        grade = str(2 + int(line["custom_id"][:4], 16) % 2)
        yield result(line["custom_id"], body(grade, {grade: -0.1, "0": -4.0}), number=number)


def calibrated(root: Path, folder: Path) -> None:
    out = folder / "calibrate.jsonl"
    batch_export(recipe(), root=root, out=out, stage="calibrate", top_logprobs=20)
    results = write_lines(folder / "calibrate-out.jsonl", list(answered(read_lines(out))))
    batch_import(recipe(), root=root, results=[results], retry=None, stage="calibrate", top_logprobs=20)


def test_a_judge_is_calibrated_and_labels_through_files_alone(root: Path, tmp_path: Path) -> None:
    args: dict[str, Any] = {"root": root, "top_logprobs": 20}
    with pytest.raises(InputError, match="'calibrate' is not finished"):
        early = write_lines(tmp_path / "early.jsonl", [result(name_of(pool(1)[0], "role"))])
        batch_import(recipe(), **args, results=[early], retry=None, stage="label")
    calibrated(root, tmp_path)

    out = tmp_path / "requests.jsonl"
    assert "24 requests for openai:m@127.0.0.1:9/v1" in batch_export(recipe(), **args, out=out, stage="label")
    lines = list(answered(read_lines(out)))
    errors = [failure(line["custom_id"], "batch_expired", number=1) for line in lines[:3]]
    first = [write_lines(tmp_path / "out.jsonl", lines[4:]), write_lines(tmp_path / "errors.jsonl", errors)]

    retry = tmp_path / "retry.jsonl"
    told = batch_import(recipe(), **args, results=first, retry=retry, stage="label")
    assert "20 rows graded, 4 to ask again (expired: 3, no answer: 1)" in told
    assert read_record(root / "label" / "v1") is None
    again = read_lines(retry)
    assert [line["custom_id"] for line in again] == [line["custom_id"] for line in lines[:4]]

    second = write_lines(tmp_path / "out2.jsonl", list(answered(again, number=2)))
    told = batch_import(recipe(), **args, results=[*first, second], retry=tmp_path / "more.jsonl", stage="label")
    assert "24 rows graded, 0 to ask again" in told
    record = read_record(root / "label" / "v1")
    assert record is not None
    labels = read_table(record.path / "labels", LABELS).to_pylist()
    assert {(row["pair_id"], row["dimension"]) for row in labels} == {
        (pair["pair_id"], name) for pair in pool(12) for name in ("role", "pay", OVERALL)
    }
    assert {row["judge_id"] for row in labels} == {ONLINE.judge_id}
    hashes = replace(ONLINE, dimensions=("role", "pay")).prompt_hashes
    assert all(row["prompt_hash"] == hashes[row["dimension"]] for row in labels if row["dimension"] != OVERALL)
    assert record.metrics["cost_usd"] == pytest.approx(24 * COST / 2)
    assert record.rejected == {}

    for stage in ("calibrate", "label"):
        (step,) = choose(make_plan(recipe()), only=stage, start=None)
        assert execute(step, {}, root=root, version="v1") == read_record(root / stage / "v1"), "a run goes on from here"

    out.unlink()
    assert "0 requests" in batch_export(recipe(), **args, out=out, stage="label")


def test_without_a_retry_file_rows_without_an_answer_are_rejects(root: Path, tmp_path: Path) -> None:
    calibrated(root, tmp_path)
    args: dict[str, Any] = {"root": root, "stage": "label", "top_logprobs": 20}
    batch_export(recipe(), **args, out=tmp_path / "requests.jsonl")
    lines = list(answered(read_lines(tmp_path / "requests.jsonl")))
    lines[0] = result(lines[0]["custom_id"], {"error": "too long"}, status=400)
    few = write_lines(tmp_path / "few.jsonl", lines[:10])
    with pytest.raises(RejectCeilingError, match=NO_ANSWER):
        batch_import(recipe(), **args, results=[few], retry=None)
    most = write_lines(tmp_path / "most.jsonl", lines[:22])
    assert "3 " not in batch_import(recipe(), **args, results=[most], retry=None).split("graded")[0]
    rejects = read_table(root / "label" / "v1" / "rejects", REJECTS).to_pylist()
    reasons = Counter(row["reason"] for row in rejects)
    assert (reasons["http 400"], reasons[NO_ANSWER]) == (1, 2)


def test_labels_with_reasons_have_their_own_hash_and_keep_the_reasons(root: Path, tmp_path: Path) -> None:
    reasoned = recipe(rationale_tokens=40)
    for stage in ("calibrate", "label"):
        args: dict[str, Any] = {"root": root, "stage": stage, "top_logprobs": 0}
        batch_export(reasoned, **args, out=tmp_path / f"{stage}.jsonl")
        said = {"choices": [{"message": {"content": "Same trade.\nGrade: 3"}}]}
        lines = [result(line["custom_id"], said) for line in read_lines(tmp_path / f"{stage}.jsonl")]
        results = write_lines(tmp_path / f"{stage}-out.jsonl", lines)
        batch_import(reasoned, **args, results=[results], retry=None)
    labels = read_table(root / "label" / "v1" / "labels", LABELS).to_pylist()
    asked = [row for row in labels if row["dimension"] != OVERALL]
    assert {row["judge_id"] for row in labels} == {f"{ONLINE.judge_id}+reasons"}
    assert {row["rationale"] for row in asked} == {"Same trade."}
    assert {row["prompt_hash"] for row in asked}.isdisjoint(ONLINE.prompt_hashes.values())


def test_results_of_another_recipe_are_refused_before_anything_is_written(root: Path, tmp_path: Path) -> None:
    calibrated(root, tmp_path)
    file = write_lines(tmp_path / "out.jsonl", [result("a/role/0"), result("b/role/0")])
    with pytest.raises(InputError, match="none of 2 lines answers"):
        batch_import(recipe(), root=root, results=[file], retry=None, stage="label", top_logprobs=20)
    assert not (root / "label").exists()


def test_a_judge_under_the_floor_labels_through_no_file(root: Path, tmp_path: Path) -> None:
    strict = recipe(floor=0.99)
    args: dict[str, Any] = {"root": root, "top_logprobs": 20}
    for stage in ("calibrate", "label"):
        batch_export(strict, **args, out=tmp_path / f"{stage}.jsonl", stage=stage)
        write_lines(tmp_path / f"{stage}-out.jsonl", list(answered(read_lines(tmp_path / f"{stage}.jsonl"))))
    batch_import(strict, **args, results=[tmp_path / "calibrate-out.jsonl"], retry=None, stage="calibrate")
    with pytest.raises(JudgeRefused):
        batch_import(strict, **args, results=[tmp_path / "label-out.jsonl"], retry=None, stage="label")


def test_batch_files_need_an_endpoint(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match="--judge openai"):
        batch_export(tiny(), root=root, out=tmp_path / "r.jsonl", stage="label", top_logprobs=20)
    arguments = ["--root", str(root), "--judge", "openai", "--base-url", "http://127.0.0.1:9/v1", "--judge-model", "m"]
    out = tmp_path / "requests.jsonl"
    assert main(["batch", "export", "tiny", *arguments, "--out", str(out), "--top-logprobs", "0"]) == 0
    assert f"{12 * len(POLICY.rubric.names)} requests for {ONLINE.judge_id}: {out}" in capsys.readouterr().out
    assert "logprobs" not in read_lines(out)[0]["body"]
    assert main(["batch", "import", "tiny", str(out), *arguments]) == 2
    assert "a request, not an answer" in capsys.readouterr().err
