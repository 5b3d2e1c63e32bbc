"""The engagement teacher's parts: what clicks teach, losses that equal plain loops, and calibrated probabilities."""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preceptor.contracts import IMPRESSIONS, PAIRS, TEACHER_SCORES, make_pair, read_table, rows_to_table, write_table
from preceptor.errors import InputError, RecipeError
from preceptor.evaluation.metrics import auc, ece
from preceptor.market import clicks
from preceptor.plan import make_plan
from preceptor.ranker.backbones import resolve_backbone
from preceptor.ranker.isotonic import fit_isotonic, load_calibration, save_calibration
from preceptor.ranker.losses import Normalisers, Objective, Targets, action_within, loss_terms
from preceptor.ranker.model import action_heads, init_ranker
from preceptor.ranker.score_stage import logit_rows
from preceptor.recipe import BackboneConfig, ClicksConfig, LinearConfig, PositionBias, TeacherConfig, TrainConfig
from preceptor.recipes import tiny
from preceptor.record import Record, to_jsonable
from preceptor.teachers.calibrated import calibrate_ranker
from preceptor.teachers.engagement import click_examples, corrected, engagement_teacher, exposures
from preceptor.teachers.linear import Lesson, slopes
from preceptor.teachers.linear_stage import LinearScores, linear_logits, load_linear, score_linear
from preceptor.teachers.position_bias import Cells
from tests.unit.clicking import NUM_POSITIONS, TRUTH, logged

GOOD = ("generous", "friendly", "growing")


# what an impression teaches


def exposed(**given: Any) -> dict[str, Any]:
    return {"pair_id": "a", "shown": 1.0, "examined": 0.5, "click": 0.0, "apply": 0.0, "position": 1, **given}


def test_a_negative_of_apply_may_count_only_where_it_was_opened() -> None:
    rows = [exposed(), exposed(click=1.0), exposed(click=1.0, apply=1.0), exposed(pair_id="b"),
            exposed(pair_id="c", apply=1.0)]  # fmt: skip
    found = {(row["pair_id"], row["head"]): row for row in click_examples(rows, ClicksConfig(negatives="clicked"))}
    assert set(found) == {("a", "click"), ("b", "click"), ("c", "click"), ("a", "apply")}
    assert found["a", "apply"] == {"pair_id": "a", "head": "apply", "target": [0.5], "weight": 2.0}
    assert found["a", "click"]["weight"] == 1.5


def test_sampled_negatives_weigh_as_much_as_all_of_them() -> None:
    rows = [exposed(pair_id=str(number), apply=float(number < 50)) for number in range(5000)]
    config = ClicksConfig(negatives="sampled", negative_share=0.2)
    found = [row for row in click_examples(rows, config) if row["head"] == "apply"]
    assert sum(row["target"][0] > 0 for row in found) == 50
    assert 850 < len(found) < 1250
    assert sum(row["weight"] for row in found) == pytest.approx(2500, rel=0.12)
    assert found == [row for row in click_examples(rows, config) if row["head"] == "apply"]


def test_a_rate_may_weigh_what_was_shown_in_place_of_what_was_examined() -> None:
    rows = [exposed(examined=0.25, click=1.0), exposed(examined=0.75)]
    for config, weight in ((ClicksConfig(), 1.0), (ClicksConfig(weight="shown"), 2.0)):
        assert list(click_examples(rows, config)) == [
            {"pair_id": "a", "head": "click", "target": [1.0], "weight": weight}
        ]


def test_the_position_bias_of_the_recipe_decides_what_was_examined() -> None:
    rows = [{**row, "shown": 1.0, "examined": 0.123, "split": "train"} for row in logged(5)]
    assert corrected(rows, ClicksConfig(), {}) == rows
    assert {row["examined"] for row in corrected(rows, ClicksConfig(position_bias="ignored"), {})} == {1.0}
    estimated: tuple[PositionBias, ...] = ("harvested", "em")
    for bias in estimated:
        found = {row["position"]: row["examined"] for row in corrected(rows, ClicksConfig(position_bias=bias), {})}
        assert [found[k] for k in sorted(found)] == pytest.approx(TRUTH, abs=0.05)
    counts = [{"pair_id": "a", "shown": 9.0, "examined": 9.0, "click": 1.0, "apply": None}]
    assert corrected(counts, ClicksConfig(position_bias="harvested"), {}) == counts


# losses


def drawn_lesson(loss: Any, seed: int = 2) -> tuple[Lesson, Any, Any]:
    generator = np.random.default_rng(seed)
    pair, place = (values.ravel() for values in np.meshgrid(np.arange(6), np.arange(3), indexing="ij"))
    shown = generator.integers(1, 9, size=len(pair)).astype(float)
    taken = np.floor(shown * generator.random(len(pair)) * 0.7)
    cells = Cells(pair_ids=tuple("abcdef"), pair_C=pair, place_C=place, shown_C=shown, taken_C=taken)
    lesson = Lesson(cells=cells, examined_C=0.8 * shown, group_D=np.array([0, 0, 0, 1, 1, 2]), loss=loss)
    return lesson, generator.normal(size=6), np.array([0.0, -0.7, -1.1])


def plain_loss(loss: str, lesson: Lesson, scores: Any, tower: Any) -> float:
    cells, total = lesson.cells, 0.0
    rows = list(zip(cells.pair_C, cells.place_C, cells.shown_C, cells.taken_C, lesson.examined_C, strict=True))
    if loss in ("additive_tower", "factorised_tower"):
        for pair, place, shown, taken, _ in rows:
            p = 1 / (1 + math.exp(-scores[pair] - tower[place]))
            if loss == "factorised_tower":
                p = math.exp(tower[place]) / (1 + math.exp(-scores[pair]))
            total -= taken * math.log(p) + (shown - taken) * math.log(1 - p)
        return total
    examined = [sum(row[4] for row in rows if row[0] == pair) for pair in range(6)]
    clicked = [sum(row[3] for row in rows if row[0] == pair) for pair in range(6)]
    for pair in range(6):
        p = 1 / (1 + math.exp(-scores[pair]))
        if loss == "pointwise":
            rate = min(clicked[pair] / examined[pair], 1)
            total -= examined[pair] * (rate * math.log(p) + (1 - rate) * math.log(1 - p))
        else:
            same = [other for other in range(6) if lesson.group_D[other] == lesson.group_D[pair]]
            share = examined[pair] * math.exp(scores[pair])
            total -= clicked[pair] * math.log(share / sum(examined[o] * math.exp(scores[o]) for o in same))
    return total


@pytest.mark.parametrize("loss", ["pointwise", "within", "additive_tower", "factorised_tower"])
def test_losses_and_slopes_equal_plain_loops_and_differences(loss: Any) -> None:
    lesson, scores, tower = drawn_lesson(loss)
    value, by_score, by_place = slopes(loss)(scores, tower, lesson)
    base = plain_loss(loss, lesson, scores, tower)
    constant = value - base  # `within` leaves out what has no gradient
    assert constant == pytest.approx(0.0, abs=1e-9) or loss == "within"
    for index in range(6):
        moved = scores.copy()
        moved[index] += 1e-6
        assert by_score[index] == pytest.approx((plain_loss(loss, lesson, moved, tower) - base) / 1e-6, abs=1e-3)
    for place in (1, 2):
        moved = tower.copy()
        moved[place] += 1e-6
        assert by_place[place] == pytest.approx((plain_loss(loss, lesson, scores, moved) - base) / 1e-6, abs=1e-3)


def torch_targets(lesson: Lesson) -> Targets:
    examined = np.bincount(lesson.cells.pair_C, weights=lesson.examined_C)
    clicked = np.bincount(lesson.cells.pair_C, weights=lesson.cells.taken_C)
    return Targets(
        grade_probs_NG5=torch.zeros(6, 0, 5),
        grade_weights_NG=torch.zeros(6, 0),
        action_probs_NA=torch.tensor(clicked / examined).unsqueeze(1),
        action_weights_NA=torch.tensor(examined).unsqueeze(1),
        group_N=torch.tensor(lesson.group_D),
    )


def test_the_rankers_loss_within_requests_is_the_linear_teachers() -> None:
    lesson, scores, tower = drawn_lesson("within")
    value, by_score, _ = slopes("within")(scores, tower, lesson)
    logits = torch.tensor(scores).unsqueeze(1).requires_grad_()
    found = action_within(logits, torch_targets(lesson))
    found.backward()
    assert found.item() == pytest.approx(_without_offsets(value, lesson))
    assert logits.grad is not None
    assert logits.grad[:, 0].numpy() == pytest.approx(by_score)


def _without_offsets(value: float, lesson: Lesson) -> float:
    examined = np.bincount(lesson.cells.pair_C, weights=lesson.examined_C)
    clicked = np.bincount(lesson.cells.pair_C, weights=lesson.cells.taken_C)
    return float(value + (clicked * np.log(examined)).sum())


def test_within_adds_up_over_micro_batches_and_ignores_what_a_request_shares() -> None:
    lesson, scores, _ = drawn_lesson("within")
    targets, logits = torch_targets(lesson), torch.tensor(scores).unsqueeze(1)
    whole = action_within(logits, targets)
    parts = [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])]
    cut = [Targets(**{name: getattr(targets, name)[rows] for name in Targets.__dataclass_fields__}) for rows in parts]
    shifted = [replace(item, group_N=item.group_N - item.group_N.min()) for item in cut]
    halves = [action_within(logits[rows], item) for rows, item in zip(parts, shifted, strict=True)]
    assert sum(halves).item() == pytest.approx(whole.item())  # type: ignore[union-attr]
    assert action_within(logits + targets.group_N.unsqueeze(1), targets).item() == pytest.approx(whole.item())
    objective = Objective(grade=0.0, action=0.0, listwise=0.0, action_within=1.0)
    norm = Normalisers(grade=0.0, action=1.0, groups=0.0, taken=4.0)
    terms = loss_terms(torch.zeros(6, 0, 5), logits, targets, objective, norm)
    assert terms["action_within"].item() == pytest.approx(whole.item() / 4)


# calibration


def test_isotonic_calibration_equals_pooling_by_hand_and_keeps_the_order() -> None:
    found = fit_isotonic([-2.0, -1.0, 0.0, 1.0], [1, 3, 1, 6], [10] * 4, [10] * 4)
    # The second and the third are out of order: pooled to 4 of 20, at the middle of their logits.
    assert found.logits == pytest.approx((-2.0, -0.5, 1.0))
    assert found.calibrated == pytest.approx([math.log(p / (1 - p)) for p in (0.1, 0.2, 0.6)])
    raw = np.linspace(-5, 5, 101)
    assert (np.diff(found(raw)) > 0).all()
    with pytest.raises(InputError, match="needs an action"):
        fit_isotonic([0.0], [0.0], [1.0], [1.0])


def test_calibrated_probabilities_are_those_observed_at_every_position(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    logits = generator.normal(size=40_000)
    examined = TRUTH[generator.integers(NUM_POSITIONS, size=len(logits))]
    taken = generator.random(len(logits)) < examined / (1 + np.exp(1.5 - 0.5 * logits))
    half = slice(0, 20_000), slice(20_000, None)
    save_calibration(
        {"click": fit_isotonic(logits[half[0]], taken[half[0]], examined[half[0]], np.ones(20_000))}, tmp_path
    )
    calibrated = load_calibration(tmp_path)["click"](logits[half[1]])
    before = ece(taken[half[1]], examined[half[1]] / (1 + np.exp(-logits[half[1]])))
    after = ece(taken[half[1]], examined[half[1]] / (1 + np.exp(-calibrated)))
    assert before > 0.1 and after < 0.01
    assert load_calibration(tmp_path / "none") == {}


def test_a_map_is_fitted_to_what_was_shown_though_a_ranker_shows_the_better_on_top() -> None:
    # Half of the documents attract by 0.8 and stand on top, half by 0.2 and stand low; their logits are the same.
    found = fit_isotonic([0.0, 0.0], [800, 40], [1000, 200], [1000, 1000])
    assert 1 / (1 + math.exp(-float(found(0.0)))) == pytest.approx(0.5)


def test_a_calibrated_ranker_says_what_was_observed_and_its_weights_stay(corpus: Record, tmp_path: Path) -> None:
    limits = BackboneConfig(source="random-tiny", num_layers=1, max_prefix_tokens=16, max_document_tokens=24)
    ranker, tokenizer = init_ranker(limits, resolve_backbone(limits.source), action_heads())
    ranker.save(tmp_path, tokenizer)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    held_out = [row for row in exposures(corpus) if row["split"] == "calibration"]
    wanted = {row["pair_id"] for row in held_out}
    pairs = {
        row["pair_id"]: row for row in read_table(corpus.path / "pairs", PAIRS).to_pylist() if row["pair_id"] in wanted
    }
    calibrate_ranker(tmp_path, held_out, pairs)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    rows = logit_rows(ranker, tokenizer, list(pairs.values()), block="", maps=load_calibration(tmp_path))
    # Untrained, it says one half of every pair: calibrated it says the mean rate of all.
    said = {1 / (1 + math.exp(-row["logits"][0])) for row in rows if row["head"] == "click"}
    rate = np.mean([row["click"] / row["examined"] for row in held_out])
    assert list(said) == pytest.approx([rate], abs=1e-6)


# the linear teacher as stages


def write_corpus(path: Path, *, num_queries: int = 60) -> Record:
    """A corpus where a document of good words is clicked more often, shown by a ranker that likes bad ones."""
    rng, pairs, rows = random.Random(12), [], []
    when = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    for query in range(num_queries):
        split = ("train", "train", "calibration", "holdout")[query % 4]
        group = []
        for number in range(NUM_POSITIONS):
            good = rng.random() < 0.5
            words = rng.sample(GOOD if good else ("dull", "remote", "strict"), 2)
            pair = {**make_pair(f"query {query}", "", f"{' '.join(words)} post {number}", slice="s"), "split": split}
            pairs.append(pair)
            group.append((good, pair))
        for request in range(20):
            order = sorted(group, key=lambda item: item[0] + rng.gauss(0, 0.5))
            for position, (good, pair) in enumerate(order, start=1):
                response = clicks.respond(rng, position=position, attracted=0.7 if good else 0.3, applies=0.3)
                ids = {name: pair[name] for name in ("pair_id", "query_id", "profile_id", "document_id", "split")}
                rows.append({**ids, "request_id": f"{query}-{request}", "position": position, "shown_at": when,
                             "click": response.click, "apply": response.apply,
                             "propensity": clicks.propensity(position)})  # fmt: skip
    write_table(rows_to_table(pairs, PAIRS), path / "pairs" / "0.parquet", PAIRS)
    write_table(rows_to_table(rows, IMPRESSIONS), path / "impressions" / "0.parquet", IMPRESSIONS)
    return Record(stage="market", version="v1", fingerprint="c", path=path, config={})


def holdout_auc(corpus: Record, logits: Mapping[str, float]) -> float:
    shown = read_table(corpus.path / "impressions", IMPRESSIONS).to_pylist()
    held_out = [row for row in shown if row["split"] == "holdout"]
    # Good documents were mostly shown low; inside a position only attraction is left.
    wins = [
        auc([row["click"] for row in same], [logits[row["pair_id"]] for row in same])
        for k in range(1, NUM_POSITIONS + 1)
        for same in [[row for row in held_out if row["position"] == k]]
    ]
    return float(np.mean(wins))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("bias", ["known", "harvested", "em", "regression_em", "additive_tower", "factorised_tower"])
def test_a_corrected_linear_teacher_learns_what_attracts(bias: Any, corpus: Record, tmp_path: Path) -> None:
    config = LinearConfig(
        clicks=ClicksConfig(position_bias=bias, calibration="isotonic"), num_hashed=256, penalties=(1.0,)
    )
    teacher = engagement_teacher(config, corpus=corpus, out=tmp_path / "engagement_teacher" / "v1")
    asked = LinearScores(system="engagement", sets=("pool", "shown holdout"))
    scores = score_linear(asked, corpus=corpus, model=teacher, out=tmp_path / "engagement_scores" / "v1")
    rows = read_table(scores.path / "scores", TEACHER_SCORES).to_pylist()
    logits = {row["pair_id"]: row["logits"][0] for row in rows if row["head"] == "click"}
    texts = read_table(corpus.path / "pairs", PAIRS).to_pylist()
    truth = {row["pair_id"]: float(row["document"].split()[0] in GOOD) for row in texts}
    # What known attraction reaches is far from chance; ties of the truth are worth half.
    assert holdout_auc(corpus, truth) > 0.57
    assert holdout_auc(corpus, logits) > holdout_auc(corpus, truth) - 0.01
    assert teacher.metrics["heads"] == ["click", "apply"]
    assert set(load_calibration(teacher.path / "model")) == {"click", "apply"}
    if bias.endswith("tower"):
        # Scoring reads no tower: the same logits, but for calibration, without it.
        heads = load_linear(teacher.path / "model").heads
        assert len(heads["click"].tower_K) == NUM_POSITIONS
        falling = teacher.metrics["towers"]["click"]
        assert falling[0] == 0.0 and falling[-1] < -0.5


def test_a_linear_teacher_reads_the_numbers_at_a_documents_end(tmp_path: Path) -> None:
    documents = [f"Posting with some words [clicked {number:02d} | pay 7]" for number in range(60)]
    asked = [f"query {number % 12}" for number in range(60)]
    pairs = [make_pair(query, "", text, slice="s", split="train") for query, text in zip(asked, documents, strict=True)]
    rng = random.Random(3)
    when = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
    shown = [
        {"request_id": "r", "position": 1, "shown_at": when, "propensity": 1.0, "apply": False,
         "click": rng.random() < number / 60,
         **{name: pair[name] for name in ("pair_id", "query_id", "profile_id", "document_id", "split")}}
        for number, pair in enumerate(pairs)
        for _ in range(30)
    ]  # fmt: skip
    path = tmp_path / "corpus" / "v1"
    write_table(rows_to_table(pairs, PAIRS), path / "pairs" / "0.parquet", PAIRS)
    write_table(rows_to_table(shown, IMPRESSIONS), path / "impressions" / "0.parquet", IMPRESSIONS)
    corpus = Record(stage="market", version="v1", fingerprint="c", path=path, config={})
    teacher = engagement_teacher(LinearConfig(), corpus=corpus, out=tmp_path / "engagement_teacher" / "v1")
    # Pay is the same everywhere, and says nothing.
    assert teacher.metrics["numbers"] == ["clicked"]
    unseen = [make_pair("q", "", f"Other words [clicked {n}]", slice="s", split="train") for n in (10, 30, 50)]
    silent = make_pair("q", "", "Other words", slice="s", split="train")
    low, middle, high, unsaid = linear_logits(load_linear(teacher.path / "model"), [*unseen, silent])["click"]
    assert low < middle < high
    assert low < unsaid < high
    assert 1 / (1 + np.exp(-high)) == pytest.approx(50 / 60, abs=0.1)


def test_a_language_model_takes_no_tower(corpus: Record, tmp_path: Path) -> None:
    train = TrainConfig(num_steps=1, groups_per_step=2, learning_rate=1e-3, head_learning_rate=1e-3)
    config = TeacherConfig(
        backbone=BackboneConfig(source="random-tiny"), train=train, clicks=ClicksConfig(position_bias="additive_tower")
    )
    with pytest.raises(RecipeError, match="additive_tower trains with a linear teacher"):
        engagement_teacher(config, corpus=corpus, out=tmp_path / "engagement_teacher" / "v1")


def test_clicks_at_their_default_are_in_no_fingerprint() -> None:
    train = TrainConfig(num_steps=1, groups_per_step=2, learning_rate=1e-3, head_learning_rate=1e-3)
    config = TeacherConfig(backbone=BackboneConfig(source="random-tiny"), train=train)
    plain = to_jsonable(config)
    assert isinstance(plain, Mapping) and "clicks" not in plain
    assert "clicks" in to_jsonable(replace(config, clicks=ClicksConfig(loss="within")))


def test_a_plan_with_a_linear_teacher_has_the_same_stages() -> None:
    recipe = tiny()
    linear = make_plan(replace(recipe, engagement=LinearConfig()))
    assert [step.name for step in linear] == [step.name for step in make_plan(recipe)]
    assert [step.needs for step in linear] == [step.needs for step in make_plan(recipe)]


def test_choices_that_contradict_are_refused() -> None:
    with pytest.raises(RecipeError, match="a tower needs the pointwise loss"):
        ClicksConfig(position_bias="additive_tower", loss="within")
    with pytest.raises(RecipeError, match="negative_share"):
        ClicksConfig(negative_share=0.0)
    with pytest.raises(RecipeError, match="counts examinations, got weight shown"):
        ClicksConfig(loss="within", weight="shown")
    with pytest.raises(RecipeError, match="penalties"):
        LinearConfig(penalties=())
