"""A small policy that lints clean, written into a folder, and edits that name the line they touch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from preceptor.policy import Finding

RUBRIC: Final = """\
name = "loan_match"
version = "1.2.0"

[grades]
0 = "unsuitable"
1 = "weak"
2 = "possible"
3 = "good"
4 = "ideal"

[golden]
graders = ["kim", "lee"]

[prompt]
instructions = "Grade the book for the reader."
overall_question = "Does this book suit this reader?"
precedents = ["wrong-language"]
max_tokens = 900

[aggregation]
rule = "weighted-mean-half-down-then-caps"
caps = [
  { dimension = "subject", at_most = 0, overall = 0 },
  { dimension = "language", at_most = 0, overall = 1 },
]

[[dimension]]
name = "subject"
title = "Subject"
question = "Is the book about what was asked?"
weight = 3
[dimension.anchors]
0 = "Another field."
1 = "Same shelf, other matter."
2 = "Touches it in passing."
3 = "Mostly about it."
4 = "Exactly about it."

[[dimension]]
name = "language"
title = "Language"
question = "Can the reader read it?"
weight = 1
[dimension.anchors]
0 = "A language not read."
1 = "Read with a dictionary."
2 = "Language unstated."
3 = "Second language, fluent."
4 = "Mother tongue."
"""

DOCUMENT: Final = """\
# Loans

Version 1.2.0.

## The dimensions

### Subject (`subject`)

*Is the book about what was asked?* Weight 3.

| grade | anchor |
| --- | --- |
| 0 | Another field. |
| 1 | Same shelf, other matter. |
| 2 | Touches it in passing. |
| 3 | Mostly about it. |
| 4 | Exactly about it. |

#### Worked examples

- **Grade 0.** Asked for bees, shown tax law.
- **Grade 1.** Asked for bees, shown wasps.
- **Grade 2.** Asked for bees, shown a garden year
  with one page on hives.
- **Grade 3.** Asked for bees, shown honey cookery.
- **Grade 4.** Asked for bees, shown a keeper's handbook.

### Language (`language`)

*Can the reader read it?* Weight 1.

| grade | anchor |
| --- | --- |
| 0 | A language not read. |
| 1 | Read with a dictionary. |
| 2 | Language unstated. |
| 3 | Second language, fluent. |
| 4 | Mother tongue. |

- **Grade 0.** Finnish, for a reader of Portuguese.
- **Grade 1.** Spanish, for the same reader, who says it is slow going.
- **Grade 2.** Nothing said.
- **Grade 3.** English, learnt at school.
- **Grade 4.** Portuguese.

## How the overall grade follows

| if | then overall is at most |
| --- | --- |
| subject is 0 | 0 |
| language is 0 | 1 |

Both at 3 make a 3:

Grades: subject 3, language 3, overall 3

## Decided hard cases

#### C-001 The Finnish beekeeper

The handbook is the best there is, and it is in Finnish.

Grades: subject 4, language 0, overall 1

Precedent: `wrong-language`

#### C-002 Honey for cooks

A beekeeper's kitchen.

Grades: subject 3, language 4, overall 3

## Changelog

- **1.2.0.** Two cases.
"""


def case(
    name: str, subject: int, language: int, overall: int, *, document: str, reason: str = "Plain."
) -> dict[str, Any]:
    """One line of precedents.jsonl."""
    return {
        "id": name,
        "query": "keeping bees",
        "profile": "Reads Portuguese, and English from school.",
        "document": document,
        "grades": {"subject": subject, "language": language, "overall": overall},
        "reason": reason,
    }


PRECEDENTS: Final = (
    case(
        "wrong-language",
        4,
        0,
        1,
        document="Mehiläishoitajan käsikirja, in Finnish, 300 pages on hives, swarms and the keeper's year.",
        reason='Nothing else helps a reader who cannot read it: language 0 caps overall at 1. "A language not read."',
    ),
    case("tax-law", 0, 4, 0, document="Tax law of small firms, in Portuguese, with forms.", reason="Subject 0."),
    case("wasps", 1, 4, 2, document="Wasps of the south, a field guide in Portuguese with plates."),
    case("garden-year", 2, 3, 2, document="The garden year in English; a page in May is about hives."),
    case(
        "slow-spanish",
        3,
        1,
        2,
        document="Miel, cooking with honey, in Spanish.",
        reason="Language is 1, not language 3.",
    ),
    case("unstated", 4, 2, 3, document="The keeper's handbook, second edition; language not given."),
    case("handbook", 4, 4, 4, document="Manual do apicultor, in Portuguese, revised, with a calendar of the hive."),
)


def golden(subject: int, language: int, overall: int, **changes: Any) -> dict[str, Any]:
    """One golden line; every `document` makes a pair of its own."""
    return {
        "query": "chess endings",
        "profile": "Club player, reads English.",
        "document": f"Book {subject}{language}.",
        "slice": "title",
        "split": "train",
        "grades": {"subject": subject, "language": language, "overall": overall},
        "grader_id": "kim",
        "reason": None,
        "policy_version": "1.2.0",
        **changes,
    }


GOLDEN: Final = (
    golden(0, 4, 0),
    golden(1, 3, 1),
    golden(2, 2, 2),
    golden(3, 1, 2),
    golden(4, 4, 4),
    golden(4, 0, 1),
    golden(3, 3, 3),
)


def write_policy(
    folder: Path,
    *,
    rubric: str = RUBRIC,
    document: str = DOCUMENT,
    precedents: Iterable[dict[str, Any]] = PRECEDENTS,
    pairs: Iterable[dict[str, Any]] = GOLDEN,
) -> Path:
    """`folder`, holding a policy of these parts."""
    (folder / "golden").mkdir(parents=True, exist_ok=True)
    (folder / "rubric.toml").write_text(rubric)
    (folder / "policy.md").write_text(document)
    write_rows(folder / "precedents.jsonl", precedents)
    write_rows(folder / "golden" / "pairs.jsonl", pairs)
    return folder


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """`file`, one JSON object to a line."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def edit(file: Path, old: str, new: str) -> int:
    """The line of `old`, which must stand exactly once, after replacing it."""
    text = file.read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file.name}"
    file.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


def only(findings: Iterable[Finding], part: str) -> Finding:
    """The one finding whose message holds `part`."""
    (found,) = [finding for finding in findings if part in finding.message]
    return found
