"""The synthetic market: its catalogue, its truth, its words, its clicks, and the golden pairs it ships."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pytest

from preceptor.contracts import ACTIONS, IMPRESSIONS, OVERALL, PAIRS, SPLITS, content_id, rows_to_table, split_of
from preceptor.errors import DriftError, PolicyError, RecipeError
from preceptor.evaluation.metrics import ndcg_at
from preceptor.market import (
    Group,
    Member,
    Place,
    Posting,
    Query,
    clicks,
    generate_group,
    generate_pairs,
    generate_request,
    grade,
    grade_all,
)
from preceptor.market.golden import GRADER, write_golden
from preceptor.market.industries import industries
from preceptor.market.latent import STYLES, Direction, Holding, Workplace, stream
from preceptor.market.latent import Path as WayOn
from preceptor.market.postings import MIX, kinds_for
from preceptor.market.roles import catalogue
from preceptor.market.stage import market, work_of
from preceptor.market.texts import posting_text, profile_text, query_text
from preceptor.market.truth import explain
from preceptor.policy import Rubric, load_policy
from preceptor.recipe import POLICY_DIR, MarketConfig
from preceptor.record import DEV, begin, read_record

CONFIG = MarketConfig(num_queries=60, documents_per_query=10, num_requests=80, num_holdout_requests=40)
QUERY = Query(style="title", role="hgv_driver")
MEMBER = Member(
    role="hgv_driver",
    level=2,
    skills=("trunking", "tachographs", "route planning"),
    holdings=(("Class 1 licence", "held"), ("Driver CPC", "held")),
    place="Hull",
    pay=38,
    employment="permanent",
    industry="logistics",
    direction="learn",
)
POSTING = Posting(
    role="hgv_driver",
    level=2,
    skills=("trunking", "tachographs"),
    credentials=("Class 1 licence", "Driver CPC"),
    place=Place(city="Hull"),
    pay=(37, 40),
    employment="permanent",
    industry="logistics",
    path="training",
)


@pytest.fixture(scope="module")
def rubric() -> Rubric:
    return load_policy(POLICY_DIR).rubric


@pytest.fixture(scope="module")
def groups(rubric: Rubric) -> list[Group]:
    return [generate_group(index, seed=3, num_documents=20, rubric=rubric) for index in range(60)]


@pytest.fixture(scope="module")
def holdout() -> dict[tuple[str, str], list[dict[str, object]]]:
    """The shipped golden holdout, by (query, profile)."""
    found: dict[tuple[str, str], list[dict[str, object]]] = defaultdict(list)
    for line in (POLICY_DIR / "golden" / "holdout.jsonl").read_text().splitlines():
        row = json.loads(line)
        found[row["query"], row["profile"]].append(row)
    return found


def mostly_stands(wording: str, text: str) -> bool:
    """At least half of the words: any other may be misspelt or shortened."""
    words = wording.split()
    return 2 * sum(word.lower() in text.lower() for word in words) >= len(words)


def reads(wordings: Iterable[str], text: str) -> bool:
    """Whether one of `wordings` stands in `text`, each word of it perhaps misspelt."""
    words = text.lower().replace("&", "and").replace(".", " ").replace(",", " ").split()
    return any(all(get_close_matches(word.lower(), words, cutoff=0.7) for word in w.split()) for w in wordings)


def overall(row: dict[str, object]) -> int:
    grades = row["grades"]
    assert isinstance(grades, dict)
    return int(grades[OVERALL])


# The catalogue


def test_catalogue_is_broad_enough_and_roles_are_complete() -> None:
    known = catalogue()
    assert len(known.roles) >= 150
    assert len(known.families) >= 20
    for role in known.roles.values():
        assert len(role.titles) >= 3, role.name
        assert 6 <= len(set(role.skills)) == len(role.skills) <= 10, role.name
        assert len(role.duties) >= 2, role.name
        assert role.pay[0] < role.pay[1], role.name
        assert set(role.needs) <= known.credential_wordings.keys(), role.name


def test_no_wording_names_two_skills_and_no_title_two_roles() -> None:
    known = catalogue()
    skills = Counter(wording.lower() for wordings in known.skill_wordings.values() for wording in set(wordings))
    titles = Counter(title.lower() for role in known.roles.values() for title in role.titles)
    assert [wording for wording, count in skills.items() if count > 1] == []
    assert [title for title, count in titles.items() if count > 1] == []


def test_role_relation_is_symmetric_and_every_role_has_neighbours() -> None:
    known = catalogue()
    names = list(known.roles)
    assert all(known.relation(a, b) == known.relation(b, a) for a in names[::7] for b in names)
    assert all(known.related(name, 2) and known.related(name, 1) and known.related(name, 0) for name in names)
    assert known.relation("hgv_driver", "rigid_driver") == 3
    assert known.relation("hgv_driver", "bus_driver") == 2
    assert known.relation("hgv_driver", "warehouse_operative") == 1
    assert known.relation("hgv_driver", "midwife") == 0


# The truth


def test_a_posting_that_suits_in_every_respect_is_ideal(rubric: Rubric) -> None:
    grades = grade_all(QUERY, MEMBER, POSTING, rubric)
    assert set(grades.values()) == {4}
    assert list(grades) == [*rubric.names, OVERALL]
    assert explain(grades) == "as wanted in every respect"


@pytest.mark.parametrize(
    ("dimension", "postings"),
    [
        ("role", [replace(POSTING, role=role) for role in ("hgv_driver", "rigid_driver", "bus_driver", "midwife")]),
        (
            "skills",
            [replace(POSTING, skills=s) for s in (("trunking",), ("trunking", "x"), ("trunking", "x", "y"), ("x",))],
        ),
        ("seniority", [replace(POSTING, level=level) for level in (2, 3, 1, 0)]),
        (
            "place",
            [
                replace(POSTING, place=place)
                for place in (
                    Place(city="Hull"),
                    Place(city="Hull", town="Hessle", minutes=10),
                    Place(city="Hull", town="Scunthorpe", minutes=60),
                    Place(city="Exeter"),
                )
            ],
        ),
        (
            "industry",
            [replace(POSTING, industry=name) for name in ("logistics", "ecommerce", "retail", "hospitals")],
        ),
        ("direction", [replace(POSTING, path=path) for path in ("training", "progression", None, "steady", "ready")]),
        ("pay", [replace(POSTING, pay=pay) for pay in ((37, 40), None, (33, 35), (25, 27))]),
        ("quality", [replace(POSTING, tone=tone) for tone in ("plain", "hype", "bait")]),
    ],
)
def test_grades_fall_as_one_attribute_gets_worse(dimension: str, postings: list[Posting], rubric: Rubric) -> None:
    rows = [grade_all(QUERY, MEMBER, posting, rubric) for posting in postings]
    assert [row[dimension] for row in rows] == sorted({row[dimension] for row in rows}, reverse=True)
    assert [row[OVERALL] for row in rows] == sorted((row[OVERALL] for row in rows), reverse=True)


def test_every_way_of_holding_a_licence_has_its_grade() -> None:
    def credentials(*holdings: tuple[str, Holding]) -> int:
        return grade(QUERY, replace(MEMBER, holdings=holdings), POSTING)["credentials"]

    cpc: tuple[str, Holding] = ("Driver CPC", "held")
    states: tuple[Holding, ...] = ("held", "in progress", "lapsed", "absent")
    assert [credentials(cpc, ("Class 1 licence", state)) for state in states] == [4, 3, 1, 0]
    assert credentials(cpc) == 2
    unlicensed = replace(POSTING, credentials=())
    assert grade(QUERY, replace(MEMBER, holdings=()), unlicensed)["credentials"] == 4


def test_wrong_work_is_unsuitable_however_attractive(rubric: Rubric) -> None:
    shiny = replace(POSTING, role="midwife", pay=(90, 110), brand="Brightwell", perks=("free gym", "big bonus"))
    assert clicks.shine(shiny) >= clicks.SHINY
    assert grade_all(QUERY, MEMBER, shiny, rubric)[OVERALL] == 0


def test_workplace_wishes_are_graded_within_reach_and_beyond() -> None:
    def place(wish: Workplace, offered: Workplace, city: str = "Hull") -> int:
        posting = replace(POSTING, workplace=offered, place=Place(city=city))
        return grade(QUERY, replace(MEMBER, workplace=wish), posting)["place"]

    assert [place("remote", kind) for kind in ("remote", "hybrid", "onsite")] == [4, 2, 1]
    assert [place("hybrid", kind) for kind in ("remote", "hybrid", "onsite")] == [4, 4, 1]
    assert [place("remote", kind, "Exeter") for kind in ("remote", "hybrid", "onsite")] == [4, 0, 0]


def test_a_ruled_out_industry_caps_and_a_named_one_lifts_the_ban(rubric: Rubric) -> None:
    choosy = replace(MEMBER, refused="gambling", wished="retail")
    gambling = replace(POSTING, industry="gambling")
    assert grade_all(QUERY, choosy, gambling, rubric)[OVERALL] == 2
    assert grade(QUERY, choosy, gambling)["industry"] == 0
    assert grade(replace(QUERY, industry="gambling"), choosy, gambling)["industry"] == 4
    assert grade(QUERY, choosy, replace(POSTING, industry="retail"))["industry"] == 4
    assert grade(QUERY, choosy, POSTING)["industry"] == 2  # logistics, worked in, but retail is wished for
    assert grade(QUERY, choosy, replace(POSTING, industry=None))["industry"] == 3


@pytest.mark.parametrize(
    ("direction", "postings", "grades"),
    [
        (
            "up",
            [
                replace(POSTING, level=3),
                replace(POSTING, path="leads"),
                replace(POSTING, path="progression"),
                replace(POSTING, path=None),
                replace(POSTING, path="steady"),
                replace(POSTING, level=1, path="progression"),
                replace(POSTING, level=1),
            ],
            [4, 4, 3, 2, 1, 1, 0],
        ),
        ("steady", [replace(POSTING, path=p) for p in ("steady", "training", "ready", "progression", "leads")],
         [4, 3, 2, 1, 0]),
        (None, [replace(POSTING, path=p) for p in ("steady", "ready", None)], [3, 3, 3]),
    ],
)  # fmt: skip
def test_direction_follows_the_wish(direction: Direction | None, postings: list[Posting], grades: list[int]) -> None:
    member = replace(MEMBER, direction=direction)
    assert [grade(QUERY, member, posting)["direction"] for posting in postings] == grades


def test_a_change_of_work_leads_into_the_wanted_and_out_of_the_present_work() -> None:
    """A warehouse operative who types "become an HGV driver"."""
    query = replace(QUERY, style="aspirational", direction="change")
    member = replace(MEMBER, role="warehouse_operative", direction=None)

    def direction(role: str, path: WayOn | None) -> int:
        return grade(query, member, replace(POSTING, role=role, path=path))["direction"]

    assert [direction("hgv_driver", path) for path in ("training", None, "ready")] == [4, 3, 2]
    assert direction("rigid_driver", "training") == 4
    assert [direction("bus_driver", path) for path in ("training", None)] == [3, 2]
    assert direction("vehicle_technician", None) == 1
    assert direction("midwife", "training") == 0
    assert direction("warehouse_operative", "training") == 0


def test_the_query_speaks_before_the_profile() -> None:
    posting = replace(POSTING, place=Place(city="York"), level=4)
    assert grade(QUERY, MEMBER, posting)["place"] == 0
    asked = replace(QUERY, place="York", level=4)
    assert (grade(asked, MEMBER, posting)["place"], grade(asked, MEMBER, posting)["seniority"]) == (4, 4)


def test_what_no_text_states_is_graded_as_unknown() -> None:
    silent = Posting(role="hgv_driver")
    mute = replace(MEMBER, level=None, place=None, pay=None, employment=None, industry=None, direction=None)
    assert grade(QUERY, mute, silent) == {
        "role": 4, "skills": 2, "seniority": 3, "credentials": 4, "industry": 3, "place": 3, "pay": 3, "direction": 3,
        "quality": 2,
    }  # fmt: skip
    assert grade(QUERY, MEMBER, silent)["direction"] == 2


# The words


def test_industries_are_told_apart_and_every_family_has_a_setting() -> None:
    known = industries()
    words = [word for wordings in known.words.values() for word in wordings]
    assert len(words) == len(set(words))
    assert known.settings.keys() == catalogue().families.keys()
    assert {name for names in known.settings.values() for name in names} == known.words.keys()
    assert {name for pair in known.close for name in pair} <= known.words.keys()
    assert all(known.relation(a, b) == known.relation(b, a) for a in known.words for b in known.words)


def test_a_profile_says_the_industries_and_the_direction() -> None:
    member = replace(MEMBER, industry="aerospace", wished="energy", refused="gambling", direction="change")
    for number in range(20):
        text = profile_text(member, stream(number, "profile"), wanted="midwife").lower()
        for name in ("aerospace", "energy", "gambling"):
            assert reads(industries().words[name], text), text
        assert reads(("moving into", "retraining as"), text), text
        assert reads(catalogue().roles["midwife"].titles, text), text


def test_an_aspirational_query_says_where_to(groups: list[Group]) -> None:
    asks = [group.ask for group in groups if group.ask.query.style == "aspirational"]
    assert {ask.query.direction for ask in asks} == {"up", "change"}
    assert all((ask.query.direction == "up") == (ask.member.role == ask.query.role) for ask in asks)
    assert all(group.ask.query.direction is None for group in groups if group.ask.query.style != "aspirational")


def test_groups_depend_on_seed_and_index_alone(rubric: Rubric) -> None:
    alone = next(generate_pairs(CONFIG, rubric, start=41, stop=42))
    assert alone == list(generate_pairs(CONFIG, rubric))[41]
    assert alone != next(generate_pairs(replace(CONFIG, seed=CONFIG.seed + 1), rubric, start=41, stop=42))


def test_texts_are_short_and_rows_keep_the_contract(groups: list[Group]) -> None:
    pairs = [item.pair for group in groups for item in group.candidates]
    rows_to_table((dict(pair) for pair in pairs), PAIRS)
    assert len({pair["pair_id"] for pair in pairs}) == len(pairs)
    words = {name: [len(pair[name].split()) for pair in pairs] for name in ("query", "profile", "document")}
    assert max(words["query"]) <= 14
    assert np.mean(words["query"]) <= 10
    assert 15 <= np.mean(words["profile"]) <= 35
    assert 25 <= np.mean(words["document"]) <= 45


def test_every_query_style_is_a_slice(groups: list[Group]) -> None:
    assert {group.ask.query.style for group in groups} == set(STYLES)
    assert all(item.pair["slice"] == group.ask.query.style for group in groups for item in group.candidates)


def test_what_decides_the_grade_stands_in_the_posting(groups: list[Group]) -> None:
    known = catalogue()
    for item in (item for group in groups for item in group.candidates):
        text, posting = item.pair["document"], item.posting
        if posting.place is not None:
            assert posting.place.city in text
        if posting.pay is not None:
            assert str(posting.pay[1]) in text
        if posting.industry is not None:
            assert reads(industries().words[posting.industry], text), text
        for name in posting.credentials:
            assert any(mostly_stands(wording, text) for wording in known.credential_wordings[name]), text


def test_every_role_reads_in_every_style() -> None:
    for name, role in catalogue().roles.items():
        member = replace(MEMBER, role=name, skills=role.skills[:4], past="midwife", workplace="hybrid")
        posting = replace(POSTING, role=name, skills=role.skills[:3], credentials=role.needs, mention="midwife")
        for style in STYLES:
            query = Query(style=style, role=name, level=3, place="Hull", skills=role.skills[:3])
            for text in (
                query_text(query, stream(1, name, style)),
                profile_text(member, stream(2, name, style), wanted=name),
                posting_text(posting, stream(3, name, style)),
            ):
                assert text.strip()
                assert not set("{}|") & set(text)


@pytest.mark.parametrize("num_documents", [1, 6, 8, 20, 50])
def test_candidates_span_good_to_bad_for_any_number(num_documents: int) -> None:
    kinds = Counter(kinds_for(stream(1, "kinds"), num_documents))
    assert kinds.total() == num_documents
    for kind, count in Counter(MIX).items():
        assert abs(kinds[kind] - count * num_documents / len(MIX)) <= 1


# The golden pairs


def test_shipped_golden_files_are_a_fresh_generation(tmp_path: Path) -> None:
    for fresh in write_golden(POLICY_DIR, out=tmp_path):
        assert fresh.read_bytes() == (POLICY_DIR / "golden" / fresh.name).read_bytes(), fresh.name


def test_a_golden_file_that_is_refused_costs_an_earlier_corpus_nothing(tmp_path: Path) -> None:
    policy, out = Path(shutil.copytree(POLICY_DIR, tmp_path / "policy")), tmp_path / "corpus" / DEV
    begin("market", CONFIG, out=out).finish(num_rows_kept=7)
    (out / "pairs").mkdir()
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    file = policy / "golden" / "train.jsonl"
    rows = file.read_text().split("\n")
    file.write_text("\n".join([*rows[:2], rows[2].replace(GRADER, "markt-truth"), *rows[3:]]))
    with pytest.raises(PolicyError) as caught:
        market(CONFIG, policy=policy, out=out)
    assert str(caught.value).startswith(f"{file}:3: unknown grader 'markt-truth'. rubric.toml declares: {GRADER}.")
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_a_corrected_golden_grade_is_another_corpus(tmp_path: Path) -> None:
    policy, out = Path(shutil.copytree(POLICY_DIR, tmp_path / "policy")), tmp_path / "corpus" / "v1"
    version = load_policy(policy).version
    finished = begin("market", work_of(CONFIG, policy=policy), out=out, policy_version=version).finish(num_rows_kept=7)
    (policy / "golden" / "README.md").write_text("Not a golden file.")
    assert market(CONFIG, policy=policy, out=out).fingerprint == finished.fingerprint
    file = policy / "golden" / "calibration.jsonl"
    first, _, rest = file.read_text().partition("\n")
    row = json.loads(first)
    row["grades"]["quality"] = (row["grades"]["quality"] + 1) % 5
    file.write_text(f"{json.dumps(row)}\n{rest}")
    with pytest.raises(DriftError, match=r"\(golden\.calibration\.jsonl: '\w+' -> '\w+'\)"):
        market(CONFIG, policy=policy, out=out)
    assert load_policy(policy).version == version
    assert read_record(out) == finished


def test_golden_splits_follow_the_query_and_share_none() -> None:
    queries: dict[str, set[str]] = {}
    for split in SPLITS:
        rows = [json.loads(line) for line in (POLICY_DIR / "golden" / f"{split}.jsonl").read_text().splitlines()]
        queries[split] = {row["query"] for row in rows}
        assert {row["split"] for row in rows} == {split}
        assert all(split_of(content_id(query)) == split for query in queries[split])
        assert {row["grader_id"] for row in rows} == {"market-truth"}
    assert sum(map(len, queries.values())) == len(set.union(*queries.values()))


def test_every_golden_split_exercises_every_dimension_and_style(rubric: Rubric) -> None:
    for split in SPLITS:
        rows = [json.loads(line) for line in (POLICY_DIR / "golden" / f"{split}.jsonl").read_text().splitlines()]
        assert {row["slice"] for row in rows} == set(STYLES)
        for name in rubric.names:
            assert len({row["grades"][name] for row in rows}) >= 4, (split, name)


def test_golden_holdout_has_every_grade(holdout: dict[tuple[str, str], list[dict[str, object]]]) -> None:
    grades = Counter(overall(row) for rows in holdout.values() for row in rows)
    assert set(grades) == set(range(5))
    assert min(grades.values()) >= 0.08 * grades.total()


def test_word_overlap_ranks_the_golden_holdout_poorly(
    holdout: dict[tuple[str, str], list[dict[str, object]]],
) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    documents = [str(row["document"]) for rows in holdout.values() for row in rows]

    def mean_ndcg(scores_of: Callable[[str, list[str], list[int]], Iterable[float]]) -> float:
        values = []
        for (query, profile), rows in holdout.items():
            grades = [overall(row) for row in rows]
            scores = scores_of(f"{query} {profile}", [str(row["document"]) for row in rows], grades)
            values.append(ndcg_at(grades, list(scores)))
        return float(np.mean(values))

    chance = np.random.default_rng(0)
    by_chance = mean_ndcg(lambda _, texts, __: chance.random(len(texts)))
    for sublinear in (False, True):
        vectors = TfidfVectorizer(sublinear_tf=sublinear).fit([*documents, *(" ".join(key) for key in holdout)])

        def by_overlap(asked: str, texts: list[str], _: list[int], v: TfidfVectorizer = vectors) -> list[float]:
            similarity: list[float] = (v.transform(texts) @ v.transform([asked]).T).toarray().ravel().tolist()
            return similarity

        assert by_chance + 0.05 < mean_ndcg(by_overlap) < 0.75
    assert mean_ndcg(lambda _, __, grades: grades) == pytest.approx(1.0)


# The clicks


def test_attraction_and_relevance_partly_disagree(groups: list[Group]) -> None:
    items = [item for group in groups for item in group.candidates]
    grades = [item.overall for item in items]
    attracted = [clicks.attraction(item.overall, item.posting) for item in items]
    assert 0.2 < np.corrcoef(grades, attracted)[0, 1] < 0.9
    misfits = [item for item in items if clicks.shine(item.posting) >= clicks.SHINY and item.overall <= 1]
    assert 0.02 < len(misfits) / len(items) < 0.2


def test_clicks_under_random_order_recover_the_propensities() -> None:
    rng = stream(5, "clicks")
    num_shown = 20_000
    rates = {
        position: np.mean(
            [clicks.respond(rng, position=position, attracted=0.4, applies=0.5).click for _ in range(num_shown)]
        )
        for position in (1, 2, 5, 10)
    }
    for position, rate in rates.items():
        sigma = np.sqrt(0.4 * clicks.propensity(position) / num_shown)
        assert abs(rate - 0.4 * clicks.propensity(position)) < 4 * sigma


def test_application_needs_a_click_and_a_licence() -> None:
    rng = stream(6, "applies")
    responses = [clicks.respond(rng, position=2, attracted=0.6, applies=0.5) for _ in range(2000)]
    assert all(response.click for response in responses if response.apply)
    assert 0 < sum(r.apply for r in responses) < sum(r.click for r in responses)
    assert clicks.application(3, 0) < clicks.application(3, 4) < clicks.application(4, 4)


def test_requests_draw_from_the_pool_in_the_order_of_their_traffic(rubric: Rubric) -> None:
    pool = {item.pair["pair_id"]: item for group in generate_pairs(CONFIG, rubric) for item in group.candidates}
    first: dict[bool, list[float]] = {False: [], True: []}
    rows: list[dict[str, object]] = []
    for index in range(CONFIG.num_requests + CONFIG.num_holdout_requests):
        request = generate_request(index, CONFIG, rubric)
        holdout_traffic = index >= CONFIG.num_requests
        assert {row["split"] == "holdout" for row in request} == {holdout_traffic}
        assert [row["position"] for row in request] == list(range(1, len(request) + 1))
        items = [pool[str(row["pair_id"])] for row in request]
        attracted = [clicks.attraction(item.overall, item.posting) for item in items]
        first[holdout_traffic].append(float(np.mean(attracted[:3]) - np.mean(attracted)))
        rows += request
    rows_to_table(rows, IMPRESSIONS)
    assert len({row["request_id"] for row in rows}) == CONFIG.num_requests + CONFIG.num_holdout_requests
    assert np.mean(first[False]) > 0.1
    assert abs(np.mean(first[True])) < 0.08
    num_actions = {action: sum(bool(row[action]) for row in rows) for action in ACTIONS}
    assert 0 < num_actions["apply"] < num_actions["click"] < len(rows)


def test_a_market_without_holdout_queries_says_so(rubric: Rubric) -> None:
    tiny = replace(CONFIG, num_queries=1, num_requests=0, num_holdout_requests=1)
    seed = next(s for s in range(50) if next(generate_pairs(replace(tiny, seed=s), rubric)).ask.split != "holdout")
    with pytest.raises(RecipeError, match=r"1 queries has no holdout query.*num_queries"):
        generate_request(0, replace(tiny, seed=seed), rubric)
