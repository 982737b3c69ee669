"""The worker's end: each call is a task of its own and an rpc of its own; answers leave as they become ready."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from janus.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from services.common.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    JanusError,
    PayloadTooLarge,
    RouteNotFound,
)
from services.common.grpc_server import MAX_MESSAGE_BYTES, Service
from services.common.metrics import ServiceMetrics
from services.common.rpc import Rpc
from services.common.rpc_status import MAX_MESSAGE_CHARACTERS
from services.exchange import MESSAGE_BYTES

Context = grpc.aio.ServicerContext[Any, Any]


def exchange_service(services: Sequence[Service], metrics: ServiceMetrics) -> Service:
    """Answers the unary methods of `services` over its stream."""
    servicer = ExchangeServicer(services, metrics)
    return Service(
        worker_pb2.DESCRIPTOR.services_by_name["WorkerService"],
        worker_pb2_grpc.add_WorkerServiceServicer_to_server,
        servicer,
        servicer.drain,
    )


class ExchangeServicer(worker_pb2_grpc.WorkerServiceServicer):
    """Until it drains, a stream lasts as long as its gateway likes."""

    def __init__(self, services: Sequence[Service], metrics: ServiceMetrics) -> None:
        registered = _Registered()
        for service in services:
            service.register(service.servicer, registered)  # type: ignore[arg-type]
        self._methods = registered.methods
        self._metrics = metrics
        self._streams: set[_Stream] = set()

    def drain(self) -> None:
        """Each stream ends with the last of its calls."""
        for stream in self._streams:
            stream.end()

    # A coroutine that writes, since a generator that is not asked for more never learns that its reader is gone.
    async def Exchange(  # type: ignore[override]
        self, request_iterator: AsyncIterator[worker_pb2.ExchangeRequest], context: Context
    ) -> None:
        await context.send_initial_metadata(())  # tells the gateway that there is an exchange
        stream = _Stream(self._answer)
        self._streams.add(stream)
        try:
            await stream.carry(request_iterator, context.write)
        finally:
            self._streams.remove(stream)

    async def _answer(self, call: worker_pb2.UnaryCall, context: "CallContext") -> bytes | JanusError:
        rpc = Rpc(call.method, context, self._metrics, is_inner=True)
        try:
            response = await self._respond(call, context)
        except BaseException as error:
            return rpc.failed(error)
        rpc.end("ok")
        return response

    async def _respond(self, call: worker_pb2.UnaryCall, context: "CallContext") -> bytes:
        """Raises: what the method raises, and what gRPC itself would refuse."""
        method = self._methods.get(call.method)
        if method is None:
            raise RouteNotFound("There is no such method.")
        try:
            request = method.request_deserializer(call.request)
        except DecodeError:
            raise InvalidRequest("The request could not be read.") from None
        response: bytes = method.response_serializer(await method.unary_unary(request, context))
        if len(response) > MAX_MESSAGE_BYTES:
            raise PayloadTooLarge("A message is larger than the limit.")
        return response


class CallContext:
    """What a method may ask of its caller, as of a `grpc.aio.ServicerContext`."""

    def __init__(self, call: worker_pb2.UnaryCall) -> None:
        self._metadata = tuple(call.metadata.items())
        self._until = time.monotonic() + call.timeout_seconds if call.HasField("timeout_seconds") else None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def time_remaining(self) -> float | None:
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    def expire(self) -> None:
        """No time is left, whatever the clock says: a timer may be a moment early."""
        self._until = 0.0


class _Stream:
    """The calls of one stream, and the answers that are not yet sent."""

    def __init__(self, answer: Callable[[worker_pb2.UnaryCall, CallContext], Awaitable[bytes | JanusError]]) -> None:
        self._answer = answer
        self._running: dict[int, asyncio.Task[bytes | JanusError]] = {}
        self._unsent: deque[tuple[int, memoryview | JanusError]] = deque()
        self._has_news = asyncio.Event()
        self._is_ending = False

    def end(self) -> None:
        """No more calls are waited for."""
        self._is_ending = True
        self._has_news.set()

    async def carry(
        self,
        requests: AsyncIterator[worker_pb2.ExchangeRequest],
        send: Callable[[worker_pb2.ExchangeResponse], Awaitable[None]],
    ) -> None:
        """To its end; whoever cancels it cancels every call."""
        reading = asyncio.create_task(self._read(requests))
        try:
            while self._running or self._unsent or not self._is_ending:
                await self._has_news.wait()
                self._has_news.clear()
                while self._unsent:
                    await send(self._message())
        finally:
            left = (reading, *self._running.values())
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[worker_pb2.ExchangeRequest]) -> None:
        try:
            async for request in requests:
                for call in request.calls:
                    self._begin(call)
                for call_id in request.cancelled_ids:
                    if call_id in self._running:
                        self._running[call_id].cancel()
        finally:
            self.end()

    def _begin(self, call: worker_pb2.UnaryCall) -> None:
        context = CallContext(call)
        task = asyncio.ensure_future(self._answer(call, context))
        self._running[call.id] = task

        def expire() -> None:
            context.expire()
            task.cancel()

        loop = asyncio.get_running_loop()
        timer = loop.call_later(call.timeout_seconds, expire) if call.HasField("timeout_seconds") else None

        def ended(task: "asyncio.Task[bytes | JanusError]") -> None:
            if timer is not None:
                timer.cancel()
            del self._running[call.id]
            outcome = _cancelled(context) if task.cancelled() else task.result()
            self._unsent.append((call.id, outcome if isinstance(outcome, JanusError) else memoryview(outcome)))
            self._has_news.set()

        task.add_done_callback(ended)

    def _message(self) -> worker_pb2.ExchangeResponse:
        """What is unsent, as far as there is room; what is left of a long answer goes behind the others."""
        message = worker_pb2.ExchangeResponse()
        room = MESSAGE_BYTES
        while self._unsent and room > 0:
            call_id, outcome = self._unsent.popleft()
            if isinstance(outcome, JanusError):
                message.answers.add(id=call_id, error=_refusal(outcome))
                continue
            part, rest = outcome[:room], outcome[room:]
            message.answers.add(id=call_id, response=bytes(part), has_more=len(rest) > 0)
            room -= len(part)
            if rest:
                self._unsent.append((call_id, rest))
        return message


class _Registered:
    """In the place of a server: keeps the unary methods that the stubs register."""

    def __init__(self) -> None:
        self.methods: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same methods in another form."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        for name, handler in handlers.items():
            if handler.unary_unary is not None:
                self.methods[f"/{service}/{name}"] = handler


def _cancelled(context: CallContext) -> JanusError:
    """Mostly nobody reads it any more: the caller went away, or knows that it is late."""
    if context.time_remaining() == 0:
        return DeadlineExceeded("The deadline passed before the answer was complete.")
    return Cancelled("The call was cancelled.")


def _refusal(error: JanusError) -> common_pb2.Error:
    return common_pb2.Error(
        code=error.code,
        message=error.message[:MAX_MESSAGE_CHARACTERS],
        param=error.param or "",
        retry_after_ms=error.retry_after_ms,
    )
