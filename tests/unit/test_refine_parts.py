"""The parts of refinement: a gain told from noise, what may be proposed, how a change is written, what is asked for."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.cli_refine import _reflection_key, add_refine, budget_of, config_of
from preceptor.contracts import OVERALL, make_pair
from preceptor.errors import PolicyError, RecipeError
from preceptor.evaluation.metrics import quadratic_kappa
from preceptor.judge.endpoint import Dialect
from preceptor.judge.replies import graded, rejected
from preceptor.policy import Policy, load_policy
from preceptor.policy.rubric import read_rubric
from preceptor.recipe import Budget
from preceptor.refine.acceptance import Measurement, measure
from preceptor.refine.candidate import cleaned, policy_with, problem_of, texts_of
from preceptor.refine.change import change_of, next_version, with_entry
from preceptor.refine.feedback import rule_of
from preceptor.refine.measuring import Judged
from preceptor.refine.sample import Item, items_of, load_calibration, parts_of
from tests.unit.refinement import write_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return load_policy(write_policy(tmp_path_factory.mktemp("policy") / "small"))


# ---------------------------------------------------------------- a gain, and noise


def item(query: int, number: int, grade: int) -> Item:
    pair = make_pair(f"query {query}", "a cook", f"posting {query}.{number}", slice="s", split="calibration")
    return Item(pair=pair, grades={"work": grade, OVERALL: grade}, grader_id="market-truth", reason=None)


def judged(items: Sequence[Item], grades: Sequence[int | None], *, sure: float = 0.9) -> list[Judged]:
    found = []
    for one, grade in zip(items, grades, strict=True):
        masses = [sure if each == grade else (1 - sure) / 4 for each in range(5)]
        replies = {
            name: rejected(one.pair_id, name, "prose") if grade is None else graded(one.pair_id, name, masses)
            for name in ("work", OVERALL)
        }
        found.append(Judged(item=one, replies=replies))
    return found


def pool(rng: random.Random, *, num_queries: int = 12) -> list[Item]:
    return [item(query, number, rng.randrange(5)) for query in range(num_queries) for number in range(6)]


def with_errors(items: Sequence[Item], rng: random.Random, share: float) -> list[int | None]:
    truth = [one.grades["work"] for one in items]
    return [rng.randrange(5) if rng.random() < share else grade for grade in truth]


def measured(before: Sequence[Judged], after: Sequence[Judged], seed: int = 0) -> Measurement:
    return measure(before, after, statistic="kappa", num=100, seed=seed)


def test_a_candidate_that_only_answers_differently_hardly_ever_gains_twice() -> None:
    rng = random.Random(3)
    num_once, num_twice = 0, 0
    for trial in range(40):
        gains = []
        for _ in range(2):
            items = pool(rng)
            old, new = judged(items, with_errors(items, rng, 0.3)), judged(items, with_errors(items, rng, 0.3))
            gains.append(measured(old, new, trial).is_gain)
        num_once += gains[0]
        num_twice += all(gains)
    assert num_once <= 5, "one measurement is passed by chance about once in 40"
    assert num_twice <= 1


def test_a_candidate_that_errs_far_less_gains_and_the_reverse_is_harm() -> None:
    rng = random.Random(4)
    items = pool(rng)
    bad, good = judged(items, with_errors(items, rng, 0.6)), judged(items, with_errors(items, rng, 0.05))
    assert measured(bad, good).is_gain
    assert {gain.dimension for gain in measured(good, bad).harmed} == {"work", OVERALL}


def test_kappa_before_and_after_is_that_of_all_pairs() -> None:
    rng = random.Random(5)
    items = pool(rng)
    old, new = with_errors(items, rng, 0.5), with_errors(items, rng, 0.2)
    found = measured(judged(items, old), judged(items, new)).overall
    truth = [one.grades["work"] for one in items]
    assert found.before == pytest.approx(quadratic_kappa(truth, np.array(old)))
    assert found.after == pytest.approx(quadratic_kappa(truth, np.array(new)))
    assert found.gain.value == pytest.approx(found.after - found.before)


def test_saying_nothing_on_hard_pairs_is_no_gain() -> None:
    rng = random.Random(6)
    items = pool(rng)
    old = with_errors(items, rng, 0.4)
    silent = [grade if grade == one.grades["work"] else None for grade, one in zip(old, items, strict=True)]
    found = measured(judged(items, old), judged(items, silent))
    assert not found.is_gain and found.overall.after <= found.overall.before


def test_expected_agreement_counts_confidence() -> None:
    rng = random.Random(7)
    items = pool(rng)
    truth: list[int | None] = [one.grades["work"] for one in items]
    shy, sure = judged(items, truth, sure=0.5), judged(items, truth, sure=0.9)
    found = measure(shy, sure, statistic="agreement", num=100, seed=0)
    assert found.is_gain and found.overall.gain.num_groups == 12
    one = shy[0]
    expected = 1 - sum(0.125 * (grade - one.item.grades["work"]) ** 2 for grade in range(5)) / 16
    assert one.agreement("work") == pytest.approx(expected)


# ---------------------------------------------------------------- what a search may see


def test_parts_share_no_query_and_adding_queries_moves_none(policy: Policy) -> None:
    items = items_of(load_calibration(policy))
    parts = parts_of(items)
    queries = [{one.query_id for one in part} for part in (parts.optimise, parts.first, parts.second)]
    assert sum(map(len, queries)) == len(set.union(*queries))
    more = tuple(item(number, 0, 2) for number in range(50))
    larger = parts_of((*items, *more))
    for small, large in ((parts.optimise, larger.optimise), (parts.first, larger.first), (parts.second, larger.second)):
        assert large[: len(small)] == small


def test_items_hold_every_grade_of_their_pair(policy: Policy) -> None:
    table = load_calibration(policy)
    items = items_of(table)
    assert sum(len(one.grades) for one in items) == table.num_rows
    assert {name for one in items for name in one.grades} == {*policy.rubric.names, OVERALL}


# ---------------------------------------------------------------- what may be proposed


@pytest.mark.parametrize(
    ("component", "proposed", "problem"),
    [
        ("instructions", "Read the query first.", None),
        ("instructions", "", "is empty"),
        ("instructions", "Mind: seven eight nine ten eleven twelve thirteen fourteen.", "quotes a golden pair"),
        ("instructions", "word " * 600, "more than max_tokens = 400"),
        ("precedents", "night-case\nplain-case", None),
        ("precedents", "", None),
        ("precedents", "night-case\nelsewhere", "'elsewhere'"),
        ("precedents", "night-case\nnight-case", "twice"),
    ],
)
def test_what_cannot_be_a_prompt_is_refused(policy: Policy, component: str, proposed: str, problem: str | None) -> None:
    texts = {**texts_of(policy, policy.rubric.names), component: cleaned(component, proposed)}
    pair = make_pair("q", "six seven eight nine ten, eleven twelve thirteen fourteen", "d", slice="s")
    seen = Item(pair=pair, grades={}, grader_id="g", reason=None)
    found = problem_of(policy, texts, component, seen=[seen])
    assert found is None if problem is None else found is not None and problem in found


def test_the_overall_question_is_a_component_only_where_it_is_asked(policy: Policy) -> None:
    assert list(texts_of(policy, policy.rubric.names)) == ["instructions", "precedents"]
    assert list(texts_of(policy, (OVERALL,))) == ["instructions", "overall_question", "precedents"]


def test_ids_are_read_out_of_a_models_list() -> None:
    assert cleaned("precedents", "- `night-case`,\n2. plain-case\n") == "night-case\nplain-case"
    assert cleaned("instructions", "\n A  line.\n\nAnother. ") == "A line.\n\nAnother."
    assert cleaned("overall_question", "Is it\n good?\n") == "Is it good?"


def test_the_rule_quotes_anchors_and_limits(policy: Policy) -> None:
    assert rule_of(policy.rubric, "place", golden=0, given=None) == "Grade 0 means: Out of reach."
    assert "weights work 3, place 1" in rule_of(policy.rubric, OVERALL, golden=0, given=1)


# ---------------------------------------------------------------- how a change is written


@settings(max_examples=40)
@given(
    st.text(
        st.characters(codec="utf-8", exclude_categories=["Cs"]) | st.sampled_from(' "\\\n#[]=\t\u2028'), max_size=300
    )
)
def test_whatever_is_proposed_is_read_back_the_same_or_refused(policy: Policy, proposed: str) -> None:
    text = cleaned("instructions", proposed)
    if not text:
        return
    texts = {**texts_of(policy, policy.rubric.names), "instructions": text}
    change = change_of(policy, texts, why="A test.")
    rubric, findings = read_rubric(change.after["rubric.toml"], Path("rubric.toml"))
    assert not findings
    wanted = policy_with(policy, texts).rubric
    assert rubric == replace(wanted, version="1.0.1")


def test_all_else_in_the_file_stays(policy: Policy) -> None:
    texts = {**texts_of(policy, policy.rubric.names), "precedents": "far-case\nplain-case"}
    change = change_of(policy, texts, why="A test.")
    before, after = (files["rubric.toml"].splitlines() for files in (change.before, change.after))
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [
        ('version = "1.0.0"', 'version = "1.1.0"'),
        ('precedents = ["plain-case"]', 'precedents = ["far-case", "plain-case"]'),
    ]
    assert change.after["precedents.jsonl"] == change.before["precedents.jsonl"]


def test_a_value_that_cannot_be_found_is_not_guessed_at(policy: Policy, tmp_path: Path) -> None:
    folder = write_policy(tmp_path / "small")
    file = folder / "rubric.toml"
    file.write_text(file.read_text().replace("[prompt]\n", "").replace("precedents = [", "prompt.precedents = ["))
    text = file.read_text()
    for key in ("instructions", "overall_question", "max_tokens"):
        text = text.replace(f"\n{key} = ", f"\nprompt.{key} = ")
    head, _, grades = text.partition("[grades]")
    values = [line for line in grades.split("[aggregation]")[0].splitlines() if line[:1] in "01234"]
    prompt = grades.split("[aggregation]")[0].partition("# Why")[2]
    rest = grades.partition("[aggregation]")[2]
    file.write_text(f"{head}# Why{prompt}\n[grades]\n" + "\n".join(values) + f"\n[aggregation]{rest}")
    dotted = load_policy(folder)
    texts = {**texts_of(dotted, dotted.rubric.names), "instructions": "Otherwise."}
    with pytest.raises(PolicyError, match=r"rubric\.toml.*'instructions' is not written"):
        change_of(dotted, texts, why="A test.")


def test_an_order_is_a_patch_and_a_choice_is_a_minor_version(policy: Policy) -> None:
    two = policy_with(policy, {"instructions": "-", "precedents": "far-case\nnight-case"})
    assert next_version("1.4.9", two, {"instructions": "-", "precedents": "night-case\nfar-case"}) == "1.4.10"
    assert next_version("1.4.9", two, {"instructions": "-", "precedents": "night-case"}) == "1.5.0"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (
            "# P\n\n## Changelog\n\n- **1.0.0.** First.\n",
            "# P\n\n## Changelog\n\n- **1.0.1.** Why.\n- **1.0.0.** First.\n",
        ),
        (
            "## Changelog\n\n- 0.9.0: a\n  b\n- 1.0.0: c\n  d\n\n## After\n",
            "## Changelog\n\n- 0.9.0: a\n  b\n- 1.0.0: c\n  d\n- **1.0.1.** Why.\n\n## After\n",
        ),
        ("## Change log\n\nNone yet.\n", "## Change log\n\n- **1.0.1.** Why.\n\nNone yet.\n"),
        ("# P\nVersion 1.0.0.\n", "# P\nVersion 1.0.1.\n\n## Changelog\n\n- **1.0.1.** Why.\n"),
    ],
    ids=["newest-first", "oldest-first", "empty", "none"],
)
def test_a_changelog_entry_stands_where_its_document_has_them(document: str, expected: str) -> None:
    assert with_entry(document, version="1.0.1", old="1.0.0", why="Why.") == expected


# ---------------------------------------------------------------- options


def options(*more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_refine(parser)
    needed = ("--judge-url", "http://a.example/v1", "--judge-model", "j", "--reflect-model", "r", "--budget", "calls=9")
    return parser.parse_args([*more, *needed])


def test_a_recipes_limits_hold_for_the_judge() -> None:
    config = config_of(options("demo", "--judge-prices", "0.5", "2", "--dimensions", "overall"))
    assert (config.judge.kind, config.judge.model, config.judge.dimensions) == ("openai", "j", ("overall",))
    assert config.judge.usd_per_million_generated_tokens == 2
    assert config.reflection.base_url == "http://a.example/v1"


def test_a_budget_names_its_limits() -> None:
    assert budget_of(["calls=2e3", "tokens=1e6", "usd=1.5", "proposals=7"]) == Budget(
        max_metric_calls=2000, max_tokens=10**6, max_usd=1.5, max_proposals=7
    )


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (["hours=3"], r"takes calls=N, tokens=N.*'hours=3'"),
        (["calls=many"], r"calls= takes a number, got 'many'"),
        (["calls=inf"], r"calls= takes a number, got 'inf'"),
        (["proposals=3"], "needs a budget"),
        (["calls=0"], "above 0, got 0"),
    ],
)
def test_a_budget_that_is_none_is_refused(limits: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        budget_of(limits)


def test_money_without_prices_is_refused() -> None:
    arguments = options()
    arguments.budget = ["usd=2"]
    with pytest.raises(RecipeError, match="never reached without prices"):
        config_of(arguments)


def test_the_judges_key_goes_to_no_other_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "judge-key")
    monkeypatch.delenv("REFLECT_API_KEY", raising=False)
    same, other = config_of(options()), config_of(options("--reflect-url", "http://b.example/v1"))
    assert (_reflection_key(same), _reflection_key(other)) == ("judge-key", "none")
    monkeypatch.setenv("REFLECT_API_KEY", "own-key")
    assert _reflection_key(other) == "own-key"


def test_a_model_that_takes_no_temperature_is_asked_without_one() -> None:
    dialect = Dialect(temperature=1.0)
    assert dialect.learn({"temperature": 1.0}, "'temperature' does not support 1.0 with this model")
    assert dialect.temperature is None
    assert not dialect.learn({}, "'temperature' is unsupported")
