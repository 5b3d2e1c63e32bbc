"""The OpenAPI document: what FastAPI cannot see of routes that read their own bodies, and an example of everything."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from preceptor_serve.keys import KeyRing
from preceptor_serve.rerank import RerankRequest
from preceptor_serve.schema import MAX_DEADLINE_MS, BatchRequest, ErrorResponse, ScoreRequest

_TEMPLATE: Final = "#/components/schemas/{model}"
_ERRORS: Final = {
    400: ("malformed_json", "The body is not one JSON value in UTF-8. Send a JSON object.", None),
    401: ("unauthorized", "A valid key is needed. Send it as 'Authorization: Bearer KEY'.", None),
    408: ("body_timeout", "The body did not arrive within 10 s. Send it in one go.", None),
    413: ("body_too_large", "A body may have 2097152 bytes. Send fewer or shorter documents.", None),
    415: ("unsupported_media_type", "Send the body as Content-Type: application/json.", None),
    422: ("too_many_documents", "At most 250 documents, got 300. Split the request.", "documents"),
    429: ("overloaded", "Too many requests wait already. Retry later.", None),
    500: ("internal", "The scorer failed. Retry; if it lasts, tell its owner.", None),
    503: ("unavailable", "No scorer is ready. Retry later.", None),
    504: ("timeout", "No answer in time. Send fewer documents, or retry later.", None),
}
_BLEND: Final = {"relevance": 0.7, "click": 0.2, "apply": 0.1}
_NAMES: Final = {"bundle_id": "9f2c41d07b6a", "policy_version": "1.2.0+5c1f09aa"}
_RESULTS: Final = [
    {
        "index": 0,
        "id": None,
        "score": 0.77,
        "expected_grade": 3.6,
        "grade_probs": [0.0, 0.02, 0.06, 0.22, 0.7],
        "actions": {"click": 0.5, "apply": 0.4},
    },
    {
        "index": 1,
        "id": "b7",
        "score": 0.1425,
        "expected_grade": 0.5,
        "grade_probs": [0.6, 0.3, 0.1, 0.0, 0.0],
        "actions": {"click": 0.2, "apply": 0.15},
    },
]
_ANSWER: Final = {**_NAMES, "blend": _BLEND, "depth": None, "results": _RESULTS}
_CUT_ANSWER: Final = {
    **_ANSWER,
    "depth": {"asked": 2, "scored": 1},
    "results": [_RESULTS[0], {"index": 1, "id": "b7", "scored": False}],
}
_RERANKED: Final = {
    "id": "7d1c",
    "model": _NAMES["bundle_id"],
    "policy_version": _NAMES["policy_version"],
    "results": [
        {
            "index": 1,
            "relevance_score": 0.77,
            "document": {"text": "Staff Nurse (nights), surgical ward, Leeds."},
        }
    ],
}
_MODEL: Final = {
    "id": _NAMES["bundle_id"],
    "object": "model",
    "owned_by": "preceptor",
    "policy_version": _NAMES["policy_version"],
    "blend": _BLEND,
}
_ONE: Final = {"summary": "One query", "value": {"request_id": "7d1c", **_ANSWER}}
_CUT: Final = {"summary": "Cut for want of time", "value": {"request_id": "7d1c", **_CUT_ANSWER}}
_BATCH: Final = {"summary": "Several queries", "value": {"request_id": "7d1c", "answers": [_ANSWER]}}
# What each path answers when all is well, as a media type object has it.
_EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "/v1/score": {"examples": {"one": _ONE, "cut": _CUT, "batch": _BATCH}},
    "/v1/rerank": {"example": {**_RERANKED, "meta": {"api_version": {"version": "1"}}}},
    "/v2/rerank": {"example": {**_RERANKED, "meta": {"api_version": {"version": "2"}}}},
    "/v1/models": {
        "example": {
            "object": "list",
            "data": [_MODEL],
            "models": [{"name": _NAMES["bundle_id"], "endpoints": ["rerank", "score"]}],
        }
    },
    "/healthz": {"example": {"status": "ok"}},
    "/readyz": {"example": {"status": "ok", **_NAMES}},
    "/metrics": {"example": 'preceptor_documents_scored_total{replica="edge-1"} 1250.0\n'},
}


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Each of `statuses` as FastAPI's `responses` takes them: the error body."""
    return {status: {"model": ErrorResponse} for status in statuses}


def request_of(*models: type) -> dict[str, Any]:
    """The request body, one of `models`, and the headers of a scoring route."""
    schemas = [{"$ref": _TEMPLATE.format(model=model.__name__)} for model in models]
    examples = {
        model.__name__: {"value": model.model_config["json_schema_extra"]["example"]}  # type: ignore[attr-defined]
        for model in models
    }
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}},
        "parameters": [
            {
                "name": "X-Request-ID",
                "in": "header",
                "required": False,
                "description": "The answer's request_id where the body has none. A new id where it is not well formed.",
                "schema": {"type": "string"},
                "example": "7d1c",
            },
            {
                "name": "X-Deadline-Ms",
                "in": "header",
                "required": False,
                "description": "The deadline where the body has no deadline_ms.",
                "schema": {"type": "integer", "minimum": 1, "maximum": MAX_DEADLINE_MS},
                "example": 500,
            },
        ],
    }


def describe(app: FastAPI, *, keys: KeyRing | None) -> dict[str, Any]:
    """The OpenAPI document of `app`; it asks for a key where there are `keys`."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    wanted = [(model, "validation") for model in (ScoreRequest, BatchRequest, RerankRequest)]
    _, schemas = models_json_schema(wanted, ref_template=_TEMPLATE)  # type: ignore[arg-type]
    document["components"]["schemas"] |= schemas["$defs"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                _exemplify(answer["content"], path, int(status))
    if keys is not None:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path in ("/healthz", "/readyz") else [{"key": []}]
    return document


def _exemplify(content: dict[str, dict[str, Any]], path: str, status: int) -> None:
    """Puts examples into the media types of one answer. Afterwards, because FastAPI drops their nulls."""
    if status == 200:
        extra = _EXAMPLES[path]
    else:
        code, message, field = _ERRORS[status]
        extra = {"example": {"error": {"code": code, "message": message, "field": field, "request_id": "7d1c"}}}
    for media_type in content.values():
        media_type.update(extra)
