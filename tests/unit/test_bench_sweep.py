"""The benchmark of distillation: fronts and areas equal plain counting, variants change one thing, tables agree."""

from __future__ import annotations

import itertools
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.distill_sweep import rare_median
from bench.peers.lessons import LISTWISE, RULES, ablations, seeded, sweep, with_layers
from bench.peers.pareto import Point, dominates, front, hypervolume, random_ndcg, widest
from bench.peers.sweep_report import AUC, CHANGE, KEPT, NDCG, OWN, Kind, Row, averaged, plot, summary, tables
from preceptor.contracts import TEACHER_SCORES, rows_to_table, write_table
from preceptor.evaluation.metrics import Interval, ndcg_at
from preceptor.recipe import BackboneConfig, DistillConfig, Recipe, TeacherConfig, Voice
from preceptor.recipes import SHIPPED
from preceptor.record import to_jsonable

MIXES = (0.05, 0.25, 0.5, 0.75, 0.95)
REFERENCE = (0.5, 0.4)


# fronts and areas


@pytest.mark.parametrize("seed", range(20))
def test_hypervolume_counts_the_cells_that_some_point_covers(seed: int) -> None:
    draw = random.Random(seed)
    points = [(float(draw.randrange(12)), float(draw.randrange(12))) for _ in range(draw.randrange(1, 8))]
    reference = (float(draw.randrange(6)), float(draw.randrange(6)))
    cells = itertools.product(range(12), range(12))
    covered = sum(
        x >= reference[0] and y >= reference[1] and any(x + 1 <= a and y + 1 <= b for a, b in points) for x, y in cells
    )
    assert hypervolume(points, reference) == covered


def test_hypervolume_of_nothing_above_the_reference_is_zero() -> None:
    assert hypervolume([], REFERENCE) == 0
    assert hypervolume([(0.4, 0.9), (0.9, 0.3), REFERENCE], REFERENCE) == 0


@pytest.mark.parametrize("seed", range(10))
def test_the_front_is_what_no_point_beats_and_has_all_of_the_area(seed: int) -> None:
    draw = random.Random(seed)
    points = {str(number): (float(draw.randrange(6)), float(draw.randrange(6))) for number in range(9)}
    found = front(points)
    assert found and [points[name] for name in found] == sorted(points[name] for name in found)
    for name, (x, y) in points.items():
        beaten = any((a > x and b >= y) or (a >= x and b > y) for a, b in points.values())
        assert (name in found) is not beaten
    on_front = [points[name] for name in found]
    assert hypervolume(on_front, (-1.0, -1.0)) == hypervolume(points.values(), (-1.0, -1.0))


def test_equal_points_do_not_dominate_each_other() -> None:
    assert not dominates((1.0, 2.0), (1.0, 2.0))
    assert dominates((1.0, 3.0), (1.0, 2.0)) and not dominates((2.0, 1.0), (1.0, 2.0))
    assert front({"a": (1.0, 2.0), "b": (1.0, 2.0)}) == ["a", "b"]


def test_the_widest_point_is_the_best_compromise() -> None:
    points = {"relevant": (0.51, 0.9), "both": (0.6, 0.8), "clicked": (0.62, 0.45), "below": (0.3, 0.2)}
    assert widest(points, REFERENCE) == "both"


def test_a_random_order_is_the_mean_of_all_orders() -> None:
    lists = [[4, 0, 1], [0, 0], [2, 2, 0, 1, 3]]
    expected = [
        np.mean([ndcg_at(grades, order) for order in itertools.permutations(range(len(grades)))])
        for grades in (lists[0], lists[2])
    ]
    assert random_ndcg(lists) == pytest.approx(np.mean(expected), abs=1e-12)
    long = [4, *[0] * 11]
    by_hand = sum(1 / np.log2(rank + 1) for rank in range(1, 11)) / 12
    assert random_ndcg([long]) == pytest.approx(by_hand, abs=1e-12), "what stands below the tenth earns nothing"
    assert np.isnan(random_ndcg([[0, 0]]))


# variants


def lesson(recipe: Recipe) -> DistillConfig:
    assert recipe.distill is not None
    return recipe.distill


def changed(config: DistillConfig, variant: DistillConfig) -> set[str]:
    return {item.name for item in fields(config) if getattr(config, item.name) != getattr(variant, item.name)}


STARTS = {"num_layers", "backbone"}


@pytest.mark.parametrize("name", ["tiny", "demo", "jobmatch", "cluster"])
def test_variants_are_distinct_change_one_thing_and_cost_the_same(name: str) -> None:
    recipe = SHIPPED[name]()
    config = lesson(recipe)
    found = {**sweep(config, mixes=MIXES, rules=tuple(RULES)), **ablations(recipe, config, least=0.02)}
    plain = [repr(to_jsonable(variant)) for variant in (config, *found.values())]
    assert len(set(plain)) == len(plain)
    for variant in found.values():
        assert variant.train == config.train and variant.blend == config.blend
        assert len(changed(config, variant) - STARTS) == 1 or changed(config, variant) <= STARTS
    assert {"relevance teacher alone", "engagement teacher alone", "hard grades", "no listwise term"} <= found.keys()
    assert {"pairs 1/8", "pairs 1/4", "pairs 1/2", "mask: actions under 0.02"} <= found.keys()
    of_margins = (
        {"no MarginMSE", "no action MarginMSE"} if config.margin else {"MarginMSE 0.05", "action MarginMSE 0.3"}
    )
    assert of_margins <= found.keys()
    assert ("no warm start" in found) is (name in ("tiny", "demo")), "others have no layers of their teacher"
    assert ("a third of the layers" in found) is (name == "demo"), "no other cuts a teacher of known depth"


def test_the_own_mix_is_no_point_of_the_sweep() -> None:
    config = lesson(SHIPPED["demo"]())
    assert config.mix.relevance == 0.6
    assert list(sweep(config, mixes=(0.25, 0.6), rules=())) == ["mix 0.25 : 0.75"]
    moved = replace(config, mixing=RULES["gradient"])
    found = sweep(moved, mixes=(0.6,), rules=tuple(RULES))
    assert list(found) == ["mix 0.6 : 0.4", "mixing uncertainty"] and changed(moved, found["mix 0.6 : 0.4"]) == {
        "mixing"
    }


@pytest.mark.parametrize("name", ["demo", "jobmatch"])
def test_a_student_of_other_layers_differs_in_them_alone(name: str) -> None:
    config = lesson(SHIPPED[name]())
    thinner = with_layers(config, 2)
    assert changed(config, thinner) == ({"backbone"} if config.backbone else {"num_layers"})
    assert (thinner.num_layers if thinner.backbone is None else thinner.backbone.num_layers) == 2


def test_what_a_lesson_has_is_left_out_of_it() -> None:
    recipe = SHIPPED["tiny"]()
    voices = (Voice(teacher="relevance", slices=("plain",), temperature=2.0), Voice(teacher="engagement", least=0.1))
    terms: dict[str, Any] = {"listwise": 0.0, "margin": 0.2, "action_margin": 0.1, "action_mse": 0.4, "listnet": 0.3}
    config = replace(lesson(recipe), **terms, voices=voices, share=0.5)
    found = ablations(recipe, config, least=0.02)
    assert found[f"listwise term {LISTWISE:g}"].listwise == LISTWISE
    assert found["no MarginMSE"].margin == 0 and found["no ListNet"].listnet == 0
    assert found["no action MarginMSE"].action_margin == 0 and found["no action MSE"].action_mse == 0
    assert found["no mask"].voices == (Voice(teacher="relevance", temperature=2.0), Voice(teacher="engagement"))
    assert [voice.targets for voice in found["hard grades"].voices] == ["hard", "soft"]
    assert [voice.targets for voice in found["hard grades and actions"].voices] == ["hard", "hard"]
    assert found["pairs 1/4"].share == 0.125, "of what the recipe's own learns from"


def test_a_temperature_of_the_student_goes_to_its_voice() -> None:
    recipe = SHIPPED["tiny"]()
    config = replace(lesson(recipe), temperature=2.0)
    masked = ablations(recipe, config, least=0.02)["mask: actions under 0.02"]
    assert masked.heard == (Voice(teacher="relevance", temperature=2.0), Voice(teacher="engagement", least=0.02))


def test_a_start_has_the_shape_of_the_other() -> None:
    recipe = SHIPPED["demo"]()
    teacher, config = recipe.relevance, lesson(recipe)
    assert isinstance(teacher, TeacherConfig) and teacher.backbone.num_layers == 6
    cold = ablations(recipe, config, least=0.02)["no warm start"]
    assert cold.backbone == replace(teacher.backbone, num_layers=3) and cold.num_layers is None
    assert ablations(recipe, cold, least=0.02)["warm start"] == config
    deeper = ablations(recipe, replace(config, num_layers=9), least=0.02)["no warm start"]
    assert deeper.backbone == teacher.backbone, "nine layers of six are six"
    other = replace(config, num_layers=None, backbone=BackboneConfig(source="elsewhere", num_layers=3))
    assert "warm start" not in ablations(recipe, other, least=0.02)


def test_the_mask_is_the_median_of_the_rarest_action(tmp_path: Path) -> None:
    logits = {"click": [0.0, 1.0, 2.0], "apply": [-3.0, -2.0, -1.0], "overall": [-9.0] * 3}
    rows = [
        {"pair_id": f"{number}", "teacher": "t", "head": head, "logits": [logit] * (5 if head == "overall" else 1)}
        for head, column in logits.items()
        for number, logit in enumerate(column)
    ]
    write_table(rows_to_table(rows, TEACHER_SCORES), tmp_path / "0.parquet", TEACHER_SCORES)
    assert rare_median(tmp_path) == 0.119, "1 / (1 + e^2)"


def test_seeds_follow_the_recipe_own() -> None:
    config = lesson(SHIPPED["tiny"]())
    assert seeded(config, 0) == config
    assert seeded(config, 2).train == replace(config.train, seed=config.train.seed + 2)


# tables


def interval(value: float) -> Interval:
    return Interval(value=value, low=value - 0.02, high=value + 0.02, num_groups=40)


def row(name: str, kind: Kind, point: Point) -> Row:
    values = {AUC: interval(point[0]), NDCG: interval(point[1])}
    values |= dict(zip(KEPT, (interval(point[1] / 0.8), interval(point[0] / 0.62)), strict=True))
    values |= {"relevance_teacher overall ndcg@10": interval(0.8), "engagement_teacher click auc": interval(0.62)}
    values |= {"relevance_teacher overall ece": interval(0.03), "engagement_teacher click ece": interval(0.01)}
    values |= {"student overall ece": interval(0.04), "student click ece": interval(0.02)}
    values |= {CHANGE + kept: interval(-0.005) for kept in KEPT if kind != "own"}
    return Row(name=name, kind=kind, num_pairs=1234, num_targets=3210, values=values, seeds=(point,))


ROWS = [
    row(OWN, "own", (0.6, 0.7)),
    row("mix 0.25 : 0.75", "sweep", (0.61, 0.65)),
    row("mix 0.75 : 0.25", "sweep", (0.59, 0.6)),
    row("hard grades", "ablation", (0.7, 0.9)),
]


def test_tables_tell_the_front_of_the_sweep_and_both_calibrations() -> None:
    text = tables(ROWS, steps=90, num_seeds=2, reference=REFERENCE)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert lines[OWN].endswith("| yes |") and lines["mix 0.25 : 0.75"].endswith("| yes |")
    assert not lines["mix 0.75 : 0.25"].endswith("| yes |"), "beaten in both figures"
    assert not lines["hard grades"].endswith("| yes |"), "an ablation is no point of the sweep"
    assert "| 1,234 | 3,210 | 0.7000 | 87.5% [85.5%, 89.5%] |  | 0.6000 |" in lines[OWN]
    assert "-0.5% [-2.5%, +1.5%]" in lines["hard grades"] and "| 0.0400 | 0.0200 |" in lines["hard grades"]
    assert "overall 0.0300, click 0.0100" in text and "NDCG@10 0.4000 of a random order" in text
    counts = {line.count("|") for line in text.splitlines() if line.startswith("| ")}
    assert len(counts) == 1, "every row has the columns of the heading"


def test_the_recipes_own_student_alone_has_its_table_and_its_row() -> None:
    text = tables(ROWS[:1], steps=90, num_seeds=1, reference=REFERENCE)
    assert sum(line.startswith(f"| {OWN} |") for line in text.splitlines()) == 1
    assert summary(ROWS[:1], command="x", reference=REFERENCE).endswith(" |")


def test_several_seeds_show_their_spread() -> None:
    twice = replace(ROWS[0], seeds=((0.59, 0.68), (0.61, 0.72)))
    text = tables([twice, ROWS[1]], steps=90, num_seeds=2, reference=REFERENCE)
    assert "| 3,210 | 0.7000 ± 0.0283 |" in text and "| 0.6000 ± 0.0141 |" in text
    assert "±" not in tables(ROWS, steps=90, num_seeds=1, reference=REFERENCE)


def test_the_summary_is_a_row_of_results() -> None:
    text = summary(ROWS, command="python -m bench.distill_sweep", reference=REFERENCE)
    assert text.startswith("| ") and text.endswith(" |") and text.count(" | ") == 4
    area = 0.1 * 0.3 + 0.01 * 0.25
    assert f"hypervolume {area:.5f}, {area / (0.12 * 0.4):.1%} of the two teachers'" in text
    assert "front: the recipe's own, mix 0.25 : 0.75;" in text and "greatest hypervolume of its own: the recipe" in text


def test_seeds_are_averaged_by_measure() -> None:
    found = averaged([ROWS[0].values, ROWS[1].values])
    assert found[NDCG].value == pytest.approx(0.675) and found[NDCG].low == pytest.approx(0.655)
    assert found[AUC].value == pytest.approx(0.605) and found[AUC].num_groups == 40


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    file = plot(ROWS, tmp_path / "plots" / "sweep.png", reference=REFERENCE)
    assert file.read_bytes().startswith(b"\x89PNG")
