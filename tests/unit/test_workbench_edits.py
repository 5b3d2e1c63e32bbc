"""Decisions as changes of files: the smallest that carry them out, all of them or none."""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path

import pytest

from preceptor.errors import PolicyError
from preceptor.policy import lint, load_policy
from preceptor.recipe import POLICY_DIR
from preceptor.workbench import writes
from preceptor.workbench.edits import (
    amend_anchor,
    amend_row,
    append_line,
    declare_grader,
    declared_graders,
    drop_line,
    edit_line,
    show_precedent,
    toml_text,
)
from preceptor.workbench.json_spans import value_spans, with_values
from preceptor.workbench.writes import JOURNAL, locked, new_errors, read_exact, recover, write_all

RUBRIC = (POLICY_DIR / "rubric.toml").read_text()
DOCUMENT = (POLICY_DIR / "policy.md").read_text()
DIMENSIONS = [item["name"] for item in tomllib.loads(RUBRIC)["dimension"]]


def changed(before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("grade", [0, 4])
def test_an_amended_anchor_changes_one_line_of_each_file(dimension: str, grade: int) -> None:
    anchor = 'Says "quoted" and \\ plainly, £5.'
    edited = amend_anchor(RUBRIC, dimension=dimension, grade=grade, anchor=anchor)
    assert len(changed(RUBRIC, edited)) == 2
    (found,) = [item for item in tomllib.loads(edited)["dimension"] if item["name"] == dimension]
    assert found["anchors"][str(grade)] == anchor
    row = amend_row(DOCUMENT, dimension=dimension, grade=grade, anchor=anchor)
    assert [line[:4] for line in changed(DOCUMENT, row)] == [f"-| {grade}", f"+| {grade}"]


@pytest.mark.parametrize(
    "written",
    [
        "2 = 'Old.' # why",
        '"2"   =   "Old."',
        '2 = """Old."""',
        "2 = '''\nOld.'''",
    ],
)
def test_an_anchor_is_found_however_it_is_quoted(written: str) -> None:
    text = '# kept\n[[dimension]]\nname = "a"\n[dimension.anchors]\n2 = "not this"\n\n[[dimension]]\nname = "b"\n'
    text += f"[dimension.anchors]\n1 = 'x'\n{written}\n# kept too\n"
    edited = amend_anchor(text, dimension="b", grade=2, anchor="New.")
    assert tomllib.loads(edited)["dimension"][1]["anchors"] == {"1": "x", "2": "New."}
    assert edited.startswith(text.partition(written)[0])
    assert edited.endswith("# kept too\n")
    assert ("# why" in edited) == ("# why" in written)


def test_an_anchor_that_is_no_text_is_left_to_a_person() -> None:
    text = '[[dimension]]\nname = "b"\n[dimension.anchors]\n2 = ["a", "b"]\n'
    with pytest.raises(PolicyError, match=r"rubric.toml:4: .* not a quoted text. Edit it by hand"):
        amend_anchor(text, dimension="b", grade=2, anchor="New.")


def test_a_document_without_the_row_is_left_to_a_person() -> None:
    with pytest.raises(PolicyError, match="has 0 table rows for grade 2"):
        amend_row("### B (`b`)\n\nNo table.\n", dimension="b", grade=2, anchor="New.")


def test_line_endings_stay_as_they_are() -> None:
    edited = amend_row(DOCUMENT.replace("\n", "\r\n"), dimension=DIMENSIONS[0], grade=1, anchor="New.")
    assert edited.count("\r\n") == edited.count("\n") == DOCUMENT.count("\n")
    assert append_line('{"a": 1}\r\n', {"b": 2}) == '{"a": 1}\r\n{"b": 2}\r\n'
    assert append_line('{"a": 1}', {"b": 2}) == '{"a": 1}\n{"b": 2}\n'


def test_a_grader_is_declared_beside_the_others() -> None:
    text = 'name = "x"\n\n[golden]\n# Whose grades count.\ngraders = ["market-truth"]\n\n[prompt]\nprecedents = []\n'
    edited = declare_grader(text, 'Ana "A" Ortiz')
    assert declared_graders(edited) == ("market-truth", 'Ana "A" Ortiz')
    assert changed(text, edited) == ['-graders = ["market-truth"]', '+graders = ["market-truth", "Ana \\"A\\" Ortiz"]']
    assert declared_graders('name = "x"\n') == ()


@pytest.mark.parametrize(
    ("written", "edited"),
    [
        ("precedents = []", 'precedents = ["new"]'),
        ('precedents = ["a"] # ] kept', 'precedents = ["a", "new"] # ] kept'),
        (
            'precedents = [\n  "a]", # first ]\n  "b", # last\n]',
            'precedents = [\n  "a]", # first ]\n  "b", "new", # last\n]',
        ),
    ],
)
def test_a_shown_precedent_joins_the_list_as_it_is_written(written: str, edited: str) -> None:
    text = f'[prompt]\ninstructions = "x"\n{written}\nmax_tokens = 5\n'
    assert show_precedent(text, "new") == text.replace(written, edited)


def test_values_of_a_line_change_and_nothing_else_does() -> None:
    line = '{"q":"a \\"b\\" {",  "grades": {"role" :4, "pay": 1}, "who": null }'
    assert line[slice(*value_spans(line)["q"])] == '"a \\"b\\" {"'
    edited = with_values(line, {"grades.role": 2, "who": "Ana Ümit", "q": 'a "b" {'})
    assert edited == line.replace(":4", ":2").replace("null", '"Ana Ümit"')
    with pytest.raises(KeyError):
        with_values(line, {"grades.place": 1})


def test_lines_are_cut_at_newlines_alone() -> None:
    text = '{"a": "x\u2028y", "n": 1}\n{"a": "z", "n": 2}\n'
    assert edit_line(text, 2, {"n": 3}) == text.replace('"n": 2', '"n": 3')
    assert drop_line(text, 1) == '{"a": "z", "n": 2}\n'


def test_toml_texts_hold_what_json_leaves_bare() -> None:
    assert tomllib.loads(f"a = {toml_text('x' + chr(127) + chr(9) + 'é')}")["a"] == "x\x7f\té"


def policy_copy(folder: Path) -> Path:
    for name in ("rubric.toml", "policy.md", "precedents.jsonl"):
        (folder / name).write_text((POLICY_DIR / name).read_text())
    (folder / "golden").mkdir()
    return folder


def test_a_write_that_was_cut_short_is_finished_by_the_next_to_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_copy(tmp_path)
    texts = {
        "rubric.toml": amend_anchor(RUBRIC, dimension=DIMENSIONS[0], grade=0, anchor="New."),
        "policy.md": amend_row(DOCUMENT, dimension=DIMENSIONS[0], grade=0, anchor="New."),
        "decisions.jsonl": "{}\n",
    }
    with monkeypatch.context() as killed:
        killed.setattr(writes, "recover", lambda policy: None)
        write_all(policy, texts)
    (policy / "rubric.toml").write_text(texts["rubric.toml"])
    assert (policy / JOURNAL).is_file()
    with locked(policy):
        assert {name: read_exact(policy / name) for name in texts} == texts
    assert not (policy / JOURNAL).exists()
    assert not [finding for finding in lint(policy) if finding.severity == "error"]


def test_a_file_edited_after_the_cut_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_copy(tmp_path)
    with monkeypatch.context() as killed:
        killed.setattr(writes, "recover", lambda policy: None)
        write_all(policy, {"policy.md": "new", "rubric.toml": "new"})
    (policy / "policy.md").write_text("mine")
    with pytest.raises(PolicyError, match=r"policy.md: edited while a decision was being written"):
        recover(policy)
    assert (policy / "policy.md").read_text() == "mine"
    assert (policy / "rubric.toml").read_text() == RUBRIC


def test_only_errors_that_a_change_brings_count(tmp_path: Path) -> None:
    policy = policy_copy(tmp_path)
    broken = DOCUMENT.replace(f"(`{DIMENSIONS[1]}`)", "(`elsewhere`)", 1)
    (policy / "policy.md").write_text(broken)
    assert [finding for finding in lint(policy) if finding.severity == "error"]
    # A line added above moves the old errors; they are no news.
    assert new_errors(policy, {"policy.md": f"A line.\n\n{broken}"}) == ()
    same = load_policy(policy).rubric.dimensions[0].anchors[0]
    (found,) = new_errors(policy, {"rubric.toml": amend_anchor(RUBRIC, dimension=DIMENSIONS[0], grade=1, anchor=same)})[
        :1
    ]
    assert found.file == policy / "rubric.toml"
    assert "same anchor as a lower grade" in found.message
    assert read_exact(policy / "rubric.toml") == RUBRIC


def test_the_journal_holds_whole_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_copy(tmp_path)
    monkeypatch.setattr(writes, "recover", lambda policy: None)
    write_all(policy, {"golden/new.jsonl": "é\r\n"})
    assert json.loads((policy / JOURNAL).read_text())["golden/new.jsonl"] == {"before": None, "after": "é\r\n"}
