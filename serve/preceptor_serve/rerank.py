"""/v1/rerank and /v2/rerank: requests in the shape of Cohere's and Jina's APIs, best document first.

Fields that those APIs know and this scorer has no use for are accepted, and named in ``meta.warnings``. Any other
unknown field is refused, because a misspelt `profile` would change the order without a sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, TypeAdapter, WithJsonSchema

from preceptor.bundle import Blend
from preceptor_serve.blending import blended, total_weight
from preceptor_serve.schema import MAX_NAME_CHARS, BlendWeights, DeadlineMs, MinDocuments, Refusal, RequestId, Text
from preceptor_serve.scorer import Answer

IGNORED: Final = (
    "max_chunks_per_doc",
    "max_tokens_per_doc",
    "overlap_tokens",
    "priority",
    "relevant_spans",
    "return_embeddings",
    "truncate",
    "truncation",
    "user",
)


_DOCUMENT_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "description": "A document: its text, or the fields that rank_fields names; other fields come back unread.",
    "properties": {"text": {"type": "string"}},
    "additionalProperties": True,
}


def _kind(value: object) -> str | None:
    if isinstance(value, str):
        return "str"
    return "object" if isinstance(value, dict) else None


class RerankRequest(BaseModel):
    """A query, the documents to order for it, and the member's `profile`, which the other APIs do not have.

    `model` is not used to choose: one bundle is served, and the answer names it. A document is a string or an object
    with a `text`; `rank_fields` names other fields to read, in their order. Fields named in `meta.warnings` of the
    answer had no effect. `min_documents` is what it is in /v1/score.
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        json_schema_extra={
            "example": {
                "model": "preceptor",
                "query": "night nurse part time",
                "profile": "Registered nurse, 6 years on surgical wards, wants nights near Leeds.",
                "documents": ["Dental receptionist.", {"text": "Staff Nurse (nights), surgical ward, Leeds."}],
                "top_n": 1,
                "return_documents": True,
            }
        },
    )

    query: str
    documents: list[
        Annotated[
            Annotated[Text, Tag("str")]
            | Annotated[dict[str, JsonValue], WithJsonSchema(_DOCUMENT_SCHEMA), Tag("object")],
            Discriminator(_kind),
        ]
    ] = Field(min_length=1)
    model: Annotated[str, Field(max_length=256)] | None = None
    top_n: Annotated[int, Field(ge=1)] | None = None
    rank_fields: Annotated[list[str], Field(min_length=1)] | None = None
    return_documents: bool | None = None
    profile: str | None = None
    blend: BlendWeights | None = None
    request_id: RequestId | None = None
    deadline_ms: DeadlineMs | None = None
    min_documents: MinDocuments | None = None
    max_chunks_per_doc: JsonValue = None
    max_tokens_per_doc: JsonValue = None
    overlap_tokens: JsonValue = None
    priority: JsonValue = None
    relevant_spans: JsonValue = None
    return_embeddings: JsonValue = None
    truncate: JsonValue = None
    truncation: JsonValue = None
    user: JsonValue = None

    @property
    def texts(self) -> list[str]:
        """What is read of each document; Refusal 422 where one has no such text."""
        fields = self.rank_fields or ["text"]
        return [_text_of(document, fields, index) for index, document in enumerate(self.documents)]

    @property
    def ids(self) -> list[str | None]:
        """The `id` of each document that is an object with one of at most 256 characters, None elsewhere."""
        named = (document.get("id") if isinstance(document, dict) else None for document in self.documents)
        return [name if isinstance(name, str) and len(name) <= MAX_NAME_CHARS else None for name in named]

    @property
    def warnings(self) -> list[str]:
        """A line for each field that was given and had no effect."""
        given = (name for name in IGNORED if getattr(self, name) is not None)
        return [f"{name} has no effect here: documents are read whole." for name in given]


RERANK_BODY: Final[TypeAdapter[RerankRequest]] = TypeAdapter(RerankRequest)


def _text_of(document: str | dict[str, JsonValue], fields: Sequence[str], index: int) -> str:
    if isinstance(document, str):
        return document
    found = [document[name] for name in fields if name in document]
    if not found or not all(isinstance(part, str) for part in found):
        message = "A document needs a string in 'text', or in the fields that rank_fields names. Add it."
        raise Refusal(422, "invalid_field", message, field=f"documents[{index}]")
    return "\n".join(map(str, found))


class RerankResult(BaseModel):
    """A document's place in the request, and how well it fits, from 0 to 1.

    `scored` false: it was left out for want of time, and its relevance_score of 0 says nothing.
    """

    index: int
    relevance_score: float
    scored: Literal[False] | None = None
    document: dict[str, JsonValue] | None = None


class RerankMeta(BaseModel):
    """The API's version, which fields of the request had no effect, and whether documents were left out."""

    api_version: dict[str, str]
    warnings: list[str] | None = None


class RerankResponse(BaseModel):
    """The documents, best first; `id` is the request's id, `model` the bundle that answered."""

    id: str
    model: str
    policy_version: str
    results: list[RerankResult]
    meta: RerankMeta


def ranked(
    wanted: RerankRequest, answer: Answer, *, blend: Blend | None, request_id: str, version: str
) -> RerankResponse:
    """`answer` under `blend`, or the bundle's own: best first, ties in the request's order, cut to `top_n`.

    Documents that were not scored follow the others in the request's order, and a warning names their number.
    The relevance score is what ranks, divided by the blend's total weight: the same order, and never above 1.
    """
    ranking = blend or answer.identity.blend
    most = 1.0 if ranking is None else total_weight(ranking)
    values = [score.score if blend is None else blended(score, blend) for score in answer.scores]
    num_scored, num_asked = len(values), len(wanted.documents)
    order = sorted(range(num_scored), key=lambda index: (-values[index], index))
    results = [
        RerankResult(
            index=index,
            relevance_score=min(values[index] / most, 1.0) if index < num_scored and most > 0 else 0.0,
            scored=None if index < num_scored else False,
            document=_returned(wanted.documents[index]) if wanted.return_documents else None,
        )
        for index in [*order, *range(num_scored, num_asked)][: wanted.top_n]
    ]
    warnings = wanted.warnings
    if num_scored < num_asked:
        cut = f"Only the first {num_scored} of {num_asked} documents were scored, for want of time; the others follow."
        warnings = [*warnings, cut]
    return RerankResponse(
        id=request_id,
        model=answer.identity.bundle_id,
        policy_version=answer.identity.policy_version,
        results=results,
        meta=RerankMeta(api_version={"version": version}, warnings=warnings or None),
    )


def _returned(document: str | dict[str, Any]) -> dict[str, Any]:
    return {"text": document} if isinstance(document, str) else dict(document)
