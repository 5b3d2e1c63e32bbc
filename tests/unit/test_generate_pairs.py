"""Own corpora: which queries are written and accepted, what the index finds, and which documents are chosen.

All texts here are synthetic.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from preceptor.contracts import content_id, split_of
from preceptor.generate import index as index_module
from preceptor.generate.drafts import DRAFTS, draw, quotas
from preceptor.generate.index import IndexWork, build_index, nearest, open_index
from preceptor.generate.queries import COPIED, EMPTY, OVER_LONG, accept, fault_of, write_queries
from preceptor.generate.screen import PERSONAL
from preceptor.generate.select import (
    HIGH_RANK,
    OTHER_PLACE,
    OTHER_TITLE,
    SOURCE,
    Pool,
    Scale,
    choose,
    kind_of_difference,
    share_out,
)
from preceptor.generate.templates import spoken_place, spoken_title, write_by_rule
from preceptor.generate.texts import TEXTS, Mapped, save_vectors, write_ipc
from preceptor.generate.writer import one_line
from preceptor.recipe import CorporaConfig, CorpusFile, QueryStyle

REGIONS = ("US", "GB")


def config_of(**changes: Any) -> CorporaConfig:
    columns = {"text": "body", "title": "job", "place": "town", "skills": "tags"}
    return CorporaConfig(postings=CorpusFile(source="a.parquet", columns=columns), **changes)


# Queries


def texts_file(folder: Path, num: int = 60) -> Path:
    rows = [
        {
            "row": n,
            "title": f"Role{n % 40}",
            "place": f"Town{n % 7}" if n % 3 else "",
            "skills": ["a", "b"],
            "text": f"t {n}",
        }
        for n in range(num)
    ]
    batches = [pa.RecordBatch.from_pylist(rows[start : start + 16], schema=TEXTS) for start in range(0, num, 16)]
    return write_ipc(batches, folder / "postings.arrow", TEXTS)


def test_rows_of_a_mapped_file_come_in_the_order_asked(tmp_path: Path) -> None:
    texts = Mapped(texts_file(tmp_path))
    assert (texts.num_batches, texts.num_rows, texts.start(1)) == (4, 60, 16)
    assert [row["row"] for row in texts.take([40, 3, 40, 0], ["row"])] == [40, 3, 40, 0]
    assert texts.take([], ["row"]) == []


def test_quotas_hold_and_drafts_have_the_fields_their_style_needs(tmp_path: Path) -> None:
    texts = Mapped(texts_file(tmp_path))
    config = config_of(num_queries=33)
    assert sum(quotas(config, "postings").values()) == 33
    draw(config, {"postings": texts}, tmp_path / "drafts.arrow")
    drafts = Mapped(tmp_path / "drafts.arrow")
    rows = pa.Table.from_batches([drafts.batch(n) for n in range(drafts.num_batches)], schema=DRAFTS).to_pylist()
    assert [row["draft"] for row in rows] == list(range(len(rows)))
    assert all(row["place"] for row in rows if row["style"] == "title_place")
    assert all(count >= quotas(config, "postings")[style] for style, count in Counter(r["style"] for r in rows).items())
    draw(config, {"postings": texts}, tmp_path / "again.arrow")
    assert (tmp_path / "again.arrow").read_bytes() == (tmp_path / "drafts.arrow").read_bytes()


def test_accepted_queries_fill_the_quotas_and_each_is_new(tmp_path: Path) -> None:
    texts = Mapped(texts_file(tmp_path))
    config = config_of(num_queries=30, styles={"title": 0.5, "skills": 0.5})
    draw(config, {"postings": texts}, tmp_path / "drafts.arrow")
    drafts = Mapped(tmp_path / "drafts.arrow")
    write_queries(config, drafts, tmp_path / "written")
    before = sorted((tmp_path / "written").iterdir())
    write_queries(config, drafts, tmp_path / "written")
    assert sorted((tmp_path / "written").iterdir()) == before, "what was written is not written again"
    out = tmp_path / "queries.arrow"
    tally = accept(config, drafts, tmp_path / "written", golden_splits={}, file=out, rejects=tmp_path / "rejects")
    assert tally["title kept"] == 15
    assert tally["skills dropped query written before"] > 0, "two skills make few different queries"
    assert sum(tally.values()) == drafts.num_rows
    queries = [row["query"] for row in Mapped(out).take(range(Mapped(out).num_rows), ["query"])]
    assert len(set(queries)) == len(queries) == tally["title kept"] + tally["skills kept"]


def test_a_query_of_the_golden_holdout_is_not_trained_on(tmp_path: Path) -> None:
    texts = Mapped(texts_file(tmp_path))
    config = config_of(num_queries=5, styles={"title": 1.0})
    draw(config, {"postings": texts}, tmp_path / "drafts.arrow")
    drafts = Mapped(tmp_path / "drafts.arrow")
    write_queries(config, drafts, tmp_path / "written")
    ids = [content_id(write_by_rule(row, config.seed)) for row in drafts.batch(0).to_pylist()]
    other = {query_id: "holdout" if split_of(query_id) == "train" else "train" for query_id in ids[:3]}
    tally = accept(
        config, drafts, tmp_path / "written", golden_splits=other, file=tmp_path / "q.arrow", rejects=tmp_path / "r"
    )
    assert tally["title dropped query in golden under another split"] == 3
    assert tally["title kept"] == 5


@pytest.mark.parametrize("style", ["title", "title_place", "skills", "sentence", "aspirational"])
def test_templates_say_only_what_the_row_has(style: QueryStyle) -> None:
    draft = {"origin": "postings", "index": 1, "style": style, "title": "Senior Actuary (m/f/d)", "place": "York, UK"}
    for seed in range(12):
        query = write_by_rule({**draft, "skills": ["SQL", "R"]}, seed)
        assert query == write_by_rule({**draft, "skills": ["SQL", "R"]}, seed)
        assert ("sql" in query.split()) if style == "skills" else ("senior actuary" in query)
        assert "m/f/d" not in query and "{" not in query and " a actuary" not in query
        bare = write_by_rule({**draft, "skills": [], "place": ""}, seed)
        assert bare == "" if style in ("skills", "title_place") else "york" not in bare


def test_titles_and_places_are_put_as_people_type_them() -> None:
    assert spoken_title("Staff Nurse - Nights | Acme") == "staff nurse"
    assert spoken_title("Full-Stack Developer (m/f/d), Berlin") == "full-stack developer"
    assert spoken_place("Leeds, West Yorkshire") == "leeds"


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("staff nurse leeds", ""),
        (" \n", EMPTY),
        ("...", EMPTY),
        ("nurse " * 30, OVER_LONG),
        ("call me on 020 7946 0018", PERSONAL),
        ("nurse [email]", PERSONAL),
        ("We need a calm and kind nurse for nights", COPIED),
    ],
)
def test_queries_that_nobody_would_type_are_refused(query: str, reason: str) -> None:
    assert fault_of(query, "Leeds. We need a calm and kind nurse for nights. Apply now.", REGIONS) == reason


def test_of_a_models_reply_the_first_line_counts() -> None:
    assert one_line('\n"staff nurse leeds"\nNote: short.') == "staff nurse leeds"
    assert one_line("\n \n") == ""


# Search and choice


@pytest.mark.parametrize("exact_rows", [10_000, 100], ids=["exact", "inverted lists"])
def test_the_index_finds_what_exhaustive_search_finds(
    exact_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "EXACT_ROWS", exact_rows)
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(30, 32))
    vectors = (centres[rng.integers(30, size=2000)] + 0.4 * rng.normal(size=(2000, 32))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    file = save_vectors([vectors[:900], vectors[900:]], tmp_path / "v.npy", num_rows=2000, num_dimensions=32)
    built = []
    for _ in range(2):
        build_index(0, work=IndexWork(vectors=(file,), seed=5))
        built.append(file.with_suffix(".faiss").read_bytes())
    assert built[0] == built[1]
    found, similar = nearest(open_index(file), vectors[:50], 10)
    truth = np.argsort(-(vectors[:50] @ vectors.T), axis=1)[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)])
    assert recall == 1.0 if exact_rows > 2000 else recall > 0.9
    assert np.all(np.diff(similar, axis=1) <= 0)


def pool_of(num: int = 400, kinds: dict[int, str] | None = None) -> Pool:
    similarities = np.linspace(1.0, -0.2, num, dtype=np.float32)
    ranks = np.where(np.arange(num) < 100, np.arange(1, num + 1), 0)
    grades = Scale(low=0.0, high=1.0).predicted(similarities)
    return Pool(documents=np.arange(num), similarities=similarities, grades=grades, ranks=ranks, kinds=kinds or {})


def test_the_scale_runs_from_chance_to_the_best_match() -> None:
    predicted = Scale(low=0.2, high=0.6).predicted(np.array([0.1, 0.2, 0.35, 0.45, 0.5, 0.6, 0.9], dtype=np.float32))
    assert predicted.tolist() == [0, 0, 1, 2, 3, 4, 4]


def test_every_stratum_gets_its_share() -> None:
    strata = {4: 0.1, 3: 0.15, 2: 0.25, 1: 0.2, 0: 0.3}
    pool, counts = pool_of(), Counter[int]()
    for seed in range(400):
        chosen = choose(pool, num=7, strata=strata, hard_share=0.0, source=None, rng=random.Random(seed))
        assert len({choice.place for choice in chosen}) == 7
        counts.update(int(pool.grades[choice.place]) for choice in chosen)
    assert {grade: counts[grade] / 2800 for grade in strata} == pytest.approx(strata, abs=0.02)


def test_a_short_stratum_is_filled_by_its_neighbours() -> None:
    pool = pool_of()
    only = replace(pool, grades=np.where(pool.grades == 4, 3, pool.grades))
    chosen = choose(only, num=10, strata={4: 1.0}, hard_share=0.0, source=None, rng=random.Random(1))
    assert {int(only.grades[choice.place]) for choice in chosen} == {3}
    assert {choice.kind for choice in chosen} == {"filled"}
    few = pool_of(4)
    assert len(choose(few, num=10, strata={4: 1.0}, hard_share=0.5, source=0, rng=random.Random(1))) == 4


def test_the_source_comes_along_and_hard_negatives_are_what_differs() -> None:
    pool = pool_of(kinds={2: OTHER_PLACE, 5: OTHER_TITLE, 8: OTHER_PLACE})
    even = dict.fromkeys(range(5), 0.2)
    chosen = choose(pool, num=10, strata=even, hard_share=0.5, source=8, rng=random.Random(2))
    kinds = {choice.place: choice.kind for choice in chosen}
    assert kinds[8] == SOURCE and kinds[2] == OTHER_PLACE and kinds[5] == OTHER_TITLE
    others = [place for place, kind in kinds.items() if kind == HIGH_RANK]
    assert len(others) == 3 and all(10 <= pool.ranks[place] <= 50 for place in others)
    assert len(chosen) == 10


@pytest.mark.parametrize(
    ("asked", "offered", "kind"),
    [
        (("nurse", "leeds"), ("nurse", "york"), OTHER_PLACE),
        (("nurse", "leeds"), ("nurse", "greater leeds"), None),
        (("nurse", "leeds"), ("nurse", "remote"), None),
        (("nurse", ""), ("nurse", "york"), None),
        (("senior nurse", ""), ("senior welder", ""), OTHER_TITLE),
        (("nurse", ""), ("", ""), None),
        (("manager", ""), ("welder", ""), None),
        (("", ""), ("welder", "york"), None),
    ],
)
def test_a_hard_negative_differs_in_what_was_asked(
    asked: tuple[str, str], offered: tuple[str, str], kind: str | None
) -> None:
    assert kind_of_difference(*asked, *offered) == kind


def test_places_are_shared_out_whole() -> None:
    for seed in range(50):
        counts = share_out(7, {4: 0.5, 2: 0.3, 0: 0.2}, random.Random(seed))
        assert sum(counts.values()) == 7 and counts[4] in (3, 4) and counts[2] in (2, 3) and counts[0] in (1, 2)
