"""What the Python client sends and returns: frozen values, read from and written to the API's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from preceptor.errors import PreceptorError


class ApiError(PreceptorError):
    """What the scorer, or whatever stands before it, answered in place of scores.

    `code` is the API's, or ``http_STATUS`` where the body was not the API's.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        field: str | None,
        request_id: str | None,
        retry_after_s: float | None,
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.field = field
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class NoAnswer(PreceptorError):
    """The scorer could not be reached, or the connection broke before an answer came."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document with the caller's own name for it."""

    text: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What ranks: relevance * expected_grade / 4 + click * P(click) + apply * P(apply)."""

    relevance: float
    click: float
    apply: float


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query of one member, and the documents to score for it. Without `blend` the bundle's own one ranks.

    `min_documents`, the first ones, have to be scored where there is no time for all.
    """

    query: str
    profile: str
    documents: Sequence[str | Document]
    blend: Weights | None = None
    min_documents: int | None = None

    def body(self) -> dict[str, Any]:
        """Its JSON."""
        documents = [item if isinstance(item, str) else asdict(item) for item in self.documents]
        blend = {} if self.blend is None else {"blend": asdict(self.blend)}
        least = {} if self.min_documents is None else {"min_documents": self.min_documents}
        return {"query": self.query, "profile": self.profile, "documents": documents} | blend | least


@dataclass(frozen=True, kw_only=True)
class RerankOptions:
    """What a rerank call may ask besides query and documents. `rank_fields` names what to read of object documents."""

    profile: str | None = None
    top_n: int | None = None
    return_documents: bool | None = None
    rank_fields: Sequence[str] | None = None
    blend: Weights | None = None
    deadline_ms: int | None = None
    request_id: str | None = None
    min_documents: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What the bundle says of one document. `score` ranks."""

    index: int
    id: str | None
    score: float
    expected_grade: float
    grade_probs: tuple[float, ...]
    actions: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Unscored:
    """A document that was left out for want of time."""

    index: int
    id: str | None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The documents of one query, in its order, who scored them, and what ranks.

    `unscored` are those that there was no time for: the query's last ones, none unless it, or the operator, allows it.
    """

    request_id: str
    bundle_id: str
    policy_version: str
    blend: Weights | None
    results: tuple[Scored, ...]
    unscored: tuple[Unscored, ...] = ()

    @property
    def ranked(self) -> tuple[Scored, ...]:
        """The documents that were scored, best first; ties in the query's order."""
        return tuple(sorted(self.results, key=lambda result: (-result.score, result.index)))


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One document of a reranked list. One that is not `scored` was left out for want of time."""

    index: int
    relevance_score: float
    document: Mapping[str, Any] | None
    scored: bool = True


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """A reranked list, best first."""

    request_id: str
    bundle_id: str
    policy_version: str
    results: tuple[Ranked, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ServedBundle:
    """Who answers."""

    bundle_id: str
    policy_version: str


def read_scores(body: Mapping[str, Any], *, request_id: str) -> Scores:
    """One answer of /v1/score."""
    return Scores(
        request_id=request_id,
        bundle_id=body["bundle_id"],
        policy_version=body["policy_version"],
        blend=None if body["blend"] is None else Weights(**_known(body["blend"], Weights)),
        results=tuple(
            Scored(**_known(result, Scored) | {"grade_probs": tuple(result["grade_probs"])})
            for result in body["results"]
            if result.get("scored", True)
        ),
        unscored=tuple(
            Unscored(**_known(result, Unscored)) for result in body["results"] if not result.get("scored", True)
        ),
    )


def read_ranking(body: Mapping[str, Any]) -> Ranking:
    """The answer of /v2/rerank."""
    return Ranking(
        request_id=body["id"],
        bundle_id=body["model"],
        policy_version=body["policy_version"],
        results=tuple(
            Ranked(
                index=result["index"],
                relevance_score=result["relevance_score"],
                document=result.get("document"),
                scored=result.get("scored", True),
            )
            for result in body["results"]
        ),
        warnings=tuple(body["meta"].get("warnings") or ()),
    )


def read_bundle(body: Mapping[str, Any]) -> ServedBundle:
    """The answer of /readyz."""
    return ServedBundle(**_known(body, ServedBundle))


def _known(body: Mapping[str, Any], kind: type) -> dict[str, Any]:
    # A newer scorer may say more than this client knows.
    return {name: body[name] for name in kind.__dataclass_fields__}  # type: ignore[attr-defined]
