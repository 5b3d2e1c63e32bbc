"""What lint finds in the prose, the precedents and the golden pairs, and where."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from preceptor.errors import PolicyError
from preceptor.policy import format_findings, lint, load_golden, load_policy
from preceptor.policy.prose import cases, examples, sections
from preceptor.policy.similar import Similar, words_of
from tests.unit.policy_room import (
    DOCUMENT,
    GOLDEN,
    PRECEDENTS,
    RUBRIC,
    case,
    edit,
    golden,
    only,
    write_policy,
    write_rows,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A policy that lints clean."""
    return write_policy(tmp_path / "loans")


def found(folder: Path, part: str) -> tuple[str, int | None, str]:
    """(file name, line, severity) of the one finding whose message holds `part`."""
    finding = only(lint(folder), part)
    return str(finding.file.relative_to(folder)), finding.line, finding.severity


def line_of(text: str, part: str) -> int:
    assert text.count(part) == 1
    return text[: text.index(part)].count("\n") + 1


def test_a_whole_policy_lints_clean(folder: Path) -> None:
    assert lint(folder) == (), format_findings(lint(folder))


# The document


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("| 3 | Mostly about it. |", "| 3 | About it. |", "the table's grade 3 differs from rubric.toml"),
        ("| 3 | Mostly about it. |", "| 2 | Mostly about it. |", "the table gives grade 2 twice; first on line 15"),
        ("| 4 | Mother tongue. |", "| 7 | Mother tongue. |", "the table has an unknown grade 7"),
        ("Version 1.2.0.", "Version 1.1.0.", "the document calls itself 1.1.0, rubric.toml 1.2.0"),
        ("Weight 3.", "Weight 2.", "weight 2, but rubric.toml has 3"),
        ("| language is 0 | 1 |", "| language is 0 | 2 |", "the table caps language otherwise than rubric.toml"),
        ("- **Grade 1.** Asked", "- **Grade 1:** Asked", "a worked example starts '- **Grade N.** '"),
        ("- **Grade 1.** Asked", "- **Grade 6.** Asked", "a worked example starts '- **Grade N.** '"),
        ("- **Grade 1.** Asked", "* **grade 1.** Asked", "a worked example starts '- **Grade N.** '"),
        ("Grades: subject 3, language 3, overall 3", "Grades: subject 3, language 0, overall 3", "gives 1"),
        (
            "language 0, overall 1",
            "language 0, overall 3",
            "case C-001: overall is 3, but the aggregation rule gives 1",
        ),
        ("language 0, overall 1", "language 0", "no grade for 'overall'"),
        ("subject 4, language 0", "subject 5, language 0", "unknown grade 5 for 'subject'"),
        ("subject 4, language 0", "subject 4, tongue 0", "unknown dimension 'tongue'"),
        ("subject 4, language 0", "subject 4, subject 4, language 0", "'subject' is graded twice"),
        ("subject 4, language 0", "subject four, language 0", "'subject four' is no grade"),
        ("#### C-002 Honey", "#### C-001 Honey", "the case C-001 stands on line 59 already"),
        ("#### C-002 Honey", "### C-002 Honey", "a hard case's heading is '#### C-002 Title'"),
        ("Precedent: `wrong-language`", "Precedent: `no-such`", "precedent 'no-such', which precedents.jsonl lacks"),
        ("Precedent: `wrong-language`", "*Precedent*: wrong-language", "on one line 'Precedent: `id`'"),
        (
            "Precedent: `wrong-language`",
            "Precedent: `unstated`",
            "than precedents.jsonl:6 'unstated': language 0, there 2",
        ),
    ],
)
def test_what_the_document_says_wrongly_is_an_error_at_its_line(folder: Path, old: str, new: str, message: str) -> None:
    line = edit(folder / "policy.md", old, new)
    at = line - 2 if "'unstated'" in message else line
    assert (("policy.md", at, "error")) == found(folder, message)
    load_policy(folder)


def test_a_hard_case_without_its_line_of_grades_is_an_error(folder: Path) -> None:
    heading = line_of(DOCUMENT, "#### C-002")
    line = edit(folder / "policy.md", "Grades: subject 3, language 4, overall 3", "**Grades:** subject 3, overall 3")
    assert found(folder, "the case C-002 has no line 'Grades: subject N, language N, overall N'") == (
        "policy.md",
        line,
        "error",
    )
    edit(folder / "policy.md", "**Grades:** subject 3, overall 3", "")
    assert found(folder, "the case C-002 has no line")[1] == heading


def test_a_section_without_an_anchor_says_which_row_to_add(folder: Path) -> None:
    edit(folder / "policy.md", "| 2 | Touches it in passing. |\n", "")
    message = "the section of 'subject' has no anchor for grade 2. Add the row: | 2 | Touches it in passing. |"
    assert found(folder, message) == ("policy.md", line_of(DOCUMENT, "### Subject"), "error")


def test_what_is_missing_points_to_where_it_would_go(folder: Path) -> None:
    edit(folder / "policy.md", "### Language (`language`)", "### Language")
    edit(folder / "policy.md", "- **1.2.0.** Two", "- **1.1.0.** Two")
    edit(folder / "policy.md", "Version 1.2.0.", "")
    subject, changelog = line_of(DOCUMENT, "### Subject"), line_of(DOCUMENT, "## Changelog")
    assert found(folder, "no section for dimension 'language'") == ("policy.md", subject, "error")
    assert found(folder, "the changelog does not mention version 1.2.0") == ("policy.md", changelog, "warning")


def test_a_section_written_twice_is_an_error(folder: Path) -> None:
    line = edit(folder / "policy.md", "## How the overall", "### More (`subject`)\n\n## How the overall")
    message = f"a second section for 'subject'; the first is on line {line_of(DOCUMENT, '### Subject')}"
    assert found(folder, message) == ("policy.md", line, "error")


def test_a_missing_cap_and_another_question_are_found(folder: Path) -> None:
    edit(folder / "policy.md", "| language is 0 | 1 |\n", "")
    line = edit(folder / "policy.md", "*Can the reader read it?*", "*Does the reader read it?*")
    assert found(folder, "lacks a cap of rubric.toml. Add the row: | language is 0 | 1 |")[2] == "error"
    assert found(folder, "which asks: Can the reader read it?") == ("policy.md", line, "warning")


@pytest.mark.parametrize(
    ("row", "lacks"),
    [
        ("| subject or language is 0 | 1 |", 0),
        ("| subject, language is at most 0 | at most 1 |", 0),
        ("| language is at most 0 or less | 1 |", 0),
        ("| language is lowest | 1 |", 0),
        ("", 1),
    ],
)
def test_a_row_may_cap_several_dimensions_in_several_ways(folder: Path, row: str, lacks: int) -> None:
    edit(folder / "policy.md", "| language is 0 | 1 |\n", f"{row}\n")
    if "subject" in row:
        edit(folder / "rubric.toml", "caps = [\n", 'caps = [\n  { dimension = "subject", at_most = 0, overall = 1 },\n')
    assert len([finding for finding in lint(folder) if "lacks a cap" in finding.message]) == lacks
    assert not [finding for finding in lint(folder) if "otherwise than rubric.toml" in finding.message]


def test_missing_examples_are_a_warning_that_names_the_grades(folder: Path) -> None:
    text = DOCUMENT
    for grade in (1, 3):
        text = "\n".join(line for line in text.split("\n") if not line.startswith(f"- **Grade {grade}.** Asked"))
    (folder / "policy.md").write_text(text)
    message = "dimension 'subject' has no worked example at grades 1, 3"
    assert found(folder, message) == ("policy.md", line_of(DOCUMENT, "### Subject"), "warning")


def test_examples_run_on_over_lines_and_stand_under_deeper_headings() -> None:
    subject = next(section for section in sections(DOCUMENT) if section.dimension == "subject")
    read, problems = examples(subject)
    assert [example.grade for example in read] == [0, 1, 2, 3, 4]
    assert read[2].text == "Asked for bees, shown a garden year with one page on hives."
    assert problems == ()


def test_what_stands_in_a_code_block_is_no_heading_and_no_case() -> None:
    fenced = (
        "# A\n\n```\n#### C-009 Not a case\nGrades: x\n# Not a heading\n```\n\n#### C-001 A case\n\nGrades: subject 4\n"
    )
    assert [section.title for section in sections(fenced)] == ["A", "C-001 A case"]
    read, problems = cases(fenced, ["subject"])
    assert [(item.id, item.line, item.grades) for item in read] == [("C-001", 9, None)]
    assert problems == ((11, "no grade for 'overall'. Add it."),)


# Precedents


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("Spanish is language 3.", "its reason says language 3, but it is graded language 1"),
        ("So Subject is 2, overall 2.", "its reason says subject 2, but it is graded subject 3"),
        ("Both low: overall 3.", "its reason says overall 3, but it is graded overall 2"),
        ('"Mother tongue." it is.', 'quotes the anchor of language 4, "Mother tongue."'),
    ],
)
def test_a_reason_that_cites_another_grade_is_an_error(folder: Path, reason: str, message: str) -> None:
    rows = [dict(row) for row in PRECEDENTS]
    rows[4]["reason"] = reason
    write_rows(folder / "precedents.jsonl", rows)
    assert found(folder, message) == ("precedents.jsonl", 5, "error")


@pytest.mark.parametrize(
    "reason",
    [
        "Language 1, not language 3.",
        "With a dictionary it would be language 0.",
        "Language is 1: fluent is language 3.",
        "Language 1 caps overall at 3.",
        'A reader calls it "slow"; "Read with a dictionary."',
        "Chapters 2 and 3 are language 1.",
    ],
)
def test_a_reason_may_speak_of_other_grades(folder: Path, reason: str) -> None:
    rows = [dict(row) for row in PRECEDENTS]
    rows[4]["reason"] = reason
    write_rows(folder / "precedents.jsonl", rows)
    assert lint(folder) == ()


def test_the_same_pair_in_other_spelling_is_an_error_that_names_the_grades(folder: Path) -> None:
    again = {**PRECEDENTS[6], "id": "again", "query": "Keeping  BEES!", "grades": PRECEDENTS[4]["grades"]}
    write_rows(folder / "precedents.jsonl", [*PRECEDENTS, again])
    message = (
        "'again' decides the same pair as line 7 'handbook' and grades it otherwise: "
        "subject 3, there 4, language 1, there 4, overall 2, there 4"
    )
    assert found(folder, message) == ("precedents.jsonl", 8, "error")


def test_a_pair_that_differs_in_a_word_and_in_its_grades_is_a_warning_that_shows_the_word(folder: Path) -> None:
    first = PRECEDENTS[0]
    other = case("german", 4, 3, 4, document=str(first["document"]).replace("in Finnish", "in English"))
    write_rows(folder / "precedents.jsonl", [*PRECEDENTS, other])
    message = "'german' differs from line 1 'wrong-language' only in 'english' for 'finnish' and is graded otherwise"
    assert found(folder, message) == ("precedents.jsonl", 8, "warning")
    write_rows(folder / "precedents.jsonl", [*PRECEDENTS, {**other, "grades": first["grades"]}])
    assert lint(folder) == ()


# Golden


def leaked(**changes: Any) -> dict[str, Any]:
    """The first precedent as a golden line, with `changes`."""
    texts = {name: PRECEDENTS[0][name] for name in ("query", "profile", "document", "grades")}
    return golden(4, 0, 1, **(texts | changes))


@pytest.mark.parametrize(
    "changes",
    [{}, {"query": "KEEPING   BEES"}, {"document": f"{PRECEDENTS[0]['document']}".replace(",", " -").replace(".", "")}],
    ids=["copied", "case and spacing", "punctuation"],
)
def test_a_precedent_that_is_golden_is_refused_where_golden_is_read(folder: Path, changes: dict[str, Any]) -> None:
    file = write_rows(folder / "golden" / "more.jsonl", [leaked(**changes)])
    message = "golden pair is also precedent 'wrong-language' (precedents.jsonl:1)"
    assert found(folder, message) == ("golden/more.jsonl", 1, "error")
    with pytest.raises(PolicyError) as caught:
        load_golden(folder / "golden", load_policy(folder))
    assert str(caught.value).startswith(f"{file}:1: {message}")


def test_a_golden_pair_that_is_nearly_a_precedent_is_an_error_that_shows_the_words(folder: Path) -> None:
    text = str(PRECEDENTS[0]["document"]).replace("300 pages", "312 pages")
    write_rows(folder / "golden" / "more.jsonl", [golden(0, 3, 0), leaked(document=text)])
    message = "is precedent 'wrong-language' (precedents.jsonl:1) but for '312' in place of '300'"
    assert found(folder, message) == ("golden/more.jsonl", 2, "error")


def test_a_golden_pair_in_the_documents_examples_is_an_error(folder: Path) -> None:
    pair = golden(
        4, 3, 4, profile="", document="Shown: a keeper's handbook with blue covers and a foldout map of hives"
    )
    line = edit(
        folder / "policy.md",
        "shown a keeper's handbook.",
        "shown: a keeper's handbook with blue covers,\n  and a fold-out map of hives; it suits.",
    )
    write_rows(folder / "golden" / "more.jsonl", [pair])
    message = f"golden pair stands as an example at policy.md:{line}"
    assert found(folder, message) == ("golden/more.jsonl", 1, "error")
    write_rows(
        folder / "golden" / "more.jsonl", [{**pair, "profile": "Keeps three hives on a roof in Porto, reads English"}]
    )
    assert found(folder, f"the posting of this golden pair stands at policy.md:{line}")[2] == "warning"
    edit(folder / "policy.md", "with blue covers,\n  and a fold-out map of hives", "with red boards and no map")
    assert lint(folder) == ()


@pytest.mark.parametrize(("version", "warned"), [("1.1.9", True), ("1.2.9+aaaaaaaa", False), ("2.2.0", True)])
def test_golden_holds_through_patches_of_the_policy(folder: Path, version: str, warned: bool) -> None:
    write_rows(folder / "golden" / "more.jsonl", [golden(0, 3, 0, policy_version=version)])
    messages = [finding.message for finding in lint(folder)]
    assert any("graded under another version than 1.2.0" in message for message in messages) == warned


def test_an_undeclared_grader_is_refused_by_name(folder: Path) -> None:
    file = write_rows(folder / "golden" / "more.jsonl", [golden(0, 3, 0), golden(1, 2, 1, grader_id="kin")])
    message = "unknown grader 'kin'. rubric.toml declares: kim, lee."
    assert found(folder, message) == ("golden/more.jsonl", 2, "error")
    with pytest.raises(PolicyError) as caught:
        load_golden(folder / "golden", load_policy(folder))
    assert str(caught.value).startswith(f"{file}:2: {message}")


def test_without_declared_graders_anybody_may_grade_and_lint_warns(tmp_path: Path) -> None:
    rubric = RUBRIC.replace('[golden]\ngraders = ["kim", "lee"]\n', "")
    folder = write_policy(tmp_path / "loans", rubric=rubric, pairs=[*GOLDEN, golden(0, 3, 0, grader_id="anybody")])
    line = line_of(rubric, "[prompt]")
    assert found(folder, "no graders are declared") == ("rubric.toml", line, "warning")
    assert load_golden(folder / "golden", load_policy(folder)).num_rows == 3 * (len(GOLDEN) + 1)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("graders = []", "'graders' must name each grader once, at least one, got []"),
        ('graders = ["kim", "kim"]', "'graders' must name each grader once"),
        ('graders = "kim"', "'graders' must be a list of names"),
        ('grader = ["kim"]', "[golden] has an unknown key 'grader'"),
    ],
)
def test_a_broken_list_of_graders_is_refused_at_its_line(folder: Path, new: str, message: str) -> None:
    line = edit(folder / "rubric.toml", 'graders = ["kim", "lee"]', new)
    assert found(folder, message) == ("rubric.toml", line, "error")


# Coverage


def test_grades_that_nothing_exercises_are_named(folder: Path) -> None:
    write_rows(folder / "precedents.jsonl", [row for row in PRECEDENTS if row["id"] not in ("wasps", "garden-year")])
    write_rows(folder / "golden" / "pairs.jsonl", [{**row, "grades": {"overall": 1}} for row in GOLDEN])
    line = line_of(RUBRIC, 'name = "subject"') - 1
    message = (
        "dimension 'subject' is not exercised everywhere: no precedent at grades 1, 2, no golden pair at any grade"
    )
    assert found(folder, message) == ("rubric.toml", line, "warning")
    assert found(folder, "overall is not exercised everywhere: no golden pair at grades 0, 2, 3, 4")[2] == "warning"
    shutil.rmtree(folder / "golden")
    assert found(folder, "'subject' is not exercised everywhere: no precedent at grades 1, 2. ")[2] == "warning"
    assert found(folder, "no golden pairs yet")[0] == "golden"


def test_a_long_prompt_names_its_longest_parts(folder: Path) -> None:
    line = edit(folder / "rubric.toml", "max_tokens = 900", "max_tokens = 60")
    finding = only(lint(folder), "prompts longer than max_tokens = 60: subject about")
    assert (finding.line, finding.severity) == (line, "warning")
    assert "Their longest parts: precedent 'wrong-language' " in finding.message


# Duplicate keys and grades


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '3 = "Mostly about it."',
            '2 = "Mostly about it."',
            "grade 2 is written twice in its table (first on line 35)",
        ),
        ('title = "Language"', 'name = "tongue"', "the key 'name' is written twice in its table (first on line 40)"),
        ('2 = "possible"', '"1" = "possible"', "grade 1 is written twice in its table (first on line 6)"),
        ("[prompt]", "[golden]", "the table [golden] is written twice (first on line 11)"),
        ('3 = "Mostly about it."', '3 = "Same shelf, other matter."', "grade 3 has the same anchor as a lower grade"),
    ],
)
def test_a_grade_or_key_written_twice_is_refused_at_its_second_line(
    folder: Path, old: str, new: str, message: str
) -> None:
    line = edit(folder / "rubric.toml", old, new)
    assert found(folder, message) == ("rubric.toml", line, "error")
    with pytest.raises(PolicyError) as caught:
        load_policy(folder)
    assert str(caught.value).startswith(f"{folder / 'rubric.toml'}:{line}: ")


@pytest.mark.parametrize("version", ["1.2", "v1.2.0", "1.02.0", "1.2.0+abc", "1.2.0-rc1", "one"])
def test_versions_are_semantic(folder: Path, version: str) -> None:
    line = edit(folder / "rubric.toml", 'version = "1.2.0"', f'version = "{version}"')
    assert found(folder, f"version must be three numbers such as 1.0.0, got '{version}'") == (
        "rubric.toml",
        line,
        "error",
    )


# Similarity


def test_near_texts_are_those_that_a_brute_force_finds() -> None:
    sentence = "the keeper opens the hive in may and looks for eggs before the first swarm leaves it for good"
    words = re.findall(r"\w+", sentence)
    texts = [" ".join([*words[:cut], "instead", *words[cut + 1 :]]) for cut in range(0, len(words), 3)]
    texts += [" ".join(words[:8]), " ".join(words[::-1]), "a bicycle with two wheels"]
    index = Similar([words_of(text) for text in texts])
    near = {item.index for item in index.near(words_of(" ".join(words)))}
    assert near == set(range(0, len(texts) - 3))
    assert [item.ours for item in index.near(words_of(" ".join(words)))] == ["instead"] * len(near)


def test_words_do_not_move_between_fields() -> None:
    assert words_of("a b", "c") != words_of("a", "b c")
    assert words_of("Café,  au LAIT") == words_of("cafe\u0301 au lait")  # composed and decomposed accents
