"""How the bytes of a body become JSON, or a refusal that says what is wrong with them.

Stricter than the framework: no NaN and no infinity, no lone surrogate, no body that isn't UTF-8 or isn't declared as
JSON, and a limit that also holds for chunked bodies. One that comes too slowly meets the request's deadline.
Source: RFC 8259, RFC 9110 section 8.
"""

import asyncio
import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from services.common.errors import Cancelled, DeadlineExceeded, InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from services.gateway.request_context import RequestContext

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
_JSON_MEDIA_TYPE = re.compile(r"application/(json|[\w.+-]+\+json)", re.ASCII | re.IGNORECASE)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonRoute(APIRoute):
    """A route whose body is read here; the framework only validates its fields."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def read_then_handle(request: Request) -> Response:
            context = RequestContext.of(request.scope)
            context.shorten(_timeout_seconds(request))
            parsed = ParsedRequest(request.scope, request.receive)
            await parsed.parse(request.app.state.max_body_bytes, context)
            return await handle(parsed)

        return read_then_handle


def _timeout_seconds(request: Request) -> float:
    offered = request.headers.get(TIMEOUT_HEADER)
    if offered is None:
        return math.inf
    if not re.fullmatch(r"[1-9][0-9]{0,11}", offered, re.ASCII):
        raise InvalidRequest(f"'{TIMEOUT_HEADER}' must be a whole number of milliseconds.", param=TIMEOUT_HEADER)
    return int(offered) / 1000


class ParsedRequest(Request):
    """A request whose JSON is parsed before the framework asks for it."""

    async def parse(self, max_body_bytes: int, context: RequestContext) -> None:
        """Raises UnsupportedMediaType, PayloadTooLarge, InvalidRequest, DeadlineExceeded or Cancelled."""
        self._require_json()
        try:
            async with asyncio.timeout(context.remaining_seconds):
                body = await self._read(max_body_bytes)
        except TimeoutError:
            raise DeadlineExceeded("The deadline passed before the body was complete.") from None
        except ClientDisconnect:
            context.cancelled("waiting")
            raise Cancelled("The client went away.") from None
        self._parsed = parse_json(body)

    async def body(self) -> bytes:
        # The framework only asks whether there is one.
        return b"{}"

    async def json(self) -> Any:
        return self._parsed

    def _require_json(self) -> None:
        media_type = self.headers.get("content-type", "").partition(";")[0].strip()
        if not _JSON_MEDIA_TYPE.fullmatch(media_type):
            raise UnsupportedMediaType("The body must be JSON, with 'Content-Type: application/json'.")
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("The body must not be compressed.")

    async def _read(self, max_body_bytes: int) -> bytes:
        declared = self.headers.get("content-length", "")
        too_large = PayloadTooLarge(f"The body is larger than {max_body_bytes} bytes.")
        if declared.isdecimal() and int(declared) > max_body_bytes:
            raise too_large
        body = bytearray()
        async for chunk in self.stream():
            body += chunk
            if len(body) > max_body_bytes:
                raise too_large
        return bytes(body)


def parse_json(body: bytes) -> Any:
    """Raises InvalidRequest for anything but strict JSON in UTF-8."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not UTF-8.") from None
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not JSON: line {error.lineno}, column {error.colno}.") from None
    except (ValueError, RecursionError):
        raise InvalidRequest("The body holds a number that is too long, or is nested too deeply.") from None
    if _SURROGATE_ESCAPE.search(text):
        _refuse_lone_surrogates(value)
    return value


def _finite(literal: str) -> float:
    number = float(literal)
    if number in (float("inf"), float("-inf")):
        raise InvalidRequest("The body holds a number that is out of range.")
    return number


def _refuse_constant(literal: str) -> NoReturn:
    raise InvalidRequest(f"The body holds {literal}, which is not JSON.")


def _refuse_lone_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise InvalidRequest("The body holds half of a surrogate pair, or is nested too deeply.") from None
