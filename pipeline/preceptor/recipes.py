"""The shipped recipes: `tiny` (tests), `demo`, `jobmatch` and `headlines` (real data), `cluster` (GPUs)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from preceptor.contracts import OVERALL
from preceptor.errors import RecipeError
from preceptor.recipe import (
    POLICY_DIR,
    BackboneConfig,
    Blend,
    ClicksConfig,
    CorporaConfig,
    DistillConfig,
    EngineConfig,
    GateConfig,
    HeadlinesConfig,
    JobmatchConfig,
    JudgeConfig,
    LinearConfig,
    MarketConfig,
    MatchConfig,
    Mix,
    Recipe,
    ScoringConfig,
    TeacherConfig,
    TrainConfig,
)

DATA: Final = Path("data")

DEMO_MIX: Final = Mix(relevance=0.6, engagement=0.4)
"""The point of the demo's sweep that its student is taught at: ``python -m bench.distill_sweep`` draws the others
(docs/distillation.md, "Choosing the mix")."""


def tiny() -> Recipe:
    """Random weights and a handful of pairs: proves that every link holds, in about a minute; learns nothing."""
    backbone = BackboneConfig(source="random-tiny", max_prefix_tokens=48, max_document_tokens=64)
    train = TrainConfig(
        num_steps=4,
        groups_per_step=4,
        documents_per_group=4,
        learning_rate=1e-3,
        head_learning_rate=1e-3,
        warmup_steps=1,
        checkpoint_every=2,
        num_workers=1,
    )
    teacher = TeacherConfig(backbone=backbone, train=train)
    return Recipe(
        name="tiny",
        source=MarketConfig(num_queries=24, documents_per_query=4, num_requests=60, num_holdout_requests=60),
        policy=POLICY_DIR,
        labeller="judge",
        judge=JudgeConfig(kind="fake", model="fake", floor=-1.0, max_reject_share=0.5, num_calibration_pairs=40),
        relevance=teacher,
        engagement=teacher,
        distill=DistillConfig(
            num_layers=2,
            mix=Mix(relevance=0.5, engagement=0.5),
            blend=Blend(relevance=0.7, click=0.2, apply=0.1),
            train=train,
        ),
        gate=GateConfig(thresholds={}, num_bootstrap=100),
        num_tuned_pairs=40,
        check_vllm=False,
    )


def demo() -> Recipe:
    """SmolLM2-135M on the synthetic market: the whole path in minutes on two cores.

    The teachers start from the lowest 6 of its 30 layers: in the same training time they see about twice the pairs that
    10 layers do (bench/RESULTS.md). The relevance teacher is sharded over two workers, as on a cluster; the student
    trains with one worker of two threads, whose step takes 0.7 of the time on two cores (bench/train_step.py). The
    floor lies under what such a teacher reaches: 180 steps in float32 give a lower end of 0.25, 120 gave 0.18. A
    product would ask for far more. The engagement teacher is linear: clicks say little each, and in 40 steps a language
    model read 640 pairs of one noisy rate each and was at chance; this one reads all impressions in seconds.
    """
    backbone = BackboneConfig(source="smollm2-135m", num_layers=6, max_prefix_tokens=96, max_document_tokens=96)
    relevance = TrainConfig(
        num_steps=180,
        groups_per_step=2,
        learning_rate=5e-4,
        head_learning_rate=1e-3,
        checkpoint_every=60,
    )
    unsharded = replace(relevance, num_workers=1, num_steps=90, checkpoint_every=45)
    engine = EngineConfig(max_model_len=1536)
    return Recipe(
        name="demo",
        source=MarketConfig(num_queries=120, documents_per_query=8, num_requests=1200, num_holdout_requests=400),
        policy=POLICY_DIR,
        labeller="teacher",
        judge=JudgeConfig(
            kind="vllm",
            model="smollm2-135m",
            floor=0.2,
            max_reject_share=0.05,
            num_calibration_pairs=10,
            engine=engine,
        ),
        relevance=TeacherConfig(backbone=backbone, train=relevance, listwise=2.0),
        engagement=LinearConfig(),
        distill=DistillConfig(
            num_layers=3,
            mix=DEMO_MIX,
            blend=Blend(relevance=0.7, click=0.2, apply=0.1),
            train=unsharded,
            listwise=2.0,
        ),
        gate=GateConfig(
            thresholds={
                "relevance_teacher overall ndcg@10": 0.7,
                "student overall retention ndcg@10": 0.85,
                "student click retention auc": 0.85,
            },
            num_bootstrap=300,
        ),
        num_tuned_pairs=350,
    )


def jobmatch() -> Recipe:
    """Real occupations and postings (O*NET, ESCO, their crosswalk); clicks simulated. Reranks MiniLM's candidates.

    The relevance teacher matches texts, names, tasks and a posting's kin over MiniLM's embeddings and an adapter of
    them. A language model of 135 M parameters, tuned for 13 minutes in its place, stayed under MiniLM's own order
    (bench/RESULTS.md). The floor is low: 4 of 5 of the candidates that the teacher is calibrated on are not listed in
    the crosswalk and count as grade 0. A product would ask for far more. The engagement teacher is linear, as the
    demo's is and for its reasons: in 100 steps a language model was at chance here too. The student is a single layer,
    outside embeddings a third of MiniLM's parameters: it reads the retriever's signals at the end of a posting. It sees
    80,000 pairs in 8 minutes; five layers saw 4,000 in 7, and did not learn to weigh one number. Differences are in its
    lesson, for without them it left unread what only actions depend on, and the log-odds of actions themselves, for
    differences leave open how much more one query is clicked than another (bench/RESULTS.md).
    """
    backbone = BackboneConfig(source="smollm2-135m", num_layers=1, max_prefix_tokens=112, max_document_tokens=160)
    train = TrainConfig(
        num_steps=5000,
        groups_per_step=2,
        learning_rate=1e-3,
        head_learning_rate=1e-3,
        warmup_steps=20,
        num_workers=1,
        checkpoint_every=500,
    )
    recipe = demo()
    assert recipe.judge is not None and recipe.distill is not None
    return replace(
        recipe,
        name="jobmatch",
        source=JobmatchConfig(
            data=DATA,
            num_train_candidates=20,
            num_candidates=50,
            weak=("occupation_title", "posting_title"),
        ),
        judge=replace(recipe.judge, dimensions=(OVERALL,), floor=0.2),
        relevance=MatchConfig(),
        engagement=LinearConfig(),
        distill=replace(
            recipe.distill,
            num_layers=None,
            backbone=backbone,
            train=train,
            margin=0.1,
            action_margin=0.9,
            action_mse=0.3,
        ),
        gate=GateConfig(
            thresholds={"student overall retention ndcg@10": 0.8, "student click retention auc": 0.8},
        ),
        num_tuned_pairs=1500,
    )


def headlines() -> Recipe:
    """Real clicks on headlines under randomised exposure: the engagement teacher alone, learning within tests."""
    return Recipe(
        name="headlines",
        source=HeadlinesConfig(data=DATA),
        policy=POLICY_DIR,
        labeller="teacher",
        judge=None,
        relevance=None,
        engagement=LinearConfig(encoder="minilm", clicks=ClicksConfig(loss="within")),
        distill=None,
        gate=GateConfig(thresholds={}),
    )


def cluster() -> Recipe:
    """A 7B relevance teacher that labels, 1.7B engagement teacher, 0.6B student, on GPUs; a 32B judge is measured
    beside them as it comes. Written for cluster.yaml's node groups and not yet run on a GPU."""
    policy_teacher = TrainConfig(
        num_steps=4000,
        groups_per_step=128,
        documents_per_group=16,
        learning_rate=1e-5,
        head_learning_rate=1e-4,
        warmup_steps=200,
        num_workers=8,
        gpus_per_worker=1,
        cpus_per_worker=8,
        checkpoint_every=250,
        max_failures=3,
        feed="ray_data",
    )
    smaller = replace(policy_teacher, learning_rate=2e-5)
    lengths = {"max_prefix_tokens": 512, "max_document_tokens": 512}
    scoring = ScoringConfig(num_actors=8, gpus_per_actor=1, cpus_per_actor=4, requests_per_batch=64)
    return Recipe(
        name="cluster",
        source=MarketConfig(
            num_queries=500_000, documents_per_query=20, num_requests=5_000_000, num_holdout_requests=500_000
        ),
        policy=POLICY_DIR,
        labeller="teacher",
        judge=JudgeConfig(
            kind="vllm",
            model="Qwen/Qwen3-32B",
            floor=0.7,
            max_reject_share=0.01,
            num_calibration_pairs=1000,
            engine=EngineConfig(
                num_replicas=8,
                gpus_per_replica=2,
                cpus_per_replica=8,
                max_model_len=8192,
                max_num_batched_tokens=16384,
                enforce_eager=False,
                batch_size=256,
            ),
        ),
        relevance=TeacherConfig(
            backbone=BackboneConfig(source="Qwen/Qwen2.5-7B-Instruct", **lengths), train=policy_teacher, scoring=scoring
        ),
        engagement=TeacherConfig(
            backbone=BackboneConfig(source="Qwen/Qwen3-1.7B", **lengths), train=smaller, scoring=scoring
        ),
        distill=DistillConfig(
            backbone=BackboneConfig(source="Qwen/Qwen3-0.6B", **lengths),
            mix=Mix(relevance=0.6, engagement=0.4),
            blend=Blend(relevance=0.7, click=0.2, apply=0.1),
            train=smaller,
            scoring=scoring,
        ),
        gate=GateConfig(
            thresholds={
                "student overall retention ndcg@10": 0.97,
                "student click retention auc": 0.99,
                "student click ece": 0.02,
            }
        ),
        num_tuned_pairs=2000,
    )


SHIPPED: Final[dict[str, Callable[[], Recipe]]] = {
    "tiny": tiny,
    "demo": demo,
    "jobmatch": jobmatch,
    "headlines": headlines,
    "cluster": cluster,
}


def find_recipe(name: str) -> Recipe:
    """The shipped recipe `name`, or ``FILE.py:function`` of a user's own; RecipeError where there is none."""
    if name in SHIPPED:
        return SHIPPED[name]()
    file, colon, function = name.rpartition(":")
    if not colon or not Path(file).is_file():
        raise RecipeError(f"no recipe '{name}'; shipped: {', '.join(SHIPPED)}; or name your own as FILE.py:function.")
    spec = importlib.util.spec_from_file_location("preceptor_user_recipes", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    made = getattr(module, function, None)
    if made is None:
        raise RecipeError(f"{file}: no function '{function}'. Define it to return a Recipe.")
    recipe = made()
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{file}: {function}() returned {type(recipe).__name__}, not a Recipe.")
    return recipe


def with_data(recipe: Recipe, data: Path | None) -> Recipe:
    """The recipe reading its source from `data`; RecipeError where it has no such source."""
    if data is None:
        return recipe
    if isinstance(recipe.source, MarketConfig):
        raise RecipeError(f"recipe {recipe.name} makes its own data; --data goes with jobmatch or headlines.")
    if isinstance(recipe.source, CorporaConfig):
        raise RecipeError(f"recipe {recipe.name} names its corpora itself; --data goes with jobmatch or headlines.")
    return replace(recipe, source=replace(recipe.source, data=data))
