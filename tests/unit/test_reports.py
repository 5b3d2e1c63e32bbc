"""The report stages of the real sources, on small corpora that each test writes itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preceptor.contracts import COUNTS, PAIRS, TEACHER_SCORES, read_table, rows_to_table, write_table
from preceptor.errors import InputError
from preceptor.evaluation.metrics import Interval, auc
from preceptor.evaluation.report import write_report
from preceptor.evaluation.sheets import Sheet, interval_words, sheets_of
from preceptor.ranker.score_stage import collect_pairs
from preceptor.recipe import POLICY_DIR, HeadlinesConfig
from preceptor.record import Record, begin, read_record
from preceptor.sources.headline_report import HeadlineReportConfig, exposed, headline_report, tfidf_logistic
from preceptor.sources.headlines import headlines
from preceptor.sources.jobmatch import jobmatch
from preceptor.sources.jobmatch_eval import read_queries, rerank_ndcg
from preceptor.sources.rerank_report import RerankConfig, expected_gains, rerank_report
from preceptor.sources.tables import HEADLINE_AUCS, RANKINGS
from tests.unit import source_data as builders

RERANK = RerankConfig(num_bootstrap=30)
HEADLINE = HeadlineReportConfig(num_bootstrap=30)


def write_scores(out: Path, rows: Iterable[Mapping[str, Any]]) -> Record:
    run = begin("score", RERANK, out=out)
    named = [{"teacher": out.parent.name, **row} for row in rows]
    write_table(rows_to_table(named, TEACHER_SCORES), out / "scores" / "part-0.parquet", TEACHER_SCORES)
    return run.finish()


def record_of(out: Path) -> Record:
    record = read_record(out)
    assert record is not None
    return record


# rerank_report


@pytest.fixture(scope="module", params=[20, 25], ids=["20 candidates", "25 candidates"])
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("rerank")
    config = builders.config_for(builders.write_data(folder / "data"), num_candidates=request.param)
    return jobmatch(config, policy=POLICY_DIR, out=folder / "corpus" / "v1", encode=builders.word_encoder)


def grade_rows(corpus: Record, *, splits: Sequence[str], sign: int = 1) -> list[dict[str, Any]]:
    """Logits that put nearly all mass on the true grade, or with `sign` -1 on what is 4 minus it."""
    return [
        {
            "pair_id": pair_id,
            "head": "overall",
            "logits": [-9.0 * abs(level - (grade if sign > 0 else 4 - grade)) for level in range(5)],
        }
        for query in read_queries(corpus.path)
        if query.split in splits
        for pair_id, key in zip(query.pair_ids, query.document_keys, strict=True)
        for grade in [query.grades.get(key, 0)]
    ]


SCORED = ("calibration", "holdout")


def test_the_rerank_table_holds_what_rerank_ndcg_measures(corpus: Record, tmp_path: Path) -> None:
    good = write_scores(tmp_path / "teacher" / "v1", grade_rows(corpus, splits=SCORED))
    bad = write_scores(tmp_path / "student" / "v1", grade_rows(corpus, splits=SCORED, sign=-1))
    record = rerank_report(corpus=corpus, teacher=good, student=bad, config=RERANK, out=tmp_path / "report" / "v1")
    rows = read_table(record.path / "rerank.parquet", RANKINGS).to_pylist()
    expected = rerank_ndcg(
        corpus.path,
        {"relevance_teacher": expected_gains(good), "student": expected_gains(bad)},
        num_bootstrap=30,
    )
    assert [(row["slice"], row["system"], row["ndcg"], row["low"], row["high"]) for row in rows] == [
        (item.slice, item.system, item.ndcg.value, item.ndcg.low, item.ndcg.high) for item in expected
    ]
    values = record.metrics["values"]
    for slice_ in ("title_description", "reported_title"):
        assert values[f"{slice_} relevance_teacher"] >= values[f"{slice_} minilm"] > values[f"{slice_} student"]
        assert values[f"{slice_} student + similarity"] > values[f"{slice_} student"]
    assert record.num_rows_kept == 8


def test_the_rerank_page_names_query_system_interval_and_what_is_real(corpus: Record, tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "scores" / "v1", grade_rows(corpus, splits=SCORED))
    record = rerank_report(corpus=corpus, teacher=scores, student=scores, config=RERANK, out=tmp_path / "out" / "v1")
    page = (record.path / "table.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert lines[0] == "| query | system | NDCG@10 | interval | over MiniLM, paired | queries |"
    assert len(lines) == 2 + 2 * 6
    assert lines[2].startswith("| title + description | tfidf | 0.") and lines[2].endswith("] | 4 |")
    assert lines[-1].startswith("| one reported title | student + similarity (weight ")
    assert "real" in page and "simulated" in page and "assumption" in page
    assert sheets_of({"rerank_report": record_of(record.path)}) == sheets_of({"rerank_report": record})


def test_a_student_without_calibration_scores_is_refused(corpus: Record, tmp_path: Path) -> None:
    teacher = write_scores(tmp_path / "teacher" / "v1", grade_rows(corpus, splits=SCORED))
    student = write_scores(tmp_path / "student" / "v1", grade_rows(corpus, splits=("holdout",)))
    out = tmp_path / "out" / "v1"
    with pytest.raises(InputError, match=r"student: no score for .* of a calibration query") as caught:
        rerank_report(corpus=corpus, teacher=teacher, student=student, config=RERANK, out=out)
    assert "\n" not in str(caught.value)
    assert read_record(out) is None


def test_a_finished_rerank_report_is_not_measured_again(corpus: Record, tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "scores" / "v1", grade_rows(corpus, splits=SCORED))
    parts: dict[str, Any] = {"corpus": corpus, "teacher": scores, "student": scores, "out": tmp_path / "out" / "v1"}
    first = rerank_report(**parts, config=RERANK)
    (scores.path / "scores" / "part-0.parquet").unlink()
    assert rerank_report(**parts, config=RERANK).fingerprint == first.fingerprint


# headline_report

NUM_TESTS = 60


@pytest.fixture(scope="module")
def headline_corpus(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Tests of three headlines, of which the one with 'wonder' is clicked most; every fifth test is held out."""
    folder = tmp_path_factory.mktemp("headlines")
    rows = []
    for test in range(NUM_TESTS):
        split = "dev" if test % 5 == 0 else "train"
        for arm, (word, clicks) in enumerate((("wonder", 30), ("story", 12), ("report", 3))):
            rows.append(builders.headline_row(f"t{test}", f"A {word} of {test} and {arm}", 100 + arm, clicks, split))
    rows.append(builders.headline_row("alone", "Only one", 5000, 4000, "dev"))
    data = builders.write_headlines(folder / "data", rows)
    return headlines(HeadlinesConfig(data=data), out=folder / "corpus" / "v1")


def click_rows(corpus: Record, *, sign: float = 1.0) -> list[dict[str, Any]]:
    counts = read_table(corpus.path / "counts", COUNTS).to_pylist()
    return [
        {"pair_id": row["pair_id"], "head": "click", "logits": [sign * row["num_clicks"] / row["num_shown"]]}
        for row in counts
        if row["split"] == "holdout"
    ]


def by_impression(rates: np.ndarray, scores: np.ndarray, shown: np.ndarray) -> tuple[float, int]:
    """Wins and pairs over single impressions, counted one by one."""
    num_clicks = np.round(rates * shown).astype(np.int64)
    num_ignored = shown.astype(np.int64) - num_clicks
    left, right = np.repeat(scores, num_clicks)[:, None], np.repeat(scores, num_ignored)[None, :]
    return float((left > right).sum() + (left == right).sum() / 2), left.size * right.size


def test_headline_aucs_equal_a_count_over_single_impressions(headline_corpus: Record, tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "scores" / "v1", click_rows(headline_corpus))
    record = headline_report(corpus=headline_corpus, scores=scores, config=HEADLINE, out=tmp_path / "out" / "v1")
    rows = read_table(record.path / "headlines.parquet", HEADLINE_AUCS).to_pylist()
    found = {(row["system"], row["scope"]): row for row in rows}
    held_out = exposed(headline_corpus, "holdout")
    wins = pairs = 0.0
    for test in set(held_out.tests.to_pylist()):
        rows_of = np.flatnonzero(np.array(held_out.tests.to_pylist()) == test)
        if len(rows_of) > 1:
            rates, shown = held_out.rates[rows_of], held_out.num_shown[rows_of]
            won, num_pairs = by_impression(rates, rates, shown)
            wins, pairs = wins + won, pairs + num_pairs
    for system in ("engagement_teacher", "own_rate"):
        assert found[system, "within_tests"]["auc"] == pytest.approx(wins / pairs)
        assert found[system, "all"]["auc"] == pytest.approx(auc(held_out.rates, held_out.rates, held_out.num_shown))
        assert found[system, "all"]["num_tests"] == 13 and found[system, "within_tests"]["num_tests"] == 12
    assert 0.5 < found["tfidf_logistic", "within_tests"]["auc"] <= found["own_rate", "within_tests"]["auc"] + 1e-9
    page = (record.path / "table.md").read_text()
    assert "optimistic ceiling" in page and "clicks are real" in page and "randomised" in page


def test_a_reversed_teacher_orders_worse_than_chance(headline_corpus: Record, tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "scores" / "v1", click_rows(headline_corpus, sign=-1.0))
    record = headline_report(corpus=headline_corpus, scores=scores, config=HEADLINE, out=tmp_path / "out" / "v1")
    values = record.metrics["values"]
    assert values["engagement_teacher all"] == pytest.approx(1 - values["own_rate all"])
    assert values["engagement_teacher within_tests"] < 0.5


def test_the_word_baseline_learns_from_train_tests_alone(headline_corpus: Record) -> None:
    train, calibration = exposed(headline_corpus, "train"), exposed(headline_corpus, "calibration")
    texts = ["A wonder of 7", "A story of 7", "A report of 7"]
    ranked = tfidf_logistic(train, calibration, texts)
    assert list(np.argsort(-ranked)) == [0, 1, 2]
    swapped = replace(train, rates=1 - train.rates)
    assert list(np.argsort(tfidf_logistic(swapped, replace(calibration, rates=1 - calibration.rates), texts))) == [
        0,
        1,
        2,
    ]


def test_missing_click_scores_are_counted(headline_corpus: Record, tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "scores" / "v1", click_rows(headline_corpus)[2:])
    with pytest.raises(InputError, match=r"no 'click' logits for 2 of 37 holdout pairs"):
        headline_report(corpus=headline_corpus, scores=scores, config=HEADLINE, out=tmp_path / "out" / "v1")


def test_a_split_without_clicks_is_refused(tmp_path: Path) -> None:
    rows = [builders.headline_row(f"t{test}", f"Story {test}", 100, 0, "train") for test in range(30)]
    data = builders.write_headlines(tmp_path / "data", rows)
    corpus = headlines(HeadlinesConfig(data=data), out=tmp_path / "corpus" / "v1")
    with pytest.raises(InputError, match=r"counts: an AUC needs clicks .* split 'holdout', got 0 clicks of 0"):
        exposed(corpus, "holdout")
    with pytest.raises(InputError, match=r"split 'train', got 0 clicks of"):
        exposed(corpus, "train")


def test_shown_holdout_means_counts_where_requests_are_not_known(headline_corpus: Record) -> None:
    pairs = collect_pairs(headline_corpus, ("shown holdout",))
    held_out = [
        row["pair_id"]
        for row in read_table(headline_corpus.path / "pairs", PAIRS).to_pylist()
        if row["split"] == "holdout"
    ]
    assert len(held_out) == 37
    assert {row["pair_id"] for row in pairs} == set(held_out)


# sheets


def test_report_html_shows_the_tables_of_records(headline_corpus: Record, tmp_path: Path) -> None:
    sheet = Sheet(title="T & U", caption="real clicks", header=("system", "AUC"), rows=(("a|b <i>", "0.512"),))
    record = replace(headline_corpus, metrics={"sheet": sheet.as_metric()})
    file = write_report(
        tmp_path / "r.html", title="t", records={"x": record}, gate=None, plots=None, notes=[], examples=[]
    )
    page = file.read_text()
    for words in ("T &amp; U", "real clicks", '<th scope="col">AUC</th>', "<td>a|b &lt;i&gt;</td>", "<td>0.512</td>"):
        assert words in page
    assert "| a\\|b <i> | 0.512 |" in sheet.markdown()


def test_an_undefined_interval_is_said() -> None:
    nan = float("nan")
    assert interval_words(Interval(value=0.5, low=0.25, high=0.75, num_groups=3)) == ("0.500", "[0.250, 0.750]")
    assert interval_words(Interval(value=0.5, low=nan, high=nan, num_groups=3)) == ("0.500", "")
    assert interval_words(Interval(value=nan, low=nan, high=nan, num_groups=0)) == ("undefined", "")
