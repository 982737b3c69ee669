"""One rpc from its first line to its last: it is logged and counted once, and what it raises becomes a JanusError.

A JanusError keeps its row of the table; any other exception is ours, so its traceback is logged and the caller learns
only that it happened. A client that goes away is neither.
"""

import asyncio
import logging
import time
from typing import Any, Protocol
from uuid import uuid4

import grpc

from services.common.errors import Internal, JanusError
from services.common.logging import begin_request, get_logger, request_model
from services.common.metrics import ServiceMetrics

MAX_REQUEST_ID_CHARACTERS = 128
# Tasks as the REST routes name them; a method without an entry is its own task.
TASKS = {
    "ClassifyText": "classify",
    "ClassifyTextStream": "classify-stream",
    "ClassifyZeroShot": "zero-shot-classify",
    "ClassifyTokens": "token-classify",
    "FillMask": "fill-mask",
    "AnswerQuestion": "question-answering",
    "EmbedText": "embeddings",
    "EmbedTextStream": "embeddings-stream",
    "RerankTexts": "rerank",
    "InspectAttention": "attention",
    "Chat": "chat",
    "Generate": "completions",
    "TokenizeText": "tokenize",
    "DetokenizeTokens": "detokenize",
}

_log = get_logger(__name__)


class Context(Protocol):
    """What is asked of a caller's `grpc.aio.ServicerContext`."""

    def invocation_metadata(self) -> Any: ...

    def time_remaining(self) -> Any: ...


class Rpc:
    """Begins with the request; `end` or `failed` is called once.

    An inner one, which a gateway asks, tells of what went well in the debug log alone: the gateway has written the
    request's line.
    """

    def __init__(self, method: str, context: Context, metrics: ServiceMetrics, *, is_inner: bool) -> None:
        self.stage = "waiting"
        self._ok_level = logging.DEBUG if is_inner else logging.INFO
        self._started = time.perf_counter()
        self._method = method.rpartition("/")[2]
        self._context = context
        self._metrics = metrics
        begin_request(request_id=_given_request_id(context) or uuid4().hex)

    def failed(self, error: BaseException) -> JanusError:
        """The error to answer with. Raises: `error` itself where nobody is there to be answered."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            if _is_late(self._context):
                self.end("deadline_exceeded", stage=self.stage)
            else:
                self._metrics.cancellations_total.labels(self.stage).inc()
                self.end("cancelled", stage=self.stage)
            raise error
        if isinstance(error, grpc.aio.AbortError) or not isinstance(error, Exception):
            self.end("internal")
            raise error
        if not isinstance(error, JanusError):
            _log.error("unexpected error", method=self._method, exc_info=error)
            error = Internal("An internal error occurred.")
        self.end(error.code, error=error.message if error.code != "internal" else None)
        return error

    def end(self, code: str, **fields: object) -> None:
        """Log and count."""
        seconds = time.perf_counter() - self._started
        self._metrics.observe_request(
            task=TASKS.get(self._method, self._method),
            model=request_model(),
            code=code,
            transport="grpc",
            seconds=seconds,
        )
        said = {name: value for name, value in fields.items() if value is not None}
        level = self._ok_level if code == "ok" else logging.INFO
        _log.log(level, "rpc", method=self._method, code=code, duration_ms=round(seconds * 1000, 2), **said)


def _given_request_id(context: Context) -> str:
    """The caller's `x-request-id`; empty when there is none that can be used."""
    for name, value in context.invocation_metadata() or ():
        if name == "x-request-id" and isinstance(value, str) and len(value) <= MAX_REQUEST_ID_CHARACTERS:
            return value
    return ""


def _is_late(context: Context) -> bool:
    remaining: float | None = context.time_remaining()
    return remaining is not None and remaining <= 0
