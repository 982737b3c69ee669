"""The events of one generation, as they come from its worker.

Opened means: `started` and the event after it are here, so a caller that is answered now is answered about something
that runs. Only `read()` is used on the call; mixing it with `async for` is an error in grpc.aio.
"""

import time
from collections.abc import Callable
from typing import Any

import grpc

from janus.v1 import streams_pb2
from services.common.errors import WorkerLost
from services.gateway.methods import StreamResponse
from services.gateway.request_context import RequestContext
from services.gateway.worker_client import RPC_FAILURES, rpc_failure

FINISH_REASONS = {
    streams_pb2.FINISH_REASON_STOP: "stop",
    streams_pb2.FINISH_REASON_LENGTH: "length",
}


class EventStream:
    """One running generation. Whoever opened it closes it, at its end or before; `release` is called then, once."""

    def __init__(
        self,
        call: grpc.aio.UnaryStreamCall[Any, StreamResponse],
        context: RequestContext,
        release: Callable[[], None],
    ) -> None:
        self.started = streams_pb2.StreamStarted()
        self._call = call
        self._context = context
        self._waiting: list[StreamResponse] = []
        self._has_ended = False
        self._is_closed = False
        self._release = release

    async def open(self) -> None:
        """Waits for `started` and the event after it.

        Raises JanusError: what the worker answered, WorkerLost when it is gone.
        """
        started = await self._receive()
        if started is None or started.event.WhichOneof("event") != "started":
            raise WorkerLost("The worker did not start the stream.")
        self.started = started.event.started
        # A worker that names neither leaves it to the gateway.
        self.started.stream_id = self.started.stream_id or self._context.request_id
        self.started.created_unix_seconds = self.started.created_unix_seconds or int(time.time())
        self.started.model = self._context.model
        first = await self._receive()
        if first is None:
            raise WorkerLost("The worker left the stream before its first token.")
        if self._context.first_token_at is None:
            self._context.first_token_at = time.monotonic()
        self._waiting = [first, started]

    async def read(self) -> StreamResponse | None:
        """The next event; None after `ended`.

        Raises JanusError: what the worker answered, WorkerLost when it is gone.
        """
        return self._waiting.pop() if self._waiting else await self._receive()

    def close(self) -> None:
        """Ends the rpc, if it still runs; the worker frees what it held."""
        if not self._is_closed:
            self._is_closed = True
            self._call.cancel()
            self._release()

    async def _receive(self) -> StreamResponse | None:
        try:
            response: Any = await self._call.read()
        except RPC_FAILURES as error:
            raise rpc_failure(error) from None
        if response is grpc.aio.EOF:
            if self._has_ended:
                return None
            raise WorkerLost("The worker left the stream before its end.")
        received: StreamResponse = response
        event = received.event
        match event.WhichOneof("event"):
            case "finished":
                self._context.finish_reason = FINISH_REASONS.get(event.finished.finish_reason, "")
            case "ended":
                self._has_ended = True
                self._context.consumed(event.ended.usage)
        return received
