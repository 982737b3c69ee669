"""The OpenAPI document: requests with examples, every answer and every error that a route can give.

The framework lists a 422 on each route that has a body; nothing here ever answers with it, so it is taken out.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.models import Example
from fastapi.openapi.utils import get_openapi

from services.common.errors import TABLE
from services.gateway.rest.answers import Problem

DESCRIPTION = """
Both halves of the Transformer behind one door. OpenAI's routes are OpenAI's; task routes take Hugging Face's bodies
and the model in the body. Every error has one shape, readable as RFC 9457 and as OpenAI's, and names the field.
"""

CHAT_EXAMPLES: dict[str, Example] = {
    "chat": {
        "summary": "A question",
        "value": {
            "model": "SmolLM2-135M-Instruct",
            "messages": [{"role": "user", "content": "Name the capital of France."}],
            "max_tokens": 64,
        },
    },
    "stream": {
        "summary": "A stream with its usage at the end",
        "value": {
            "messages": [
                {"role": "system", "content": "Answer in one sentence."},
                {"role": "user", "content": [{"type": "text", "text": "Why is the sky blue?"}]},
            ],
            "temperature": 0,
            "seed": 7,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
}
COMPLETION_EXAMPLES: dict[str, Example] = {
    "prompt": {"summary": "One prompt", "value": {"prompt": "Once upon a time", "max_tokens": 32}},
    "prompts": {"summary": "Several, each a choice", "value": {"prompt": ["The sea is", "The sky is"], "stop": "."}},
}
EMBEDDING_EXAMPLES: dict[str, Example] = {
    "text": {"summary": "One text", "value": {"model": "all-MiniLM-L6-v2", "input": "The quick brown fox"}},
    "texts": {
        "summary": "Several, packed and shortened",
        "value": {"input": ["a fox", "a dog"], "encoding_format": "base64", "dimensions": 128},
    },
}

_BODY_STATUSES = (400, 413, 415, 429)
_EVERY_STATUS = (404, 500, 503, 504)
_HEADERS = {
    "X-Request-Id": {
        "description": "The request's id: the caller's own, or a new one.",
        "schema": {"type": "string"},
    },
}
_RETRY_HEADERS = {
    "Retry-After": {"description": "Seconds after which a retry is worth it.", "schema": {"type": "integer"}},
    "retry-after-ms": {"description": "The same in milliseconds.", "schema": {"type": "integer"}},
    "x-should-retry": {"description": "Whether a retry is worth it at all.", "schema": {"enum": ["true", "false"]}},
}
_REQUEST_HEADERS = [
    {
        "name": "X-Request-Id",
        "in": "header",
        "schema": {"type": "string", "maxLength": 128},
        "description": "An id of the caller's own, for logs on both sides.",
    },
    {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "schema": {"type": "integer", "minimum": 1},
        "description": "The caller's patience; the request ends with deadline_exceeded when it is over.",
    },
]


def answers(model: Any, *, has_body: bool = True, has_stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: its answer, and the errors of the table that it can end in."""
    success: dict[str, Any] = {"model": model, "description": "The answer.", "headers": _HEADERS}
    if has_stream:
        success["content"] = {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'id: 8a6d:0\ndata: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
                'id: 8a6d:1\ndata: {"choices":[{"index":0,"delta":{"content":"Paris"}}]}\n\nid: 8a6d:2\ndata: [DONE]\n',
            }
        }
    statuses = _EVERY_STATUS + (_BODY_STATUSES if has_body else ())
    return {200: success, **{status: _failure(status) for status in sorted(statuses)}}


def _failure(status: int) -> dict[str, Any]:
    codes = [code for code, row in TABLE.items() if row.http == status]
    return {
        "model": Problem,
        "description": f"{HTTPStatus(status).phrase}: {', '.join(codes)}.",
        "headers": _HEADERS | _RETRY_HEADERS,
    }


def add_openapi(app: FastAPI) -> None:
    """Has the app make its document once, as described above."""

    def document() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            if "requestBody" in operation:
                operation["parameters"] = operation.get("parameters", []) + _REQUEST_HEADERS
            for status, response in operation["responses"].items():
                _name_problem(int(status), response)
    for unused in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(unused, None)
    return schema


def _name_problem(status: int, response: Mapping[str, Any]) -> None:
    """Errors are application/problem+json, which the framework can't know."""
    if status >= 400 and "application/json" in response.get("content", {}):
        response["content"]["application/problem+json"] = response["content"].pop("application/json")
