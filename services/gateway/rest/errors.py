"""How an error of the table looks over HTTP: one body, readable as RFC 9457 and as OpenAI's, and the retry headers.

    {"type": "urn:janus:error:<code>", "title", "status", "detail", "instance": "urn:janus:request:<id>",
     "error": {"message", "type", "param", "code"}, "request_id", "retry_after_ms"}

No text here comes from a request's values: what was sent is never sent back. The OpenAI client reads `x-should-retry`
and `retry-after-ms`; without them it retries every 409 and every 500 and above.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from services.common.errors import (
    Internal,
    InvalidRequest,
    JanusError,
    MethodNotAllowed,
    RouteNotFound,
)
from services.gateway.request_context import RequestContext

PROBLEM_MEDIA_TYPE = "application/problem+json"
_LONGEST_NAME = 64


def openai_error(error: JanusError) -> dict[str, Any]:
    return {"message": error.message, "type": error.row.openai_type, "param": error.param, "code": error.code}


def problem(error: JanusError, request_id: str) -> dict[str, Any]:
    return {
        "type": f"urn:janus:error:{error.code}",
        "title": error.row.title,
        "status": error.row.http,
        "detail": error.message,
        "instance": f"urn:janus:request:{request_id}",
        "error": openai_error(error),
        "request_id": request_id,
        "retry_after_ms": error.retry_after_ms,
    }


def render(error: JanusError, request_id: str) -> JSONResponse:
    """The whole answer to a request that failed before anything of its answer was sent."""
    # An internal error is worth a retry only while nothing was sent, and here nothing was.
    is_retryable = error.row.is_retryable or isinstance(error, Internal)
    headers = {"x-should-retry": "true" if is_retryable else "false"}
    if error.retry_after_ms is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_ms / 1000))
        headers["retry-after-ms"] = str(error.retry_after_ms)
    return JSONResponse(problem(error, request_id), error.row.http, headers, PROBLEM_MEDIA_TYPE)


def add_error_rendering(app: FastAPI) -> None:
    """Routes' errors, the framework's own 404 and 405, and validation all end in `render`."""

    async def janus_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, JanusError)
        return _answer(request, error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = _answer(request, _of_status(error.status_code))
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
        return response

    async def validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _answer(request, of_validation(error.errors()))

    app.add_exception_handler(JanusError, janus_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)


def respell(error: JanusError, param: str | None) -> None:
    """Gives the field at fault the name `param` that the body has for it, where the message quotes it, too.

    Mutates: `error`.
    """
    if error.param is not None and param is not None:
        error.message = re.sub(rf"'{re.escape(error.param)}(?=['\[.])", f"'{param}", error.message)
    error.param = param


def of_validation(failures: Sequence[Any]) -> InvalidRequest:
    """The first failure, with its field's name; only the kind of failure is told, never the value."""
    failure = failures[0]
    param = _param(failure["loc"])
    if param is None:
        return InvalidRequest("The body must be a JSON object.")
    match failure["type"]:
        case "extra_forbidden":
            return InvalidRequest(f"'{param}' is not a known field.", param=param)
        case "missing":
            return InvalidRequest(f"'{param}' is required.", param=param)
        case _:
            return InvalidRequest(f"'{param}' {_rule(failure)}.", param=param)


def _rule(failure: Any) -> str:
    """What the validator asks for, in our words where its own are Python's."""
    match failure["type"]:
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be an object"
        case "string_too_short" | "too_short":
            return "can't be empty"
        case _:
            return f"must be {str(failure['msg']).removeprefix('Input should be ')}"


def _param(location: Sequence[str | int]) -> str | None:
    """("body", "messages", 0, "role") -> messages[0].role"""
    name = ""
    for step in location[1:]:
        if isinstance(step, int):
            name += f"[{step}]"
        else:
            shown = step if len(step) <= _LONGEST_NAME else f"{step[:_LONGEST_NAME]}…"
            name += f".{shown}" if name else shown
    return name or None


def _of_status(status: int) -> JanusError:
    match status:
        case 404:
            return RouteNotFound("There is no such route.")
        case 405:
            return MethodNotAllowed("This route does not take this method.")
        case _:
            return Internal("The request could not be answered.") if status >= 500 else InvalidRequest("Bad request.")


def _answer(request: Request, error: JanusError) -> Response:
    context = RequestContext.of(request.scope)
    context.failed(error)
    return render(error, context.request_id)
