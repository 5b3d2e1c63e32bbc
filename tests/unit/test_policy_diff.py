"""What a change of policy means: for its version, its prompts, and what was made under the policy before."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preceptor.cli import main
from preceptor.contracts import LABELS, OVERALL, rows_to_table, write_table
from preceptor.judge.host import StoredJudge
from preceptor.policy import REASONED_ANSWER, Policy, PolicyDiff, diff, load_policy, prompt_hash, staleness
from preceptor.policy.diff import declared_bump
from preceptor.record import begin
from tests.unit.policy_room import DOCUMENT, PRECEDENTS, RUBRIC, write_policy

PROSE = ("Both at 3 make a 3:", "Where both are 3, so is the whole:")


def changed(tmp_path: Path, *edits: tuple[str, str], precedents: Any = PRECEDENTS) -> tuple[Policy, Policy]:
    """The small policy, and the same after `edits`, each of which must fit the rubric or the document."""
    rubric, document = RUBRIC, DOCUMENT
    for old, new in edits:
        assert old in rubric + document
        rubric, document = rubric.replace(old, new), document.replace(old, new)
    before = load_policy(write_policy(tmp_path / "before"))
    return before, load_policy(
        write_policy(tmp_path / "after", rubric=rubric, document=document, precedents=precedents)
    )


def said(change: PolicyDiff) -> set[tuple[str, str, str, str]]:
    return {(item.kind, item.subject, item.what, item.bump) for item in change.changes}


def test_nothing_changed_asks_for_nothing(tmp_path: Path) -> None:
    change = diff(*changed(tmp_path))
    assert (change.changes, change.prompts, change.stale, change.required) == ((), (), frozenset(), "none")
    assert change.is_declared_enough


THIRD = """
[[dimension]]
name = "length"
title = "Length"
question = "Is it short enough?"
weight = 1
[dimension.anchors]
0 = "A shelf."
1 = "A tome."
2 = "A book."
3 = "A booklet."
4 = "A page."
"""


@pytest.mark.parametrize(
    ("old", "new", "change", "prompts", "stale"),
    [
        (
            "Mostly about it.",
            "Chiefly about it.",
            ("dimension", "subject", "anchor 3: 'Mostly about it.' -> 'Chiefly about it.'", "minor"),
            {"subject", OVERALL},
            {"subject", OVERALL},
        ),
        (
            'question = "Can the reader read it?"',
            'question = "Does the reader read it?"',
            ("dimension", "language", "question: 'Can the reader read it?' -> 'Does the reader read it?'", "minor"),
            {"language", OVERALL},
            {"language", OVERALL},
        ),
        ("weight = 1", "weight = 2", ("aggregation", "language", "weight 1 -> 2", "major"), set(), {OVERALL}),
        (
            '  { dimension = "language", at_most = 0, overall = 1 },\n',
            "",
            ("aggregation", "language", "cap removed: language at most 0 makes overall at most 1", "major"),
            set(),
            {OVERALL},
        ),
        (
            '"Grade the book for the reader."',
            '"Grade the book."',
            ("prompt", OVERALL, "instructions: 'Grade the book for the reader.' -> 'Grade the book.'", "minor"),
            {"subject", "language", OVERALL},
            {"subject", "language", OVERALL},
        ),
        (
            'precedents = ["wrong-language"]',
            "precedents = []",
            ("prompt", OVERALL, "shown precedents: wrong-language -> none", "minor"),
            {"subject", "language", OVERALL},
            {"subject", "language", OVERALL},
        ),
        (
            "Does this book suit this reader?",
            "Does it suit?",
            ("prompt", OVERALL, "question: 'Does this book suit this reader?' -> 'Does it suit?'", "minor"),
            {OVERALL},
            {OVERALL},
        ),
        (*PROSE, ("wording", "policy.md: How the overall grade follows", "reworded", "patch"), set(), set()),
        ("# Loans", "# Lending", ("wording", "policy.md: Lending", "added", "patch"), set(), set()),
        (
            "C-002 Honey for cooks",
            "C-002 Honey for chefs",
            ("wording", "policy.md: C-002", "reworded", "patch"),
            set(),
            set(),
        ),
        (
            "max_tokens = 900",
            "max_tokens = 950",
            ("setting", "rubric.toml", "max_tokens: '900' -> '950'", "patch"),
            set(),
            set(),
        ),
        (
            'graders = ["kim", "lee"]',
            'graders = ["kim"]',
            ("setting", "rubric.toml", "graders: 'kim, lee' -> 'kim'", "patch"),
            set(),
            set(),
        ),
        (
            "Grades: subject 3, language 4, overall 3",
            "Grades: subject 4, language 4, overall 4",
            ("case", "C-002", "regraded: subject 3 -> 4, overall 3 -> 4", "minor"),
            set(),
            set(),
        ),
        (
            'title = "Language"',
            'title = "Tongue"',
            ("wording", "language", "title: 'Language' -> 'Tongue'", "patch"),
            set(),
            set(),
        ),
    ],
    ids=lambda value: value[2][:40] if isinstance(value, tuple) else "",
)
def test_each_change_says_what_it_means(
    tmp_path: Path, old: str, new: str, change: tuple[str, ...], prompts: set[str], stale: set[str]
) -> None:
    found = diff(*changed(tmp_path, (old, new)))
    assert change in said(found)
    assert found.required == change[3]
    assert (set(found.prompts), found.stale) == (prompts, stale)
    assert not found.is_declared_enough


def test_a_comment_in_the_rubric_still_asks_for_a_patch(tmp_path: Path) -> None:
    change = diff(*changed(tmp_path, ("[aggregation]", "# How.\n[aggregation]")))
    assert [(item.kind, item.bump) for item in change.changes] == [("wording", "patch")]
    assert change.stale == frozenset()


def test_a_new_dimension_is_major_and_leaves_the_others_their_labels(tmp_path: Path) -> None:
    graded = [
        {**row, "grades": {**row["grades"], "length": 4, "overall": 0 if row["id"] == "tax-law" else 3}}
        for row in PRECEDENTS
    ]
    before, after = changed(tmp_path, ('4 = "Mother tongue."\n', f'4 = "Mother tongue."\n{THIRD}'), precedents=graded)
    change = diff(before, after)
    assert ("dimension", "length", "added", "major") in said(change)
    assert (change.prompts, change.stale) == (("length", OVERALL), {OVERALL})
    back = diff(after, before)
    assert ("dimension", "length", "removed", "major") in said(back)
    assert back.stale == {"length", OVERALL}


@pytest.mark.parametrize(
    ("index", "edits", "what", "bump"),
    [
        (0, {"reason": "It is in Finnish."}, "reworded: reason (shown to the judge)", "minor"),
        (1, {"reason": "Another field."}, "reworded: reason", "patch"),
        (1, {"grades": {"subject": 0, "language": 3, "overall": 0}}, "regraded: language 4 -> 3", "minor"),
        (1, {"id": "tax-forms"}, "removed", "patch"),
    ],
)
def test_precedents_count_by_whether_a_judge_reads_them(
    tmp_path: Path, index: int, edits: dict[str, Any], what: str, bump: str
) -> None:
    rows = [{**row, **edits} if number == index else row for number, row in enumerate(PRECEDENTS)]
    change = diff(*changed(tmp_path, precedents=rows))
    assert ("precedent", PRECEDENTS[index]["id"], what, bump) in said(change)
    assert change.required == bump
    assert bool(change.prompts) == (index == 0)


@pytest.mark.parametrize(
    ("before", "after", "declared"),
    [
        ("1.2.0", "1.2.0", "none"),
        ("1.2.0", "1.2.1", "patch"),
        ("1.2.9", "1.3.0", "minor"),
        ("1.9.9", "2.0.0", "major"),
        ("1.2.0", "1.10.0", "minor"),
        ("1.2.0", "1.1.9", None),
        ("2.0.0", "1.9.9", None),
    ],
)
def test_the_declared_rise_is_read_off_the_versions(before: str, after: str, declared: str | None) -> None:
    assert declared_bump(before, after) == declared


@pytest.mark.parametrize(
    ("version", "enough"),
    [("1.2.0", False), ("1.2.1", False), ("1.3.0", True), ("2.0.0", True), ("1.1.0", False)],
)
def test_the_command_fails_where_the_version_rose_too_little(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str, enough: bool
) -> None:
    changed(tmp_path, ("Mostly about it.", "Chiefly about it."), ("1.2.0", version))
    arguments = ["policy", "diff", str(tmp_path / "before"), str(tmp_path / "after")]
    assert main(arguments) == (0 if enough else 1)
    out = capsys.readouterr().out
    assert ("error: version: 1.2.0 -> " in out) is not enough
    assert "ask for a minor one" in out
    assert "  subject: anchor 3: 'Mostly about it.' -> 'Chiefly about it.' [minor]" in out
    assert main([*arguments, "--json"]) == (0 if enough else 1)
    read = json.loads(capsys.readouterr().out)
    assert (read["version"]["required"], read["version"]["enough"]) == ("minor", enough)
    assert read["prompts"] == ["subject", OVERALL]


def test_what_is_the_same_of_many_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = "".join(f"#### C-1{n:02} A case\n\nGrades: subject 4, language 4, overall 4\n\n" for n in range(9))
    changed(tmp_path, ("## Changelog", f"{many}## Changelog"), ("1.2.0", "1.2.1"))
    assert main(["policy", "diff", str(tmp_path / "before"), str(tmp_path / "after")]) == 0
    line = "  C-100; C-101; C-102; C-103; C-104; C-105 and 3 more (--json has all): added [patch]"
    assert line in capsys.readouterr().out.splitlines()


# Revisions of git


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that runs git in a repository of its own, which is the working directory."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> None:
        author = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *author, *arguments], check=True, capture_output=True)

    run("init", "-q")
    return run


def test_a_revision_is_compared_without_checking_it_out(
    git: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_policy(tmp_path / "policy" / "loans")
    git("add", ".")
    git("commit", "-qm", "first")
    before = load_policy(folder)
    write_policy(
        folder,
        rubric=RUBRIC.replace("weight = 1", "weight = 2").replace("1.2.0", "2.0.0"),
        document=f"{DOCUMENT}\n2.0.0\n",
    )
    assert main(["policy", "diff", "HEAD:policy/loans", str(folder), "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert (read["before"], read["after"]) == (before.version, load_policy(folder).version)
    assert sorted({item["kind"] for item in read["changes"]}) == ["aggregation", "wording"]
    git("commit", "-qam", "second")
    assert main(["policy", "diff", "HEAD~1:policy/loans/", "HEAD:policy/loans"]) == 0


def test_a_broken_or_missing_revision_is_one_line(
    git: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_policy(tmp_path / "loans", rubric=RUBRIC.replace("weight = 1", "weight = -1"))
    git("add", ".")
    git("commit", "-qm", "broken")
    write_policy(folder)
    line = RUBRIC[: RUBRIC.index("weight = 1")].count("\n") + 1
    for place, message in {
        "HEAD:loans": f"PolicyError: HEAD:loans/rubric.toml:{line}: dimension 'language': weight must be",
        "HEAD:elsewhere": "PolicyError: HEAD:elsewhere/rubric.toml: no such file at that revision",
        "no-such-tag:loans": "PolicyError: no-such-tag:loans/rubric.toml: no such file at that revision",
        "nowhere": "PolicyError: nowhere/rubric.toml: a policy needs this file and it is missing",
    }.items():
        assert main(["policy", "diff", place, str(folder)]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"preceptor: {message}") and captured.err.count("\n") == 1
        assert captured.out == ""


# What is stale


def write_labels(stage: Path, name: str, rows: list[tuple[str, str, str]]) -> None:
    """One part of LABELS; `rows` are (dimension, prompt hash, policy version)."""
    table = rows_to_table(
        (
            {
                "pair_id": f"{name}{number}",
                "dimension": dimension,
                "grade": 3,
                "probs": [0.0, 0.0, 0.0, 1.0, 0.0],
                "label_mass": 1.0,
                "rationale": None,
                "judge_id": "j",
                "policy_version": version,
                "prompt_hash": said,
            }
            for number, (dimension, said, version) in enumerate(rows)
        ),
        LABELS,
    )
    write_table(table, stage / "labels" / f"part-{name}.parquet", LABELS)


def test_labels_are_stale_by_what_their_prompt_said(tmp_path: Path) -> None:
    before, after = changed(tmp_path, ("Mostly about it.", "Chiefly about it."), ("1.2.0", "1.3.0"))
    change = diff(before, after)

    def asked(policy: Policy, name: str, **way: str) -> tuple[str, str, str]:
        return name, prompt_hash(policy, name, **way), policy.version

    root = tmp_path / "runs"
    write_labels(
        root / "label" / "v1",
        "0-8",
        [
            *[asked(before, "subject")] * 5,
            *[asked(before, "language")] * 5,
            *[(OVERALL, "", before.version)] * 5,
            asked(before, "subject", asking=REASONED_ANSWER),
            asked(before, "subject", asking=StoredJudge.asking),
            ("subject", "0123456789abcdef", "0.9.0+00000000"),
            (OVERALL, "", "0.9.0+00000000"),
        ],
    )
    write_labels(
        root / "label" / "v1",
        "8-f",
        [asked(before, "subject"), ("subject", "", before.version), ("language", "", before.version)],
    )
    write_labels(root / "label" / "v2", "0-f", [*[asked(after, "subject")] * 3, (OVERALL, "", after.version)])
    found = {(item.place, item.dimension): item.by_state for item in staleness(root, before, after, change).labels}
    assert found == {
        ("label/v1", "subject"): {"stale": 9, "holds": 0, "other": 1},
        ("label/v1", "language"): {"stale": 0, "holds": 6, "other": 0},
        ("label/v1", OVERALL): {"stale": 5, "holds": 0, "other": 1},
        ("label/v2", "subject"): {"stale": 0, "holds": 3, "other": 0},
        ("label/v2", OVERALL): {"stale": 0, "holds": 1, "other": 0},
    }


def write_model(root: Path, stage: str, version: str | None, **metrics: Any) -> None:
    begin(stage, {"version": version}, out=root / stage / f"v{version}"[:4], policy_version=version).finish(
        metrics=metrics
    )


def test_models_are_stale_by_their_policy_and_their_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = changed(tmp_path, ("Mostly about it.", "Chiefly about it."), ("1.2.0", "1.3.0"))
    root = tmp_path / "runs"
    for stage in ("relevance_teacher", "distill", "export"):
        heads = {"heads": [OVERALL, "subject", "language"]} if stage == "relevance_teacher" else {}
        for version in (before.version, after.version, "0.9.0+00000000"):
            write_model(root, stage, version, **heads)
    write_model(root, "engagement_teacher", None, heads=["click"])
    models = staleness(root, before, after, diff(before, after)).models
    expected: list[tuple[str, str, tuple[str, ...]]] = [
        (kind, state, ()) for kind in ("teacher", "student", "bundle") for state in ("holds", "other")
    ]
    expected += [("teacher", "stale", (OVERALL, "subject"))]
    expected += [(kind, "stale", (OVERALL,)) for kind in ("student", "bundle")]
    assert sorted((model.kind, model.state, model.stale_heads) for model in models) == sorted(expected)
    arguments = ["policy", "diff", str(tmp_path / "before"), str(tmp_path / "after"), "--root", str(root)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "  bundles: 1 of 3 (export/v1.2: overall), 1 made under another policy" in out
    assert "  teachers: 1 of 3 (relevance_teacher/v1.2: overall, subject), 1 made under another policy" in out


def test_wording_alone_makes_nothing_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = changed(tmp_path, PROSE, ("1.2.0", "1.2.1"))
    root = tmp_path / "runs"
    write_model(root, "relevance_teacher", before.version, heads=[OVERALL])
    write_labels(
        root / "label" / "v1",
        "0-f",
        [("subject", prompt_hash(before, "subject"), before.version), (OVERALL, "", before.version)],
    )
    found = staleness(root, before, after, diff(before, after))
    assert [count.by_state["stale"] for count in found.labels] == [0, 0]
    assert [model.state for model in found.models] == ["holds"]
    assert main(["policy", "diff", str(before.path), str(after.path), "--root", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such directory" in capsys.readouterr().err
