"""From a request's bytes to what is to be scored, or to the refusal that says which rule it breaks. No HTTP."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from preceptor.bundle import Blend
from preceptor_serve.blending import OutOfBounds
from preceptor_serve.rerank import RerankRequest
from preceptor_serve.schema import (
    MAX_DEADLINE_MS,
    REQUEST_ID_PATTERN,
    BatchRequest,
    BlendWeights,
    Document,
    Limits,
    Refusal,
    ScoreRequest,
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One query of one member, and the texts to score for it; `blend` None leaves the bundle's own.

    `min_documents` of them have to be scored; None leaves that to the operator.
    """

    query: str
    profile: str
    documents: tuple[str, ...]
    blend: Blend | None
    min_documents: int | None = None

    @property
    def num_chars(self) -> int:
        """Characters to be read: query and profile once, each document once."""
        return len(self.query) + len(self.profile) + sum(map(len, self.documents))

    def first(self, num_documents: int) -> Ask:
        """The same about its first `num_documents` documents."""
        return replace(self, documents=self.documents[:num_documents])


# By Pydantic's error type. Its own messages are not passed on, because some of them quote the value.
_RULES: Final = {
    "missing": "This field is required. Add it.",
    "union_tag_not_found": "A document is a string or an object. Send one of the two.",
    "string_type": "A string must stand here. Quote the value, or leave an optional field out.",
    "string_too_long": "A name has at most 256 characters. Shorten it.",
    "string_pattern_mismatch": f"The value must match {REQUEST_ID_PATTERN}. Choose another id.",
    "list_type": "A list must stand here. Put the values in brackets.",
    "model_type": "One JSON object must stand here.",
    "int_type": "A whole number must stand here.",
    "float_type": "A number must stand here.",
    "finite_number": "A finite number must stand here.",
    "greater_than_equal": "The number is too small. Choose a greater one.",
    "less_than_equal": f"The number is too large: a deadline has at most {MAX_DEADLINE_MS} ms, a weight at most 1000.",
}
_FIELDS: Final = {
    name for model in (ScoreRequest, BatchRequest, Document, BlendWeights, RerankRequest) for name in model.model_fields
}


def parse(body: bytes, wanted: TypeAdapter[T]) -> T:
    """`body` as what is `wanted`; Refusal 400 where it is not JSON, 422 where its fields are wrong."""
    try:
        return wanted.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    kind, field = first["type"], _field_path(first["loc"])
    if kind == "json_invalid":
        raise Refusal(400, "malformed_json", "The body is not one JSON value in UTF-8. Send a JSON object.")
    if kind == "too_short":
        code = "empty_documents" if field is None or field.endswith("documents") else "invalid_field"
        raise Refusal(422, code, "At least one is needed, got 0. Add one.", field=field)
    if kind == "extra_forbidden":
        message = "An unknown field stands here. See the path's schema in /openapi.json for those there are."
        raise Refusal(422, "invalid_field", message, field=field)
    message = _RULES.get(kind, "The value's type or form is wrong. Compare it with the schema in /openapi.json.")
    raise Refusal(422, "invalid_field", message, field=field)


def _field_path(location: Sequence[int | str]) -> str | None:
    """`location` as ``documents[3].text``, without union tags and without names that the caller made up."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in _FIELDS:
            path += f".{part}" if path else part
    return path or None


def asks_of(wanted: ScoreRequest | BatchRequest, limits: Limits) -> list[Ask]:
    """What `wanted` asks to score; Refusal 422 where it is over `limits` or has nothing to score."""
    items = wanted.items
    batch = isinstance(wanted, BatchRequest)
    if len(items) > limits.max_batch_requests:
        message = f"At most {limits.max_batch_requests} requests in one body, got {len(items)}. Split it."
        raise Refusal(422, "too_many_requests", message, field="requests")
    num_documents = sum(len(item.documents) for item in items)
    if batch and num_documents > limits.max_batch_documents:
        message = f"At most {limits.max_batch_documents} documents in one body, got {num_documents}. Split it."
        raise Refusal(422, "too_many_documents", message, field="requests")
    asks = []
    for index, item in enumerate(items):
        blend = None if item.blend is None else Blend(**item.blend.model_dump())
        ask = Ask(
            query=item.query,
            profile=item.profile,
            documents=tuple(item.texts),
            blend=blend,
            min_documents=item.min_documents,
        )
        admit(ask, limits, inside=f"requests[{index}]." if batch else "")
        asks.append(ask)
    return asks


def ask_of(wanted: RerankRequest, limits: Limits) -> Ask:
    """What `wanted` asks to rank; Refusal 422 as `asks_of`."""
    blend = None if wanted.blend is None else Blend(**wanted.blend.model_dump())
    ask = Ask(
        query=wanted.query,
        profile=wanted.profile or "",
        documents=tuple(wanted.texts),
        blend=blend,
        min_documents=wanted.min_documents,
    )
    admit(ask, limits, inside="")
    return ask


def admit(ask: Ask, limits: Limits, *, inside: str) -> None:
    """Nothing; Refusal 422 where `ask`, which stands `inside` a body, is over `limits` or has nothing to score."""
    if len(ask.documents) > limits.max_documents:
        message = f"At most {limits.max_documents} documents, got {len(ask.documents)}. Split the request."
        raise Refusal(422, "too_many_documents", message, field=f"{inside}documents")
    texts = [("query", ask.query, limits.max_query_chars), ("profile", ask.profile, limits.max_profile_chars)]
    texts += [(f"documents[{i}]", text, limits.max_document_chars) for i, text in enumerate(ask.documents)]
    for field, text, max_chars in texts:
        if len(text) > max_chars:
            message = f"At most {max_chars} characters, got {len(text)}. Shorten it."
            raise Refusal(422, "text_too_long", message, field=inside + field)
    if not ask.query.strip() and not ask.profile.strip():
        raise Refusal(
            422, "empty_query", "Query and profile are both empty. Give at least one.", field=f"{inside}query"
        )
    for index, text in enumerate(ask.documents):
        if not text.strip():
            message = "A document without text cannot be scored. Leave it out."
            raise Refusal(422, "empty_document", message, field=f"{inside}documents[{index}]")
    if ask.blend is not None:
        try:
            limits.blend.check(ask.blend)
        except OutOfBounds as error:
            raise blend_refused(error, inside=inside) from None


def blend_refused(error: OutOfBounds, *, inside: str) -> Refusal:
    """The refusal that names the weight at fault."""
    field = f"{inside}blend" + (f".{error.part}" if error.part else "")
    return Refusal(422, "blend_out_of_bounds", str(error), field=field)


def deadline_of(in_body: int | None, in_header: str | None) -> float | None:
    """Seconds a request may take: the body's, then the header's, then None; Refusal 422 where the header is wrong."""
    given = in_body
    if in_header is not None:
        digits = in_header if re.fullmatch(r"[0-9]{1,6}", in_header) else "0"
        if not 1 <= int(digits) <= MAX_DEADLINE_MS:
            message = f"X-Deadline-Ms is a whole number of ms from 1 to {MAX_DEADLINE_MS}. Mend or drop the header."
            raise Refusal(422, "invalid_field", message, field="deadline_ms")
        given = in_body or int(digits)
    return None if given is None else given / 1000
