"""Bundles: a student as one directory that this project, transformers and vLLM load; here it is loaded and scores.

A bundle is a Hugging Face directory plus ``bundle.json`` (identity, lineage, blend, gate, known answers), the
student's ``record.json`` and a model card. `preceptor.export` writes it, `preceptor.parity` compares engines on it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from preceptor.contracts import NUM_GRADES, OVERALL, SCORES, rows_to_table
from preceptor.errors import InputError, ParityError, RecipeError, StageFailed, reason_of
from preceptor.logits import sigmoid, softmax
from preceptor.recipe import Blend

if TYPE_CHECKING:
    from preceptor.ranker.model import Head, Ranker

BUNDLE_FILE: Final = "bundle.json"
PLAIN_TOKENIZER: Final = "plain_tokenizer"
"""Where bundle.json holds the digest that preceptor.ranker.plain_tokenizer gives of the tokenizer; null without one."""
KNOWN_TOKENS: Final = "known_tokens"
"""Where it holds how the student's tokenizer splits that module's probe texts, as a digest."""
TOLERANCE: Final = 2e-2
"""Largest accepted difference of a probability between two engines that compute in bfloat16."""


@dataclass(frozen=True, kw_only=True)
class DocumentScore:
    """What a bundle says of one document of a request."""

    grade_probs: tuple[float, ...]
    expected_grade: float
    actions: Mapping[str, float]
    score: float


@dataclass(frozen=True, kw_only=True)
class KnownAnswer:
    """A pair and the raw logits that the trained student gave it: any engine must come close."""

    query: str
    profile: str
    document: str
    logits: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A loaded bundle: scores requests in this process."""

    path: Path
    bundle_id: str
    policy_version: str
    blend: Blend
    known_answers: tuple[KnownAnswer, ...]
    ranker: Ranker = field(repr=False)
    tokenizer: Any = field(repr=False)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of its heads, in the order of the score matrix's rows."""
        return tuple(head.name for head in self.ranker.heads)

    @property
    def reader(self) -> Reader:
        """The same bundle without its weights, for an engine that keeps them in a form of its own."""
        return Reader(
            path=self.path,
            bundle_id=self.bundle_id,
            policy_version=self.policy_version,
            blend=self.blend,
            known_answers=self.known_answers,
            heads=self.ranker.heads,
            max_prefix_tokens=self.ranker.limits.max_prefix_tokens,
            max_document_tokens=self.ranker.limits.max_document_tokens,
            tokenizer=self.tokenizer,
        )

    def score(self, query: str, profile: str, documents: Sequence[str]) -> list[DocumentScore]:
        """One DocumentScore for each document, in order; the documents share one pass over query and profile."""
        return self.score_many([(query, profile, documents)])[0]

    def score_many(self, requests: Sequence[tuple[str, str, Sequence[str]]]) -> list[list[DocumentScore]]:
        """A list of DocumentScores for each (query, profile, documents)."""
        logits = request_logits(self.ranker, self.tokenizer, requests)
        return [[self.to_score(row) for row in rows] for rows in logits]

    def to_score(self, logits_R: Sequence[float]) -> DocumentScore:
        """What the raw logits of one document say, whichever engine computed them."""
        return to_score(logits_R, self.ranker.heads, self.blend)

    def probe(self) -> float:
        """The largest difference of a probability from the known answers; ParityError above TOLERANCE or not finite."""
        return self.reader.probe(self.score, tolerance=TOLERANCE)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A bundle without its weights: from texts to token ids, and from an engine's logits to scores."""

    path: Path
    bundle_id: str
    policy_version: str
    blend: Blend
    known_answers: tuple[KnownAnswer, ...]
    heads: tuple[Head, ...]
    max_prefix_tokens: int
    max_document_tokens: int
    tokenizer: Any = field(repr=False)

    @property
    def num_rows(self) -> int:
        """Raw logits of one document."""
        return sum(head.size for head in self.heads)

    def prefix_ids(self, query: str, profile: str) -> list[int]:
        """Token ids of what the documents of a request share, cut as the ranker cuts them."""
        from preceptor.ranker.text import prefix_token_ids

        return prefix_token_ids(self.tokenizer, query, profile, max_prefix_tokens=self.max_prefix_tokens)

    def document_ids(self, documents: Sequence[str]) -> list[list[int]]:
        """Token ids of each document's own part, cut as the ranker cuts it."""
        from preceptor.ranker.text import document_token_ids

        return document_token_ids(self.tokenizer, documents, max_document_tokens=self.max_document_tokens)

    def to_score(self, logits_R: Sequence[float]) -> DocumentScore:
        """What the raw logits of one document say."""
        return to_score(logits_R, self.heads, self.blend)

    def probe(self, score: Callable[[str, str, Sequence[str]], Sequence[DocumentScore]], *, tolerance: float) -> float:
        """The largest difference of a probability that `score` gives from what the known answers say.

        ParityError above `tolerance`, or where a value is not finite.
        """
        worst = 0.0
        for known in self.known_answers:
            got = score(known.query, known.profile, [known.document])[0]
            worst = max(worst, difference(got, self.to_score(known.logits)))
        if worst > tolerance:
            raise ParityError(
                f"{self.path}: known answers differ by {worst:.4f}, more than {tolerance}. Export the bundle again."
            )
        return worst


def request_logits(
    ranker: Ranker, tokenizer: Any, requests: Sequence[tuple[str, str, Sequence[str]]]
) -> list[list[list[float]]]:
    """The raw logits of each document of each (query, profile, documents)."""
    from preceptor.ranker.batches import Request
    from preceptor.ranker.scoring import score_requests

    wanted = [Request(query=q, profile=p, documents=tuple(d)) for q, p, d in requests]
    return [rows.tolist() for rows in score_requests(ranker, tokenizer, wanted)]


def to_score(logits_R: Sequence[float], heads: Sequence[Head], blend: Blend) -> DocumentScore:
    """The DocumentScore of one document's raw logits.

    `heads`, one of them the grade head 'overall', name the rows of `logits_R`. A logit that is NaN makes all that
    depends on it NaN, so that no reader takes it for a score.
    """
    probs: tuple[float, ...] = (math.nan,) * NUM_GRADES
    actions: dict[str, float] = {}
    start = 0
    for head in heads:
        rows = logits_R[start : start + head.size]
        start += head.size
        if head.name == OVERALL:
            probs = softmax(rows)
        elif head.kind == "action":
            actions[head.name] = sigmoid(rows[0])
    expected = sum(grade * prob for grade, prob in enumerate(probs))
    score = blend.relevance * expected / (NUM_GRADES - 1)
    score += blend.click * actions.get("click", 0.0) + blend.apply * actions.get("apply", 0.0)
    return DocumentScore(grade_probs=probs, expected_grade=expected, actions=actions, score=score)


def difference(got: DocumentScore, known: DocumentScore) -> float:
    """Largest absolute difference of a grade or action probability; infinite where one is missing or not finite."""
    if got.actions.keys() != known.actions.keys():
        return math.inf
    return largest_gap(
        [*got.grade_probs, *(got.actions[name] for name in known.actions)],
        [*known.grade_probs, *known.actions.values()],
    )


def largest_gap(left: Sequence[float], right: Sequence[float]) -> float:
    """Largest absolute difference of two aligned rows; infinite where their lengths differ or a value is not finite."""
    if len(left) != len(right) or not all(map(math.isfinite, (*left, *right))):
        return math.inf
    return max((abs(a - b) for a, b in zip(left, right, strict=True)), default=0.0)


def load_bundle(path: Path) -> Bundle:
    """The bundle at `path`, in bfloat16; InputError where it is missing, incomplete or damaged."""
    import torch

    from preceptor.ranker.model import load_ranker

    described = describe(path)
    try:
        ranker, tokenizer = load_ranker(path, dtype=torch.bfloat16)
    except InputError:
        raise
    except Exception as error:  # transformers raises whatever its readers raise on a damaged file.
        raise InputError(
            f"{path}: not loadable ({reason_of(error)}). The bundle is damaged; export it again."
        ) from error
    _require_one_model(path, described, ranker.heads, ranker.policy_version)
    return Bundle(path=path, ranker=ranker, tokenizer=tokenizer, **described)


def load_reader(path: Path, config: Mapping[str, Any]) -> Reader:
    """The bundle at `path` without its weights, by `config`, the content of its config.json; nothing of transformers
    is imported where the export found that its tokenizer needs none.

    InputError as load_bundle raises it where the files do not belong together; else as the tokenizer's reader raises.
    """
    from preceptor.ranker.model import heads_in, limits_in, load_tokenizer
    from preceptor.ranker.plain_tokenizer import read_plain

    described, written = _described(path)
    heads, limits = heads_in(config, path), limits_in(config, path)
    _require_one_model(path, described, heads, config.get("preceptor_policy_version"))
    plain = read_plain(path, written.get(PLAIN_TOKENIZER), written.get(KNOWN_TOKENS))
    return Reader(
        path=path,
        heads=heads,
        max_prefix_tokens=limits.max_prefix_tokens,
        max_document_tokens=limits.max_document_tokens,
        tokenizer=plain or load_tokenizer(path),
        **described,
    )


def open_reader(path: Path) -> Reader:
    """The bundle at `path` without its weights; InputError where it is missing or damaged."""
    describe(path)
    try:
        return load_reader(path, json.loads((path / "config.json").read_text()))
    except InputError:
        raise
    except Exception as error:  # tokenizers raise types of their own on a damaged file.
        raise InputError(
            f"{path}: not readable ({reason_of(error)}). The bundle is damaged; export it again."
        ) from error


def _require_one_model(path: Path, described: Mapping[str, Any], heads: Sequence[Head], trained: str | None) -> None:
    """Nothing; InputError where bundle.json, as `described`, does not fit config.json's heads and policy."""
    require_overall(heads, path)
    require_policy(trained, described["policy_version"], path)
    num_rows = sum(head.size for head in heads)
    if any(len(known.logits) != num_rows for known in described["known_answers"]):
        raise InputError(
            f"{path / BUNDLE_FILE}: known answers that do not fit the {num_rows} rows of config.json's heads. "
            "The bundle is mixed from several; export it again."
        )


def require_overall(heads: Sequence[Head], where: Path) -> None:
    """Nothing; InputError unless `heads` have the grade head 'overall', without which nothing can be ranked."""
    names = [head.name for head in heads]
    if OVERALL not in names:
        raise InputError(
            f"{where}: a bundle needs the head '{OVERALL}', got: {', '.join(names) or 'none'}. Train a student with it."
        )


def require_policy(trained: str | None, version: str | None, where: Path) -> None:
    """Nothing; InputError where config.json names another policy, `trained`, than `version`: two models were mixed.

    A model from before config.json named the policy is taken at its record's word.
    """
    if trained not in (None, version):
        raise InputError(
            f"{where}/config.json: trained under policy {trained}, but its record says {version}. "
            "The files of two models are mixed; train or export it again."
        )


def score_table(bundle: Bundle, pairs: pa.Table) -> pa.Table:
    """SCORES for a PAIRS table, one row a pair, in its order; pairs of one request share its prefix.

    Raises StageFailed where a score is not finite.
    """
    from preceptor.ranker.batches import group_requests

    grouped = group_requests(pairs.to_pylist())
    answers = bundle.score_many([(request.query, request.profile, request.documents) for request, _ in grouped])
    by_pair = {
        pair_id: answer
        for (_, pair_ids), scores in zip(grouped, answers, strict=True)
        for pair_id, answer in zip(pair_ids, scores, strict=True)
    }
    return rows_to_table(_score_rows(bundle, pairs.column("pair_id").to_pylist(), by_pair), SCORES)


def _score_rows(
    bundle: Bundle, pair_ids: Sequence[str], scores: Mapping[str, DocumentScore]
) -> Iterator[dict[str, object]]:
    for pair_id in pair_ids:
        found = scores[pair_id]
        if not math.isfinite(found.score):
            raise StageFailed(
                f"{bundle.path}: the score of pair {pair_id} is {found.score}, not finite. Export the bundle again."
            )
        yield {
            "pair_id": pair_id,
            "grade_probs": list(found.grade_probs),
            "expected_grade": found.expected_grade,
            "actions": list(found.actions.items()),
            "score": found.score,
            "bundle_id": bundle.bundle_id,
            "policy_version": bundle.policy_version,
        }


def describe(path: Path) -> dict[str, Any]:
    """The fields of a Bundle that bundle.json holds; InputError where it is missing or damaged."""
    return _described(path)[0]


def _described(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `describe`, and all that bundle.json says, as it is written."""
    if not path.is_dir():
        raise InputError(f"{path}: no such directory. Point at the bundle/ directory of an export stage.")
    file = path / BUNDLE_FILE
    if not file.is_file():
        raise InputError(f"{path}: no {BUNDLE_FILE}; not a bundle. Point at the bundle/ directory of an export stage.")
    try:
        read = json.loads(file.read_text())
        known = [{**answer, "logits": tuple(map(float, answer["logits"]))} for answer in read["known_answers"]]
        described = {
            "bundle_id": str(read["bundle_id"]),
            "policy_version": str(read["policy_version"]),
            "blend": Blend(**read["blend"]),
            "known_answers": tuple(KnownAnswer(**answer) for answer in known),
        }
    except KeyError as error:
        raise InputError(f"{file}: lacks {error}. The bundle is damaged; export it again.") from error
    except (OSError, ValueError, TypeError, AttributeError, RecipeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: not readable ({reason}). The bundle is damaged; export it again.") from error
    if not known:
        raise InputError(f"{file}: no known answers to check it by. The bundle is damaged; export it again.")
    return described, read
