"""What may be asked and what is answered: the API's models, their limits and the checks, without HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag, ValidationError

from preceptor.contracts import NUM_GRADES
from preceptor.errors import InputError

REQUEST_ID_PATTERN: Final = r"^[A-Za-z0-9._:\-]{1,128}$"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one request may ask for. Lengths are in characters, the body in bytes."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    max_documents: PositiveInt = 250
    max_query_chars: PositiveInt = 512
    max_profile_chars: PositiveInt = 8192
    max_document_chars: PositiveInt = 16384
    max_body_bytes: PositiveInt = 2 * 1024 * 1024


class Document(BaseModel):
    """A document with the caller's own name for it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    id: Annotated[str, Field(max_length=256)] | None = None
    text: str


def _kind(value: object) -> str | None:
    if isinstance(value, str):
        return "str"
    return "object" if isinstance(value, dict | Document) else None


class ScoreRequest(BaseModel):
    """One query of one member, and the documents to score for it."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "example": {
                "query": "night nurse part time",
                "profile": "Registered nurse, 6 years on surgical wards, wants nights near Leeds.",
                "documents": [
                    "Staff Nurse (nights), surgical ward, Leeds.",
                    {"id": "b7", "text": "Dental receptionist."},
                ],
            }
        },
    )

    query: str
    profile: str
    documents: list[
        Annotated[Annotated[str, Tag("str")] | Annotated[Document, Tag("object")], Discriminator(_kind)]
    ] = Field(min_length=1)
    request_id: Annotated[str, Field(pattern=REQUEST_ID_PATTERN)] | None = None

    @property
    def texts(self) -> list[str]:
        """The text of each document, in the request's order."""
        return [document if isinstance(document, str) else document.text for document in self.documents]

    @property
    def ids(self) -> list[str | None]:
        """The caller's id of each document, None where it gave none."""
        return [None if isinstance(document, str) else document.id for document in self.documents]


class DocumentResult(BaseModel):
    """What the bundle says of one document. `score` ranks; `expected_grade` is the mean of `grade_probs`, 0 to 4."""

    index: int
    id: str | None
    score: float
    expected_grade: float
    grade_probs: Annotated[list[float], Field(min_length=NUM_GRADES, max_length=NUM_GRADES)]
    actions: dict[str, float]


class ScoreResponse(BaseModel):
    """One result for each document, in the request's order."""

    request_id: str
    bundle_id: str
    policy_version: str
    results: list[DocumentResult]


class Health(BaseModel):
    """That a scorer answers, and which."""

    status: str = "ok"
    bundle_id: str
    policy_version: str


class ErrorBody(BaseModel):
    """Why a request was refused."""

    code: str
    message: str
    field: str | None
    request_id: str


class ErrorResponse(BaseModel):
    """The body of every 4xx and 5xx."""

    error: ErrorBody


class Refusal(InputError):
    """A request the edge refuses, with what its error body says."""

    def __init__(self, status: int, code: str, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field


# By Pydantic's error type. Its own messages are not passed on, because some of them quote the value.
_RULES: Final = {
    "missing": "This field is required. Add it.",
    "extra_forbidden": "An unknown field stands here. A request has query, profile, documents and request_id; "
    "a document has id and text.",
    "union_tag_not_found": "A document is a string or an object with 'text'. Send one of the two.",
    "string_type": "A string must stand here. Quote the value, or leave an optional field out.",
    "string_too_long": "An id has at most 256 characters. Shorten it.",
    "string_pattern_mismatch": f"The value must match {REQUEST_ID_PATTERN}. Choose another id.",
    "list_type": "A list must stand here. Put the documents in brackets.",
    "model_type": "The body must be one JSON object. Send query, profile and documents.",
}
_ANY_RULE: Final = "The value's type or form is wrong. Compare it with ScoreRequest in /openapi.json."


def parse(body: bytes) -> ScoreRequest:
    """`body` as a request; Refusal 400 where it is not JSON, 422 where its fields are wrong."""
    try:
        return ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    kind, field = first["type"], _field_path(first["loc"])
    if kind == "json_invalid":
        raise Refusal(400, "malformed_json", "The body is not one JSON value in UTF-8. Send a JSON object.")
    if kind == "too_short":
        raise Refusal(422, "empty_documents", "At least one document is needed, got 0. Add one.", field=field)
    raise Refusal(422, "invalid_field", _RULES.get(kind, _ANY_RULE), field=field)


def _field_path(location: Sequence[int | str]) -> str | None:
    """`location` as ``documents[3].text``, without union tags and without names that the caller made up."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in ScoreRequest.model_fields or part in Document.model_fields:
            path += f".{part}" if path else part
    return path or None


def admit(request: ScoreRequest, limits: Limits) -> None:
    """Nothing; Refusal 422 where `request` is over `limits` or has nothing to score."""
    if len(request.documents) > limits.max_documents:
        message = f"At most {limits.max_documents} documents, got {len(request.documents)}. Split the request."
        raise Refusal(422, "too_many_documents", message, field="documents")
    texts = [("query", request.query, limits.max_query_chars), ("profile", request.profile, limits.max_profile_chars)]
    texts += [(f"documents[{i}]", text, limits.max_document_chars) for i, text in enumerate(request.texts)]
    for field, text, max_chars in texts:
        if len(text) > max_chars:
            message = f"At most {max_chars} characters, got {len(text)}. Shorten it."
            raise Refusal(422, "text_too_long", message, field=field)
    if not request.query.strip() and not request.profile.strip():
        raise Refusal(422, "empty_query", "Query and profile are both empty. Give at least one.", field="query")
    for index, text in enumerate(request.texts):
        if not text.strip():
            message = "A document without text cannot be scored. Leave it out."
            raise Refusal(422, "empty_document", message, field=f"documents[{index}]")
