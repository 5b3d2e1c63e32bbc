"""What may be asked of the scorer and what is answered: the models of /v1/score, and the operator's limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveFloat, PositiveInt, Tag, TypeAdapter

from preceptor.contracts import NUM_GRADES
from preceptor.errors import InputError
from preceptor_serve.blending import BlendBounds
from preceptor_serve.depth import DepthOptions

REQUEST_ID_PATTERN: Final = r"^[A-Za-z0-9._:\-]{1,128}$"
MAX_DEADLINE_MS: Final = 600_000
MAX_NAME_CHARS: Final = 256

_STRICT: Final = ConfigDict(strict=True, extra="forbid", frozen=True)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one request may ask for. Lengths are in characters, the body in bytes.

    `max_documents` bounds each part of a batch and `max_batch_documents` all of them together. `blend` bounds what a
    request may put in the place of the bundle's own blend. While more than `max_wait_s` of work waits, none is taken.
    `depth`, where there is one, lets overload cut requests to their first documents.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    max_documents: PositiveInt = 250
    max_query_chars: PositiveInt = 512
    max_profile_chars: PositiveInt = 8192
    max_document_chars: PositiveInt = 16384
    max_body_bytes: PositiveInt = 2 * 1024 * 1024
    max_batch_requests: PositiveInt = 16
    max_batch_documents: PositiveInt = 1000
    body_timeout_s: PositiveFloat = 10.0
    max_wait_s: PositiveFloat = 30.0
    blend: BlendBounds = field(default_factory=BlendBounds)
    depth: DepthOptions | None = None


class Refusal(InputError):
    """A request the edge refuses, with what its error body says."""

    def __init__(
        self, status: int, code: str, message: str, *, field: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field
        self.retry_after_s = retry_after_s


# The pattern is for readers of the description: what breaks it is refused as an empty document, with its place.
Text = Annotated[str, Field(json_schema_extra={"pattern": r"\S"})]


class Document(BaseModel):
    """A document with the caller's own name for it."""

    model_config = _STRICT

    id: Annotated[str, Field(max_length=MAX_NAME_CHARS)] | None = None
    text: Text


Weight = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]


class BlendWeights(BaseModel):
    """What ranks: relevance * expected_grade / 4 + click * P(click) + apply * P(apply)."""

    model_config = _STRICT

    relevance: Weight
    click: Weight
    apply: Weight


RequestId = Annotated[str, Field(pattern=REQUEST_ID_PATTERN)]
DeadlineMs = Annotated[int, Field(ge=1, le=MAX_DEADLINE_MS)]
MinDocuments = Annotated[int, Field(ge=1)]


def _kind(value: object) -> str | None:
    if isinstance(value, str):
        return "str"
    return "object" if isinstance(value, dict | Document) else None


_ITEM_EXAMPLE: Final[dict[str, Any]] = {
    "query": "night nurse part time",
    "profile": "Registered nurse, 6 years on surgical wards, wants nights near Leeds.",
    "documents": [
        "Staff Nurse (nights), surgical ward, Leeds.",
        {"id": "b7", "text": "Dental receptionist."},
    ],
}


class ScoreItem(BaseModel):
    """One query of one member, and the documents to score for it, the likeliest first.

    Without `blend` the bundle's own one ranks. With `min_documents` no more than so many, the first ones, have to be
    scored where the deadline or the scorer's load leaves no time for all; as many as there are forbids any cut.
    """

    model_config = _STRICT | ConfigDict(json_schema_extra={"example": _ITEM_EXAMPLE})

    query: str
    profile: str
    documents: list[
        Annotated[Annotated[Text, Tag("str")] | Annotated[Document, Tag("object")], Discriminator(_kind)]
    ] = Field(min_length=1)
    blend: BlendWeights | None = None
    min_documents: MinDocuments | None = None

    @property
    def texts(self) -> list[str]:
        """The text of each document, in the request's order."""
        return [document if isinstance(document, str) else document.text for document in self.documents]

    @property
    def ids(self) -> list[str | None]:
        """The caller's id of each document, None where it gave none."""
        return [None if isinstance(document, str) else document.id for document in self.documents]


class ScoreRequest(ScoreItem):
    """One query of one member, and the documents to score for it."""

    request_id: RequestId | None = None
    deadline_ms: DeadlineMs | None = None

    @property
    def items(self) -> list[ScoreItem]:
        """What is to be scored."""
        return [self]


class BatchRequest(BaseModel):
    """Several queries in one call: all are answered or none. `blend` is for those that bring none of their own."""

    model_config = _STRICT | ConfigDict(
        json_schema_extra={
            "example": {
                "requests": [
                    _ITEM_EXAMPLE,
                    {"query": "baker", "profile": "", "documents": ["Baker, early shifts."]},
                ],
                "deadline_ms": 2000,
            }
        }
    )

    requests: list[ScoreItem] = Field(min_length=1)
    blend: BlendWeights | None = None
    request_id: RequestId | None = None
    deadline_ms: DeadlineMs | None = None

    @property
    def items(self) -> list[ScoreItem]:
        """What is to be scored, each with its blend."""
        if self.blend is None:
            return list(self.requests)
        return [
            item if item.blend is not None else item.model_copy(update={"blend": self.blend}) for item in self.requests
        ]


def _shape(value: object) -> str:
    return "batch" if isinstance(value, BatchRequest) or (isinstance(value, dict) and "requests" in value) else "one"


ScoreBody = Annotated[
    Annotated[ScoreRequest, Tag("one")] | Annotated[BatchRequest, Tag("batch")], Discriminator(_shape)
]
SCORE_BODY: Final[TypeAdapter[ScoreRequest | BatchRequest]] = TypeAdapter(ScoreBody)


class DocumentResult(BaseModel):
    """What the bundle says of one document. `score` ranks; `expected_grade` is the mean of `grade_probs`, 0 to 4."""

    index: int
    id: str | None
    score: float
    expected_grade: float
    grade_probs: Annotated[list[float], Field(min_length=NUM_GRADES, max_length=NUM_GRADES)]
    actions: dict[str, float]


class UnscoredResult(BaseModel):
    """A document that was left out for want of time: nothing is known of it."""

    index: int
    id: str | None
    scored: Literal[False] = False


class Depth(BaseModel):
    """Of the documents that were asked for, so many were scored: the first ones."""

    asked: int
    scored: int


class ScoreAnswer(BaseModel):
    """One result for each document, in the request's order. `blend` is what ranked; null where a bundle says none.

    `depth` is null where every document was scored. Where not, those that were left out come last, with
    ``"scored": false`` in the place of scores.
    """

    bundle_id: str
    policy_version: str
    blend: BlendWeights | None
    depth: Depth | None = None
    results: list[DocumentResult | UnscoredResult]


class ScoreResponse(ScoreAnswer):
    """The answer to one request."""

    request_id: str


class BatchResponse(BaseModel):
    """An answer for each of `requests`, in their order; while a bundle is replaced they may name two."""

    request_id: str
    answers: list[ScoreAnswer]


class Live(BaseModel):
    """That this process answers."""

    status: str = "ok"


class Ready(BaseModel):
    """That a scorer answers, and which."""

    status: str = "ok"
    bundle_id: str
    policy_version: str


class Model(BaseModel):
    """A served bundle, in the shape of OpenAI's list of models."""

    id: str
    object: str = "model"
    owned_by: str = "preceptor"
    policy_version: str
    blend: BlendWeights | None


class NamedModel(BaseModel):
    """The same bundle in the shape of Cohere's list of models."""

    name: str
    endpoints: list[str]


class Models(BaseModel):
    """What is served: the same list in both shapes."""

    object: str = "list"
    data: list[Model]
    models: list[NamedModel]


class ErrorBody(BaseModel):
    """Why a request was refused."""

    code: str
    message: str
    field: str | None
    request_id: str


class ErrorResponse(BaseModel):
    """The body of every 4xx and 5xx."""

    error: ErrorBody
