"""The policy room: what it refuses and where, how the overall grade follows, what a judge reads first."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from preceptor.contracts import GOLDEN, OVERALL, SPLITS, content_id, split_of
from preceptor.errors import PolicyError
from preceptor.policy import (
    Finding,
    Policy,
    format_findings,
    lint,
    load_golden,
    load_policy,
    messages,
    prompt_hash,
    show,
)

SHIPPED = Path(__file__).resolve().parents[2] / "policy" / "job_match"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped policy without its golden pairs."""
    return shutil.copytree(SHIPPED, tmp_path / "job_match", ignore=shutil.ignore_patterns("golden"))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(SHIPPED)


def edit(file: Path, old: str, new: str) -> int:
    """Replace `old`, which must stand exactly once; the number of its line."""
    text = file.read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file.name}"
    file.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


def line_of(file: Path, part: str) -> int:
    return next(number for number, line in enumerate(file.read_text().split("\n"), 1) if part in line)


def golden_line(**changes: Any) -> dict[str, Any]:
    """A golden line that breaks no rule, with `changes`."""
    grades = {
        "role": 4,
        "skills": 3,
        "seniority": 4,
        "credentials": 4,
        "industry": 3,
        "place": 4,
        "pay": 3,
        "direction": 3,
        "quality": 4,
        "overall": 4,
    }
    return {
        "query": "welder nights",
        "profile": "Welder, 6 yrs.",
        "document": "Welder, night shift.",
        "slice": "title",
        "split": "train",
        "grades": grades,
        "grader_id": "market-truth",
        "reason": None,
        "policy_version": "2.0.0",
        **changes,
    }


def write_golden(folder: Path, *rows: dict[str, Any] | str) -> Path:
    file = folder / "golden" / "pairs.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def write_precedents(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    file = folder / "precedents.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    change(rows)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(PolicyError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def only(findings: tuple[Finding, ...], part: str) -> Finding:
    (found,) = [finding for finding in findings if part in finding.message]
    return found


def test_shipped_policy_has_no_errors_and_its_warnings_are_gaps_alone() -> None:
    findings = [
        finding
        for finding in lint(SHIPPED)
        if finding.severity == "error" or not re.search("no worked example|not exercised", finding.message)
    ]
    assert findings == [], format_findings(findings)


def test_shipped_precedents_show_every_grade_and_every_capped_dimension(policy: Policy) -> None:
    assert len(policy.precedents) >= 10
    assert {precedent.grades[OVERALL] for precedent in policy.precedents} == {0, 1, 2, 3, 4}
    capped = {
        cap.dimension for cap in policy.rubric.caps for p in policy.precedents if p.grades[cap.dimension] <= cap.at_most
    }
    assert capped == {cap.dimension for cap in policy.rubric.caps}


def test_missing_golden_is_a_warning(folder: Path) -> None:
    finding = only(lint(folder), "no golden pairs yet")
    assert (finding.severity, finding.file) == ("warning", folder / "golden")


@pytest.mark.parametrize("name", ["rubric.toml", "policy.md", "precedents.jsonl"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refused(lambda: load_policy(folder)).startswith(f"{folder / name}: ")


def test_a_file_that_is_not_utf8_names_its_line(folder: Path) -> None:
    (folder / "policy.md").write_bytes(b"# Policy\n\ncaf\xe9\n")
    assert refused(lambda: load_policy(folder)).startswith(f"{folder / 'policy.md'}:3: not UTF-8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('3 = "Most, with small gaps."', '5 = "Most."', "dimension 'skills' has an unknown grade '5'"),
        ('3 = "Most, with small gaps."', '2 = "Again."', "grade 2 is written twice in its table"),
        ('3 = "Most, with small gaps."', "3 = 7", "the anchor for grade 3 must be text, got 7"),
        ('3 = "Most, with small gaps."', '3 = "None of the required skills."', "the same anchor as a lower grade"),
        ('3 = "Most, with small gaps."', '3 = "Most', "not valid TOML"),
        ("weight = 3", "weight = 0", "dimension 'skills': weight must be a number above 0, got 0"),
        ("weight = 3", "wieght = 3", "[[dimension]] has an unknown key 'wieght'"),
        ('name = "skills"', 'name = "role"', "two dimensions are named 'role'"),
        ('name = "skills"', 'name = "overall"', "not 'overall', got 'overall'"),
        ('version = "2.0.0"', 'version = "1.0"', "version must be three numbers such as 1.0.0, got '1.0'"),
        ('"credentials", at_most = 0', '"licences", at_most = 0', "a cap names the unknown dimension 'licences'"),
        ('"seniority", at_most = 0', '"seniority", at_most = 9', "must be a grade, 0 to 4, got 9"),
        ("weighted-mean-half-down-then-caps", "mean", "unknown aggregation rule 'mean'"),
        ("max_tokens = ", "max_tokens = -", "'max_tokens' must be a whole number above 0"),
        (
            '"remote-from-abroad"]',
            '"no-such-case"]',
            "shows the precedent 'no-such-case', which precedents.jsonl lacks",
        ),
    ],
)
def test_a_broken_rubric_is_refused_at_its_line(folder: Path, old: str, new: str, message: str) -> None:
    file = folder / "rubric.toml"
    line = edit(file, old, new)
    findings = [finding for finding in lint(folder) if finding.severity == "error"]
    assert (file, line) in [(finding.file, finding.line) for finding in findings if message in finding.message]
    assert refused(lambda: load_policy(folder)).startswith(f"{file}:")


def test_a_dimension_without_an_anchor_points_at_the_dimension(folder: Path) -> None:
    file = folder / "rubric.toml"
    edit(file, '3 = "Most, with small gaps."', "")
    line = line_of(file, 'name = "skills"') - 1
    assert refused(lambda: load_policy(folder)) == (
        f"{file}:{line}: dimension 'skills' has no anchor for grade 3. Add the line: 3 = \"...\"."
    )


def test_a_rubric_without_tables_is_refused(folder: Path) -> None:
    (folder / "rubric.toml").write_text('name = "x"\nversion = "1.0.0"\nprompt = 3\n')
    messages = {(finding.line, finding.message) for finding in lint(folder)}
    assert {
        (3, "[prompt] must be a table."),
        (None, "rubric.toml has no 'grades'. Add it."),
        (None, "rubric.toml has no 'dimension'. Add it."),
    } <= messages
    refused(lambda: load_policy(folder))


def test_lint_lists_every_error_of_a_rubric(folder: Path) -> None:
    file = folder / "rubric.toml"
    lines = {edit(file, "weight = 3", "weight = -3"), edit(file, 'version = "2.0.0"', 'version = "one"')}
    assert {finding.line for finding in lint(folder)} == lines
    assert "(1 more: preceptor policy lint lists them.)" in refused(lambda: load_policy(folder))


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("Suits a young team.", "says 'young', a protected attribute or proxy"),
        ("word " * 19, "has 19 words; graders remember 18"),
    ],
)
def test_an_anchor_that_wants_a_second_look_is_a_warning(folder: Path, new: str, message: str) -> None:
    line = edit(folder / "rubric.toml", "Most, with small gaps.", new.strip())
    edit(folder / "policy.md", "Most, with small gaps.", new.strip())
    finding = only(lint(folder), message)
    assert (finding.file.name, finding.line, finding.severity) == ("rubric.toml", line, "warning")
    load_policy(folder)


def test_long_prompts_are_a_warning_at_the_limit(folder: Path) -> None:
    line = edit(folder / "rubric.toml", "max_tokens = 1000", "max_tokens = 300")
    finding = only(lint(folder), "prompts longer than max_tokens = 300: role about")
    assert (finding.line, finding.severity) == (line, "warning")


def test_document_and_rubric_must_agree(folder: Path) -> None:
    file = folder / "policy.md"
    row = edit(file, "| 3 | Most, with small gaps. |", "| 3 | Nearly all. |")
    heading = edit(file, "(`pay`)", "(`wages`)")
    edit(file, "- **2.0.0.** ", "- **0.9.0.** ")
    edit(file, "Version 2.0.0.", "Version 0.9.0.")
    findings = lint(folder)
    assert only(findings, "the table's grade 3 differs from rubric.toml").line == row
    assert only(findings, "a section for 'wages'").line == heading
    assert only(findings, "no section for dimension 'pay'").severity == "error"
    assert only(findings, "does not mention version 2.0.0").severity == "warning"


def test_precedents_are_refused_at_their_line(folder: Path) -> None:
    def spoil(rows: list[dict[str, Any]]) -> None:
        rows[1]["grades"]["charm"] = 2
        rows[2]["grades"]["pay"] = 7
        del rows[3]["grades"]["quality"]
        rows[4]["id"] = rows[0]["id"]
        rows[5].update({key: rows[0][key] for key in ("query", "profile", "document")})
        del rows[6]["reason"]
        rows[7]["profile"] = None

    file = write_precedents(folder, spoil)
    findings = lint(folder)
    for line, message in {
        2: "unknown dimension 'charm'",
        3: "unknown grade 7 for 'pay'",
        4: "no grade for 'quality'",
        5: "is taken by line 1",
        6: "the same pair is decided on line 1",
        7: "no 'reason'",
        8: "'profile' must be text, got None",
    }.items():
        finding = only(findings, message)
        assert (finding.file, finding.line, finding.severity) == (file, line, "error")


def test_a_precedent_that_breaks_the_rule_is_an_error(folder: Path) -> None:
    file = write_precedents(folder, lambda rows: rows[2]["grades"].update(overall=3))
    finding = only(lint(folder), "overall is 3, but the aggregation rule gives 0")
    assert (finding.file, finding.line, finding.severity) == (file, 3, "error")


def test_broken_json_names_the_line(folder: Path, policy: Policy) -> None:
    precedents = folder / "precedents.jsonl"
    precedents.write_text(precedents.read_text() + "\n{not json\n")
    line = len(precedents.read_text().splitlines())
    assert refused(lambda: load_policy(folder)).startswith(f"{precedents}:{line}: not valid JSON")
    golden = write_golden(folder, golden_line(), '{"query": "cut sho', "[1]")
    assert refused(lambda: load_golden(golden, policy)).startswith(f"{golden}:2: not valid JSON")
    precedents.unlink()
    shutil.copy(SHIPPED / precedents.name, precedents)
    assert only(lint(folder), "one JSON object, got list").line == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grades": {"role": 7, "overall": 0}}, "unknown grade 7 for 'role'"),
        ({"grades": {"role": True, "overall": 0}}, "unknown grade True for 'role'"),
        ({"grades": {"role": "4", "overall": 0}}, "unknown grade '4' for 'role'"),
        ({"grades": {"charm": 1, "overall": 0}}, "unknown dimension 'charm'"),
        ({"grades": {"role": 1}}, "no grade for 'overall'"),
        ({"grades": [4]}, "'grades' must map dimensions to grades"),
        ({"grades": None}, "'grades' must map dimensions to grades"),
        ({"split": "test"}, "unknown split 'test'. Splits are train, calibration, holdout."),
        ({"query": None}, "'query' must be text, got None"),
        ({"document": " "}, "'document' is empty"),
        ({"profile": "cut \ud83d"}, "'profile' holds half a character"),
        ({"reason": 3}, "'reason' must be text or null, got 3"),
        ({"grader": "kim"}, "unknown key 'grader'"),
    ],
)
def test_a_golden_line_is_refused_at_its_line(
    folder: Path, policy: Policy, changes: dict[str, Any], message: str
) -> None:
    good = [golden_line(document=f"Welder, site {number}.") for number in range(11)]
    file = write_golden(folder, *good, golden_line(**changes))
    assert refused(lambda: load_golden(file.parent, policy)).startswith(f"{file}:12: {message}")
    assert only(lint(folder), message).line == 12


def test_a_golden_line_without_a_key_is_refused(folder: Path, policy: Policy) -> None:
    row = golden_line()
    del row["slice"]
    file = write_golden(folder, row)
    assert refused(lambda: load_golden(file, policy)).startswith(f"{file}:1: no 'slice'")


def test_a_key_written_twice_is_refused(folder: Path, policy: Policy) -> None:
    file = write_golden(folder, json.dumps(golden_line()).replace('"role": 4', '"role": 0, "role": 4'))
    assert "the key 'role' is written twice" in refused(lambda: load_golden(file, policy))


def test_a_golden_query_in_two_splits_is_refused(folder: Path, policy: Policy) -> None:
    file = write_golden(folder, golden_line(), golden_line(document="Other.", split="holdout"))
    message = refused(lambda: load_golden(file, policy))
    assert message.startswith(f"{file}:2: query 'welder nights' is in split holdout, but in train at pairs.jsonl:1")


def test_a_golden_pair_twice_is_refused_across_files(folder: Path, policy: Policy) -> None:
    file = write_golden(folder, golden_line())
    second = file.with_name("second.jsonl")
    second.write_text("\n" + json.dumps(golden_line(reason="again")) + "\n")
    message = refused(lambda: load_golden(file.parent, policy))
    assert message.startswith(f"{second}:2: the same pair stands at pairs.jsonl:1")


def test_no_golden_file_is_refused_when_asked_for(folder: Path, policy: Policy) -> None:
    assert refused(lambda: load_golden(folder / "golden", policy)).startswith(f"{folder / 'golden'}: no golden")


def test_a_golden_overall_that_breaks_the_rule_is_a_lint_error(folder: Path) -> None:
    row = golden_line()
    file = write_golden(folder, row | {"grades": row["grades"] | {"place": 0}})
    finding = only(lint(folder), "overall is 4, but the aggregation rule gives 1")
    assert (finding.file, finding.line, finding.severity) == (file, 1, "error")


def test_a_precedent_that_is_golden_is_a_lint_error_whatever_its_case(folder: Path, policy: Policy) -> None:
    first = policy.precedents[0]
    texts = {"query": first.query.upper(), "profile": first.profile + " ", "document": first.document}
    file = write_golden(folder, golden_line(), golden_line(**texts, grades=dict(first.grades)))
    finding = only(lint(folder), f"golden pair is also precedent '{first.id}' (precedents.jsonl:1)")
    assert (finding.file, finding.line, finding.severity) == (file, 2, "error")


def test_golden_of_another_version_is_a_warning(folder: Path) -> None:
    write_golden(folder, golden_line(), golden_line(document="Other.", policy_version="0.9.0+aaaaaaaa"))
    finding = only(lint(folder), "1 golden pairs, this the first, were graded under another version than 2.0.0")
    assert (finding.line, finding.severity) == (2, "warning")


@pytest.mark.parametrize("split", SPLITS)
def test_golden_in_another_split_than_the_pools_is_a_warning(folder: Path, split: str) -> None:
    write_golden(folder, golden_line(split=split))
    warned = [finding.severity for finding in lint(folder) if "declare another split" in finding.message]
    assert warned == ([] if split == split_of(content_id("welder nights")) else ["warning"])


def test_golden_rows_are_one_per_pair_and_dimension(folder: Path, policy: Policy) -> None:
    partial = golden_line(document="Other.", grades={"overall": 1, "role": 2}, reason="too far", query="")
    table = load_golden(write_golden(folder, golden_line(), partial), policy)
    assert table.schema.equals(GOLDEN)
    assert table.column("dimension").to_pylist() == [*policy.rubric.names, OVERALL, "role", OVERALL]
    last = table.to_pylist()[-1]
    assert (last["grade"], last["reason"], last["query_id"]) == (1, "too far", content_id(""))


def test_aggregate_equals_a_brute_force_of_the_rule(policy: Policy) -> None:
    names = ("role", "skills", "seniority", "credentials", "industry", "place", "pay", "direction", "quality")
    assert policy.rubric.names == names
    drawn = ((0, 1, 2, 3, 4), (1, 4), (0, 1, 4), (0, 1, 3), (0, 1, 4), (0, 1, 4), (0, 1, 3), (0, 1, 4), (0, 1, 4))
    for values in itertools.product(*drawn):
        role, skills, seniority, credentials, industry, place, pay, direction, quality = values
        total = 5 * role + 3 * skills + 2 * (seniority + credentials + place) + industry + pay + direction + quality
        expected = (total + 8) // 18  # the nearest eighteenth, exact halves (9/18) down
        expected = min(expected, role) if role <= 2 else expected
        expected = min(expected, 1) if credentials == 0 or place == 0 else expected
        expected = min(expected, 2) if 0 in (seniority, quality, industry, pay) else expected
        expected = (
            min(expected, 3) if direction == 0 or 1 in (seniority, credentials, place, pay, quality) else expected
        )
        assert policy.rubric.aggregate(dict(zip(names, values, strict=True))) == expected, values


def test_aggregate_holds_for_weights_that_are_no_whole_numbers(policy: Policy) -> None:
    weights = (0.1, 2.5, 1 / 3, 1e-9, 7.0, 0.7, 12.25, 3.3, 0.05)
    dimensions = tuple(
        replace(dimension, weight=weight) for dimension, weight in zip(policy.rubric.dimensions, weights, strict=True)
    )
    rubric = replace(policy.rubric, dimensions=dimensions)
    draw = random.Random(3)
    for _ in range(500):
        grades = {name: draw.randrange(5) for name in rubric.names}
        written = [Fraction(str(weight)) for weight in weights]
        exact = sum(weight * grades[name] for name, weight in zip(rubric.names, written, strict=True))
        rounded = math.ceil(exact / sum(written) - Fraction(1, 2))
        caps = [cap.overall for cap in rubric.caps if grades[cap.dimension] <= cap.at_most]
        assert rubric.aggregate(grades) == min([rounded, *caps]), grades


def test_a_weight_counts_as_it_is_written(policy: Policy) -> None:
    """0.1 + 0.2 against 0.3: a mean of exactly a half, down to 0, where binary fractions would say 1."""
    dimensions = tuple(
        replace(dimension, weight=weight)
        for dimension, weight in zip(policy.rubric.dimensions[:3], (0.1, 0.2, 0.3), strict=True)
    )
    rubric = replace(policy.rubric, dimensions=dimensions, caps=())
    grades = dict(zip(rubric.names, (1, 1, 0), strict=True))
    assert rubric.aggregate(grades) == 0


def test_aggregate_by_hand(policy: Policy) -> None:
    names = policy.rubric.names
    cases = {
        (4, 3, 3, 4, 3, 4, 3, 3, 4): 4,  # 64/18
        (4, 4, 4, 4, 4, 0, 4, 4, 4): 1,  # place caps 64/18
        (4, 3, 3, 4, 1, 4, 4, 3, 4): 3,  # 63/18 is exactly 3.5: down
        (0, 4, 4, 4, 4, 4, 4, 4, 4): 0,
        (4, 4, 0, 4, 4, 4, 4, 4, 4): 2,
        (4, 4, 4, 4, 0, 4, 4, 4, 4): 2,
        (4, 4, 4, 4, 4, 4, 4, 0, 4): 3,
    }
    for values, overall in cases.items():
        assert policy.rubric.aggregate(dict(zip(names, values, strict=True))) == overall


def test_aggregate_ignores_overall_and_needs_every_dimension(policy: Policy) -> None:
    grades = dict.fromkeys(policy.rubric.names, 4)
    assert policy.rubric.aggregate({**grades, OVERALL: 0}) == 4
    del grades["pay"]
    assert "no grade for pay" in refused(lambda: policy.rubric.aggregate(grades))


def test_the_policy_comes_first_and_never_changes(policy: Policy) -> None:
    asked = [
        messages(policy, dimension, query=f"query {number}", profile="a nurse", document="a ward")
        for number, dimension in enumerate((*policy.rubric.names, OVERALL))
    ]
    assert {tuple(message["role"] for message in chat) for chat in asked} == {("system", "user")}
    (prefix,) = {chat[0]["content"] for chat in asked}
    for dimension in policy.rubric.dimensions:
        assert all(anchor in prefix for anchor in (dimension.question, *dimension.anchors))
    shown = [precedent for precedent in policy.precedents if precedent.id in policy.rubric.shown]
    assert shown and all(precedent.document in prefix for precedent in shown)
    for number, (chat, dimension) in enumerate(zip(asked, policy.rubric.dimensions, strict=False)):
        user = chat[1]["content"]
        assert (
            user.index(f"query {number}")
            < user.index("a nurse")
            < user.index("a ward")
            < user.index(dimension.question)
        )
        assert user.endswith("Answer with one digit, 0 to 4.")


def test_an_unknown_dimension_has_no_prompt(policy: Policy) -> None:
    message = refused(lambda: messages(policy, "charm", query="", profile="", document=""))
    assert "unknown dimension 'charm'" in message and "quality" in message


def test_version_and_prompt_hash_follow_what_they_cover(folder: Path, policy: Policy) -> None:
    assert re.fullmatch(r"2\.0\.0\+[0-9a-f]{8}", policy.version)
    assert load_policy(folder).version == policy.version
    write_golden(folder, golden_line())
    assert load_policy(folder).version == policy.version

    edit(folder / "policy.md", "A grade is the highest whose anchor", "The grade is the highest whose anchor")
    reworded = load_policy(folder)
    assert reworded.version != policy.version
    assert prompt_hash(reworded, "role") == prompt_hash(policy, "role")

    edit(folder / "rubric.toml", "Most, with small gaps.", "Most, with minor gaps.")
    changed = load_policy(folder)
    assert len({changed.version, reworded.version, policy.version}) == 3
    stale = {
        name for name in (*policy.rubric.names, OVERALL) if prompt_hash(changed, name) != prompt_hash(policy, name)
    }
    assert stale == {"skills", OVERALL}
    assert len({prompt_hash(policy, name) for name in (*policy.rubric.names, OVERALL)}) == 10


def test_show_tells_dimensions_caps_and_golden(folder: Path) -> None:
    write_golden(folder, golden_line(), golden_line(query="cook", split="holdout"))
    policy = load_policy(folder)
    text = show(policy)
    assert policy.version in text
    assert all(anchor in text for dimension in policy.rubric.dimensions for anchor in dimension.anchors)
    assert "credentials 0: overall at most 1" in text
    assert "golden: 2 pairs (train 1, calibration 0, holdout 1; graded by market-truth 2)" in text


def test_format_findings_counts_and_places(folder: Path) -> None:
    line = edit(folder / "rubric.toml", "weight = 3", "weight = 0")
    text = format_findings(lint(folder))
    assert text.startswith(f"{folder / 'rubric.toml'}:{line}: error: ")
    assert text.endswith("policy lint: 1 errors, 0 warnings")
    assert format_findings(()) == "policy lint: clean"
