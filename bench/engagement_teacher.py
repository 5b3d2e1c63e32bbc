"""The engagement teacher: what correcting for position, loss and calibration are worth, each against the plain one.

    .venv/bin/python -m bench.engagement_teacher [--quick]
    .venv/bin/python -m bench.engagement_teacher --headlines DIR [--dev]

On the synthetic market the truth is known: teachers learn from traffic that a ranker ordered and are measured on
traffic in random order, for queries they have not seen. Rankers, each with noise: `engaged`, the market's own, orders
by attraction and words; `lexical` by words; `suitable` by grade; `modest` against shine. Every teacher is the linear
one, so that only the correction differs; intervals are paired bootstraps over holdout queries of the mean over seeds.
On real headlines (the folder of headline_tests.parquet) teachers are compared on train tests by cross-validation;
`--dev` then measures the dev tests.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from preceptor.evaluation.metrics import auc, bootstrap, ece, rows_by_group
from preceptor.market import clicks
from preceptor.market.groups import Group, generate_group
from preceptor.policy import load_policy
from preceptor.ranker.isotonic import fit_isotonic
from preceptor.recipe import ClicksConfig, LinearConfig, Negatives, PositionBias
from preceptor.recipes import demo
from preceptor.teachers.engagement import MIN_PROPENSITY, examination
from preceptor.teachers.linear import fit_head, pair_features
from preceptor.teachers.linear_stage import lessons

Floats = NDArray[np.float64]
Order = Callable[[random.Random, Group], list[int]]
Rows = list[dict[str, Any]]

ARMS: Final[tuple[PositionBias, ...]] = (
    "ignored",
    "known",
    "harvested",
    "em",
    "regression_em",
    "additive_tower",
    "factorised_tower",
)
NEGATIVES: Final[tuple[Negatives, ...]] = ("shown", "clicked", "sampled")
PENALTIES: Final = (10.0, 3.0, 1.0, 0.3)
MARKET_SEED: Final = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1000, help="queries of the market, 10 postings each")
    parser.add_argument("--requests", type=int, default=3000, help="logged requests of a seed")
    parser.add_argument("--seeds", type=int, default=2, help="draws of traffic")
    parser.add_argument("--rankers", nargs="+", default=list(RANKERS), choices=list(RANKERS))
    parser.add_argument("--headlines", type=Path, help="folder of headline_tests.parquet: measure headlines instead")
    parser.add_argument("--dev", action="store_true", help="with --headlines: measure the dev tests as well")
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds; its figures say nothing")
    arguments = parser.parse_args()
    started_s = time.monotonic()
    if arguments.headlines is not None:
        from bench.peers.headline_teachers import headline_table

        headline_table(arguments.headlines, dev=arguments.dev, quick=arguments.quick)
    else:
        num_queries, num_requests, seeds = arguments.queries, arguments.requests, arguments.seeds
        if arguments.quick:
            num_queries, num_requests, seeds = 120, 1000, 1
        market = Market.made(num_queries)
        for ranker in arguments.rankers:
            market_table(market, ranker, num_requests=num_requests, num_seeds=seeds)
    print(f"\n{time.monotonic() - started_s:.0f} s")


def _by(score: Callable[[Any, Group], float], noise: float) -> Order:
    def order(rng: random.Random, group: Group) -> list[int]:
        scores = [score(item, group) + rng.gauss(0, noise) for item in group.candidates]
        return sorted(range(len(scores)), key=lambda index: -scores[index])

    return order


def _overlap(item: Any, group: Group) -> float:
    return clicks.word_overlap(group.ask.query_text, item.pair["document"])


def _engaged(rng: random.Random, group: Group) -> list[int]:
    attractions = [clicks.attraction(item.overall, item.posting) for item in group.candidates]
    return clicks.logged_order(rng, attractions, [_overlap(item, group) for item in group.candidates])


RANKERS: Final[Mapping[str, Order]] = {
    "engaged": _engaged,
    "lexical": _by(_overlap, 0.25),
    "suitable": _by(lambda item, group: item.overall / 4, 0.25),
    "modest": _by(lambda item, group: -clicks.shine(item.posting), 0.25),
}


@dataclass(frozen=True, kw_only=True)
class Market:
    """All candidates of the market, by split, with their features."""

    groups: Mapping[str, Sequence[Group]]
    pairs: Mapping[str, Mapping[str, str]]
    number: Mapping[str, int]
    features: Any

    @classmethod
    def made(cls, num_queries: int) -> Market:
        """A market of `num_queries` queries."""
        rubric = load_policy(demo().policy).rubric
        made = [generate_group(i, seed=MARKET_SEED, num_documents=10, rubric=rubric) for i in range(num_queries)]
        pairs = {item.pair["pair_id"]: item.pair for group in made for item in group.candidates}
        return cls(
            groups={split: [g for g in made if g.ask.split == split] for split in ("train", "calibration", "holdout")},
            pairs=pairs,
            number={pair_id: index for index, pair_id in enumerate(pairs)},
            features=pair_features(list(pairs.values()), LinearConfig()),
        )

    def traffic(self, split: str, order: Order, *, num_requests: int, seed: int) -> Rows:
        """Exposures of `num_requests` requests drawn from the split's queries, shown in `order`."""
        rng = random.Random(f"{split}/{seed}")
        rows: Rows = []
        for _ in range(num_requests):
            group = rng.choice(self.groups[split])
            for position, index in enumerate(order(rng, group), start=1):
                item = group.candidates[index]
                response = clicks.respond(
                    rng,
                    position=position,
                    attracted=clicks.attraction(item.overall, item.posting),
                    applies=clicks.application(item.overall, item.grades["credentials"]),
                )
                rows.append(
                    {
                        "pair_id": item.pair["pair_id"],
                        "position": position,
                        "shown": 1.0,
                        "examined": max(clicks.propensity(position), MIN_PROPENSITY),
                        "click": float(response.click),
                        "apply": float(response.apply),
                    }
                )
        return rows

    def learnt(self, shown: Rows, config: LinearConfig, action: str) -> Floats:
        """The logits [all pairs] of a head that learnt `action` from `shown`."""
        pair_ids = sorted({row["pair_id"] for row in shown})
        lesson = lessons(shown, pair_ids, self.pairs, config)[action]
        features = self.features[[self.number[pair_id] for pair_id in pair_ids]]
        head = fit_head(features, lesson, config)
        return np.asarray(self.features @ head.weights_F + head.constant)


def _uniform(rng: random.Random, group: Group) -> list[int]:
    return clicks.uniform_order(rng, len(group.candidates))


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Unbiased traffic as arrays."""

    pair_N: NDArray[np.int64]
    query_N: NDArray[np.int64]
    propensity_N: Floats
    taken: Mapping[str, Floats]

    @classmethod
    def of(cls, rows: Rows, market: Market) -> Seen:
        """The rows as arrays."""
        queries = {name: number for number, name in enumerate(sorted({p["query_id"] for p in market.pairs.values()}))}
        return cls(
            pair_N=np.array([market.number[row["pair_id"]] for row in rows]),
            query_N=np.array([queries[market.pairs[row["pair_id"]]["query_id"]] for row in rows]),
            propensity_N=np.array([row["examined"] for row in rows]),
            taken={action: np.array([row[action] for row in rows]) for action in ("click", "apply")},
        )


def configs() -> Iterator[tuple[str, str, LinearConfig]]:
    """(name, action, config) of every teacher."""
    for arm in ARMS:
        taught = ClicksConfig(position_bias=arm, weight="shown")
        yield arm, "click", LinearConfig(clicks=taught, penalties=PENALTIES)
    yield "known, weighed by examined", "click", LinearConfig(clicks=ClicksConfig(), penalties=PENALTIES)
    for negatives in NEGATIVES:
        taught = ClicksConfig(negatives=negatives, negative_share=0.25, weight="shown")
        yield f"apply, negatives {negatives}", "apply", LinearConfig(clicks=taught, penalties=PENALTIES)


def market_table(market: Market, ranker: str, *, num_requests: int, num_seeds: int) -> None:
    """Print the ranker's table: AUC of every teacher, its difference to the uncorrected, curves, calibration."""
    found: dict[str, list[Floats]] = {name: [] for name, _, _ in configs()}
    curves: dict[str, list[Floats]] = {}
    errors: dict[str, list[float]] = {"before": [], "after": []}
    truth = np.array([clicks.propensity(position) for position in range(1, 11)])
    unbiased = Seen.of(market.traffic("holdout", _uniform, num_requests=2 * num_requests, seed=0), market)
    for seed in range(1, num_seeds + 1):
        shown = market.traffic("train", RANKERS[ranker], num_requests=num_requests, seed=seed)
        for name, action, config in configs():
            found[name].append(market.learnt(shown, config, action))
            if config.clicks.position_bias in ("harvested", "em", "regression_em"):
                curves.setdefault(name, []).append(examination(shown, config.clicks, market.pairs))
        held_out = market.traffic("calibration", RANKERS[ranker], num_requests=num_requests // 2, seed=seed)
        for when, value in calibration_errors(market, found["known"][-1], held_out, unbiased):
            errors[when].append(value)
    num_shown = num_requests * 10
    print(f"\nranker {ranker}: {num_shown:,} logged impressions, {num_seeds} seeds; AUC on unbiased traffic")
    print_arms(found, unbiased)
    for name, estimates in curves.items():
        off = max(float(np.abs(curve - truth[: len(curve)]).max()) for curve in estimates)
        print(f"{name}: examination {np.mean(estimates, axis=0).round(3).tolist()}, largest error {off:.3f}")
    print("known, click ECE at the position shown: " + ", ".join(f"{w} {np.mean(v):.4f}" for w, v in errors.items()))


def print_arms(found: Mapping[str, Sequence[Floats]], unbiased: Seen) -> None:
    """A line for each teacher: the mean AUC over seeds, and the paired difference to the first of its action."""
    queries = rows_by_group(unbiased.query_N)
    number_N = np.empty(len(unbiased.query_N), dtype=np.int64)
    for number, rows in enumerate(queries):
        number_N[rows] = number
    for name, action, _ in configs():
        plain = "ignored" if action == "click" else "apply, negatives shown"
        labels = unbiased.taken[action]

        def mean_auc(system: str, weights: Floats, labels: Floats = labels) -> float:
            return float(np.mean([auc(labels, logits[unbiased.pair_N], weights) for logits in found[system]]))

        def statistic(drawn: Sequence[int], name: str = name, of: Any = mean_auc) -> float:
            return float(of(name, np.bincount(drawn, minlength=len(queries))[number_N]))

        def difference(drawn: Sequence[int], name: str = name, plain: str = plain, of: Any = mean_auc) -> float:
            weights = np.bincount(drawn, minlength=len(queries))[number_N]
            return float(of(name, weights) - of(plain, weights))

        whole = bootstrap(statistic, range(len(queries)), num=200, seed=11)
        paired = bootstrap(difference, range(len(queries)), num=200, seed=11)
        print(
            f"{name:<28} {whole.value:.4f} [{whole.low:.4f}, {whole.high:.4f}]  "
            f"{paired.value:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]"
        )


def calibration_errors(market: Market, logits: Floats, held_out: Rows, unbiased: Seen) -> Iterator[tuple[str, float]]:
    """The ECE of click probabilities on unbiased traffic before isotonic calibration and after it."""
    seen = Seen.of(held_out, market)
    calibrated = fit_isotonic(logits[seen.pair_N], seen.taken["click"], seen.propensity_N, np.ones(len(seen.pair_N)))
    for when, mapped in (("before", logits), ("after", calibrated(logits))):
        probs = unbiased.propensity_N / (1 + np.exp(-mapped[unbiased.pair_N]))
        yield when, ece(unbiased.taken["click"], probs)


if __name__ == "__main__":
    main()
