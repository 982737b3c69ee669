"""What happens around every rpc that gRPC carries: it is logged and counted, and its errors become statuses."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from services.common.errors import InvalidRequest, JanusError
from services.common.metrics import ServiceMetrics
from services.common.rpc import Rpc
from services.common.rpc_status import to_rpc_status

OPERATIONS = ("/grpc.health.", "/grpc.reflection.", "/janus.v1.WorkerService/")
Context = grpc.aio.ServicerContext[Any, Any]
Method: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# In the place of a request that is no message: gRPC's own refusal is UNKNOWN, with a traceback in the log.
_UNREADABLE: Final = object()


class RpcInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method but those of health and reflection, and the stream that carries calls: they are the rpcs."""

    def __init__(self, metrics: ServiceMetrics, *, is_inner: bool = False) -> None:
        self._metrics = metrics
        self._is_inner = is_inner

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
            rpc = Rpc(method, context, self._metrics, is_inner=self._is_inner)
            try:
                response = await answer(readable(request), context)
            except BaseException as error:
                await _refuse(context, rpc.failed(error))
            rpc.end("ok")
            return response

        return answer_one

    def _streaming(self, method: str, answers: Any, readable: Callable[[Any], Any]) -> Any:
        async def answer_many(request: Any, context: Context) -> AsyncIterator[Any]:
            rpc = Rpc(method, context, self._metrics, is_inner=self._is_inner)
            try:
                async with aclosing(answers(readable(request), context)) as responses:
                    async for response in responses:
                        rpc.stage = "streaming"
                        yield response
            except BaseException as error:
                await _refuse(context, rpc.failed(error))
            rpc.end("ok")

        return answer_many


async def _refuse(context: Context, error: JanusError) -> NoReturn:
    """Raises: always; what grpc.aio expects of a method that ended without an answer."""
    await context.abort_with_status(rpc_status.to_status(to_rpc_status(error)))


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
