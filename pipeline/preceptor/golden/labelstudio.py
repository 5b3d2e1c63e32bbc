"""Label Studio: tasks to import there, the labelling interface, and the JSON it exports.

The alias of a choice is what its export holds; the interface shows the grade with its anchor. Names of what is no
dimension are capitalised, for dimensions are lower case.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from preceptor.errors import InputError
from preceptor.golden.answers import Answer, Answers
from preceptor.golden.rounds import Round
from preceptor.policy import Policy
from preceptor.policy.findings import Finding, error_at

REASON: Final = "Reason"
_TEXTS: Final = (("Query", "query"), ("Member", "profile"), ("Posting", "document"))
_NOTHING: Final = "(none)"


def tasks_json(round_: Round) -> str:
    """The round's tasks as Label Studio imports them: texts, the task's id, and the two it is meant for."""
    tasks = [
        {
            "data": {
                "task": task.id,
                "graders": ", ".join(task.graders),
                **{key: task.pair[key] or _NOTHING for _, key in _TEXTS},
            }
        }
        for task in round_.tasks
    ]
    return json.dumps(tasks, ensure_ascii=False, indent=1) + "\n"


def interface_xml(policy: Policy) -> str:
    """The labelling interface: the pair, one choice a dimension with the five anchors, and room for a reason."""
    view = xml.Element("View")
    for name, key in _TEXTS:
        xml.SubElement(view, "Header", value=name, size="4")
        xml.SubElement(view, "Text", name=name, value=f"${key}")
    for dimension in policy.rubric.dimensions:
        xml.SubElement(view, "Header", value=f"{dimension.title}: {dimension.question}", size="4")
        choices = xml.SubElement(
            view,
            "Choices",
            name=dimension.name,
            toName="Posting",
            choice="single-radio",
            required="true",
            requiredMessage=f"Choose a grade for {dimension.title}.",
        )
        for grade, anchor in enumerate(dimension.anchors):
            xml.SubElement(choices, "Choice", alias=str(grade), value=f"{grade}  {anchor}")
    xml.SubElement(view, "Header", value="Why, where it was not plain", size="4")
    xml.SubElement(view, "TextArea", name=REASON, toName="Posting", rows="2", maxSubmissions="1")
    xml.indent(view)
    return xml.tostring(view, encoding="unicode") + "\n"


def read_export(file: Path, users: Mapping[str, str]) -> Answers:
    """The answers in a Label Studio export of format JSON; `users` says which grader a user's id or e-mail is.

    Annotations that were skipped there, and tasks without any, are counted and left out. InputError where the file is
    not such an export.
    """
    answers: list[Answer] = []
    findings: list[Finding] = []
    skipped: Counter[str] = Counter()
    for task in _tasks(file):
        place = f"task {task.get('id')}"
        if not task["annotations"]:
            skipped["not annotated"] += 1
        for annotation in task["annotations"]:
            if annotation.get("was_cancelled"):
                skipped["skipped by the grader"] += 1
                continue
            found = _answer(file, f"{place}, annotation {annotation.get('id')}", task["data"], annotation, users)
            if isinstance(found, Answer):
                answers.append(found)
            else:
                findings.append(found)
    return Answers(answers=tuple(answers), findings=tuple(findings), skipped=skipped)


def _tasks(file: Path) -> list[dict[str, Any]]:
    way_out = "In Label Studio choose Export, format JSON (not JSON-MIN)."
    try:
        tasks = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file. Check the path.") from error
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON ({error}). {way_out}") from error
    if not isinstance(tasks, list):
        raise InputError(f"{file}: an export is a list of tasks, got {type(tasks).__name__}. {way_out}")
    for number, task in enumerate(tasks, 1):
        whole = isinstance(task, dict) and isinstance(task.get("data"), dict)
        notes = task.get("annotations") if whole else None
        if not isinstance(notes, list) or not all(isinstance(note, dict) for note in notes):
            raise InputError(f"{file}: item {number} is no task with 'data' and a list 'annotations'. {way_out}")
    return tasks


def _answer(
    file: Path, place: str, data: Mapping[str, Any], annotation: Mapping[str, Any], users: Mapping[str, str]
) -> Answer | Finding:
    """The annotation as an answer, or what keeps it from being one."""
    task = data.get("task")
    if not isinstance(task, str):
        return error_at(file, None, f"{place}: its data has no 'task', the id it was exported with. Export again.")
    result = annotation.get("result")
    if not isinstance(result, list):
        return error_at(file, None, f"{place}: 'result' must be a list, got {result!r}. Export again.")
    grades: dict[str, str] = {}
    reasons: list[str] = []
    for item in result:
        name, value = _control(item)
        texts = value.get("choices" if name != REASON else "text")
        texts = [texts] if isinstance(texts, str) else texts
        if name == REASON and isinstance(texts, list):
            reasons += map(str, texts)
        elif not isinstance(texts, list) or len(texts) != 1:
            return error_at(file, None, f"{place}: '{name}' must be one choice, got {value!r}. Mend it there.")
        elif name in grades:
            return error_at(file, None, f"{place}: '{name}' is graded twice. Keep one choice there.")
        else:
            grades[name] = str(texts[0])
    return Answer(
        file=file,
        line=None,
        place=place,
        task=task,
        grader=_grader(annotation.get("completed_by"), users),
        grades=grades,
        reason="; ".join(reasons).strip() or None,
    )


def _control(item: object) -> tuple[str, Mapping[str, Any]]:
    raw = item if isinstance(item, dict) else {}
    value = raw.get("value")
    return str(raw.get("from_name")), value if isinstance(value, dict) else {}


def _grader(completed_by: object, users: Mapping[str, str]) -> str:
    """The grader a user is: by `users`, or by an e-mail address that is a grader's name. Exports give id or object."""
    keys = list(_keys(completed_by))
    known = next((users[key] for key in keys if key in users), None)
    return known if known is not None else (keys[-1] if keys else "nobody")


def _keys(completed_by: object) -> Iterator[str]:
    if isinstance(completed_by, dict):
        yield from (str(completed_by[key]) for key in ("id", "email") if completed_by.get(key) is not None)
    elif completed_by is not None:
        yield str(completed_by)
