"""The `headline_report` stage: how well the engagement teacher tells clicked headlines, over all and within tests.

An impression is a row: a headline shown n times and clicked c times is c positives and n - c negatives. Within a test
the readers were drawn at random, so there a difference is the headline's; over all tests it may be the topic's or the
day's. Tests of a single headline have nothing to order and count over all only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preceptor.contracts import COUNTS, PAIRS, read_table, rows_to_table, write_table
from preceptor.errors import InputError
from preceptor.evaluation.holdout import Predictions
from preceptor.evaluation.metrics import Floats, Interval, auc, bootstrap, pair_wins, rows_by_group
from preceptor.evaluation.sheets import METRIC, Sheet, interval_words, write_text
from preceptor.record import Record, begin
from preceptor.sources.tables import HEADLINE_AUCS

_SYSTEMS: Final = {
    "engagement_teacher": "engagement teacher",
    "tfidf_logistic": "TF-IDF + logistic regression",
    "own_rate": "a headline's own observed rate (optimistic ceiling: it has seen the clicks)",
}
_CAPTION: Final = (
    "Impression-weighted AUC on held-out tests, with 95 % bootstrap intervals over tests. Headlines, impressions and "
    "clicks are real and exposure was randomised within a test (Upworthy Research Archive); there is neither query "
    "nor member. Within tests means those of two headlines or more; a headline ties with itself, which keeps even a "
    "perfect order well under 1."
)


@dataclass(frozen=True, kw_only=True)
class HeadlineReportConfig:
    """How intervals are drawn."""

    num_bootstrap: int = 1000
    seed: int = 11


@dataclass(frozen=True, kw_only=True)
class Exposed:
    """Headlines with what happened to each: click rates, and how often shown. All arrays are [num_headlines]."""

    texts: tuple[str, ...]
    pair_ids: pa.ChunkedArray
    tests: pa.ChunkedArray
    rates: Floats
    num_shown: Floats


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The AUC of one system over all headlines, and over those of one and the same test of two or more."""

    system: str
    all: Interval
    within_tests: Interval


INVERSE_PENALTIES: Final = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Values tried for the C of the logistic regression, the strongest penalty first; the first of equals wins."""

DEFAULTS: Final = HeadlineReportConfig()


def headline_report(*, corpus: Record, scores: Record, config: HeadlineReportConfig = DEFAULTS, out: Path) -> Record:
    """The record of the table of AUCs in `out`: ``headlines.parquet`` (HEADLINE_AUCS) and ``table.md``.

    `corpus` is a finished headlines stage, `scores` the engagement teacher's prediction stage, with head 'click' for
    every holdout headline. Raises InputError where scores lack, or where a split has no headline or no click.
    """
    run = begin("headline_report", config, out=out, inputs={"corpus": corpus, "scores": scores})
    if run.record is not None:
        return run.record
    held_out = exposed(corpus, "holdout")
    systems = {
        "engagement_teacher": Predictions(file=scores.path / "scores").of("click", held_out.pair_ids)[:, 0],
        "tfidf_logistic": tfidf_logistic(exposed(corpus, "train"), exposed(corpus, "calibration"), held_out.texts),
        "own_rate": held_out.rates,
    }
    measured = [measure(name, ranked, held_out, config) for name, ranked in systems.items()]
    num_headlines = len(held_out.texts)
    rows = [row for item in measured for row in _rows(item)]
    write_table(rows_to_table(rows, HEADLINE_AUCS), out / "headlines.parquet", HEADLINE_AUCS)
    sheet = headline_sheet(measured)
    write_text(out / "table.md", sheet.markdown())
    return run.finish(
        num_rows_in=num_headlines,
        num_rows_kept=num_headlines,
        metrics={
            METRIC: sheet.as_metric(),
            "values": {f"{row['system']} {row['scope']}": row["auc"] for row in rows},
            "num_impressions": int(held_out.num_shown.sum()),
        },
    )


def exposed(corpus: Record, split: str) -> Exposed:
    """The headlines of `split` with their counts; InputError where it has none, or none was ever clicked."""
    counts = read_table(corpus.path / "counts", COUNTS)
    counts = counts.filter(pc.equal(counts["split"], split))
    pairs = read_table(corpus.path / "pairs", PAIRS).select(["pair_id", "query_id", "document"])
    joined = counts.join(pairs, keys="pair_id", join_type="inner").sort_by("pair_id")
    shown = joined["num_shown"].to_numpy().astype(np.float64)
    clicks = joined["num_clicks"].to_numpy().astype(np.float64)
    if not 0 < clicks.sum() < shown.sum():
        raise InputError(
            f"{corpus.path / 'counts'}: an AUC needs clicks and impressions without one in split '{split}', got "
            f"{clicks.sum():,.0f} clicks of {shown.sum():,.0f}. Bring more tests."
        )
    return Exposed(
        texts=tuple(joined["document"].to_pylist()),
        pair_ids=joined["pair_id"],
        tests=joined["query_id"],
        rates=clicks / shown,
        num_shown=shown,
    )


def tfidf_logistic(train: Exposed, calibration: Exposed, texts: Sequence[str]) -> Floats:
    """Log-odds of a click for each of `texts`, [len(texts)], by logistic regression on the TF-IDF of words.

    Fitted on `train`, where every impression is a row: a headline counts as a clicked one and as an unclicked one,
    weighted by how often it was which. Weights average 1 over headlines, or the L2 penalty would vanish beside
    millions of impressions. Its strength is the one of INVERSE_PENALTIES with the best AUC on `calibration`, which is
    worth much: on the Upworthy archive 0.558 on holdout against 0.514 for scikit-learn's default of 1.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    words = vectorizer.fit_transform(train.texts)
    share = train.num_shown / train.num_shown.mean()
    labels = np.repeat([1, 0], len(train.texts))
    weights = np.concatenate([share * train.rates, share * (1 - train.rates)])
    twice = words[np.tile(np.arange(len(train.texts)), 2)]
    models = [
        LogisticRegression(C=inverse, max_iter=1000).fit(twice, labels, sample_weight=weights)
        for inverse in INVERSE_PENALTIES
    ]
    seen = vectorizer.transform(calibration.texts)
    best = max(models, key=lambda model: auc(calibration.rates, model.decision_function(seen), calibration.num_shown))
    return np.asarray(best.decision_function(vectorizer.transform(texts)), dtype=np.float64)


def measure(system: str, scores: Floats, headlines: Exposed, config: HeadlineReportConfig) -> Measured:
    """Both AUCs of `scores`, [num_headlines], with intervals over resamples of whole tests."""
    tests = rows_by_group(headlines.tests.to_numpy())
    wins = np.array(
        [pair_wins(headlines.rates[rows], scores[rows], headlines.num_shown[rows]) for rows in tests if len(rows) > 1]
    ).reshape(-1, 2)
    test_of = np.empty(len(scores), dtype=np.int64)
    for number, rows in enumerate(tests):
        test_of[rows] = number

    def over_all(drawn: Sequence[int]) -> float:
        times = np.bincount(drawn, minlength=len(tests))
        return auc(headlines.rates, scores, headlines.num_shown * times[test_of])

    def within(drawn: Sequence[int]) -> float:
        won, num_pairs = wins[list(drawn)].sum(axis=0)
        return float(won / num_pairs) if num_pairs > 0 else float("nan")

    return Measured(
        system=system,
        all=bootstrap(over_all, range(len(tests)), num=config.num_bootstrap, seed=config.seed),
        within_tests=bootstrap(within, range(len(wins)), num=config.num_bootstrap, seed=config.seed),
    )


def headline_sheet(measured: Sequence[Measured]) -> Sheet:
    """The AUCs in words, one system a row."""
    return Sheet(
        title="Headlines: AUC of clicks on held-out tests",
        caption=_CAPTION,
        header=("system", "AUC over all", "interval", "AUC within tests", "interval", "tests"),
        rows=tuple(
            (
                _SYSTEMS[item.system],
                *interval_words(item.all),
                *interval_words(item.within_tests),
                f"{item.all.num_groups:,}, of them {item.within_tests.num_groups:,} with two headlines or more",
            )
            for item in measured
        ),
    )


def _rows(item: Measured) -> list[dict[str, object]]:
    return [
        {
            "system": item.system,
            "scope": scope,
            "auc": interval.value,
            "low": interval.low,
            "high": interval.high,
            "num_tests": interval.num_groups,
        }
        for scope, interval in (("all", item.all), ("within_tests", item.within_tests))
    ]
