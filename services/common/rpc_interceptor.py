"""What happens around every rpc: errors become statuses, one line is logged, one request is counted.

A JanusError is answered with its row of the table; any other exception is ours, so its traceback is logged and the
caller learns only that it happened. A client that goes away is neither.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, NoReturn, TypeAlias
from uuid import uuid4

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from services.common.errors import Internal, InvalidRequest, JanusError
from services.common.logging import begin_request, get_logger, request_model
from services.common.metrics import ServiceMetrics
from services.common.rpc_status import to_rpc_status

OPERATIONS = ("/grpc.health.", "/grpc.reflection.")
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

Context = grpc.aio.ServicerContext[Any, Any]
Method: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_log = get_logger(__name__)
# In the place of a request that is no message: gRPC's own refusal is UNKNOWN, with a traceback in the log.
_UNREADABLE: Final = object()


class RpcInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method but those of health and reflection.

    An inner server, which only a gateway asks, tells of what went well in its debug log alone: the gateway has written
    the request's line.
    """

    def __init__(self, metrics: ServiceMetrics, *, is_inner: bool = False) -> None:
        self._metrics = metrics
        self._ok_level = logging.DEBUG if is_inner else logging.INFO

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Method | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Method | None":
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(OPERATIONS):
            return handler
        codec = (_reading(handler.request_deserializer), handler.response_serializer)
        if handler.unary_unary is not None:
            one = self._answering(method, handler.unary_unary, _readable)
            return grpc.unary_unary_rpc_method_handler(one, *codec)
        if handler.unary_stream is not None:
            many = self._streaming(method, handler.unary_stream, _readable)
            return grpc.unary_stream_rpc_method_handler(many, *codec)
        if handler.stream_unary is not None:
            one = self._answering(method, handler.stream_unary, _all_readable)
            return grpc.stream_unary_rpc_method_handler(one, *codec)
        many = self._streaming(method, handler.stream_stream, _all_readable)
        return grpc.stream_stream_rpc_method_handler(many, *codec)

    def _answering(self, method: str, answer: Any, readable: Callable[[Any], Any]) -> Any:
        async def answer_one(request: Any, context: Context) -> Any:
            rpc = _Rpc(method, context, self._metrics, self._ok_level)
            try:
                response = await answer(readable(request), context)
            except BaseException as error:
                await rpc.fail(error)
            rpc.end("ok")
            return response

        return answer_one

    def _streaming(self, method: str, answers: Any, readable: Callable[[Any], Any]) -> Any:
        async def answer_many(request: Any, context: Context) -> AsyncIterator[Any]:
            rpc = _Rpc(method, context, self._metrics, self._ok_level)
            try:
                async with aclosing(answers(readable(request), context)) as responses:
                    async for response in responses:
                        rpc.stage = "streaming"
                        yield response
            except BaseException as error:
                await rpc.fail(error)
            rpc.end("ok")

        return answer_many


class _Rpc:
    """One rpc from its first line to its last."""

    def __init__(self, method: str, context: Context, metrics: ServiceMetrics, ok_level: int) -> None:
        self.stage = "waiting"
        self._ok_level = ok_level
        self._started = time.perf_counter()
        self._method = method.rpartition("/")[2]
        self._context = context
        self._metrics = metrics
        begin_request(request_id=given_request_id(context) or uuid4().hex)

    async def fail(self, error: BaseException) -> NoReturn:
        """Answer with the error's status, or let a cancellation pass.

        Raises: always; what grpc.aio expects of a method that ended without an answer.
        """
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
        await self._context.abort_with_status(rpc_status.to_status(to_rpc_status(error)))

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


def _reading(read: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    assert read is not None  # the stubs always name one

    def read_or_mark(message: bytes) -> Any:
        try:
            return read(message)
        except DecodeError:
            return _UNREADABLE

    return read_or_mark


def _readable(request: Any) -> Any:
    """Raises: InvalidRequest."""
    if request is _UNREADABLE:
        raise InvalidRequest("The request could not be read.")
    return request


async def _all_readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Raises: InvalidRequest, at the first that is not."""
    async for request in requests:
        yield _readable(request)


def given_request_id(context: Context) -> str:
    """The caller's `x-request-id`; empty when there is none that can be used."""
    for name, value in context.invocation_metadata() or ():
        if name == "x-request-id" and isinstance(value, str) and len(value) <= MAX_REQUEST_ID_CHARACTERS:
            return value
    return ""


def _is_late(context: Context) -> bool:
    remaining: float | None = context.time_remaining()
    return remaining is not None and remaining <= 0
