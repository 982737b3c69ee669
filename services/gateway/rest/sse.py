"""Server-sent events with a buffer between the worker and the reader.

    worker ──read──► [ buffer of events ] ──send──► socket

A reader that is slow fills the buffer; one that takes nothing for too long, or lets the buffer overflow, loses its
stream: memory is bounded, and the worker computes for nobody. A reader that goes away cancels the rpc at once. An event
is `id: <stream>:<number>` and its data; `: ping` breaks a silence; `[DONE]` comes if and only if the stream succeeded.

Source: the WHATWG HTML standard, section 9.2; OpenAI's streaming reference.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from fastapi import Response
from starlette.types import Receive, Scope, Send

from services.common.errors import Draining, Internal, JanusError
from services.common.logging import get_logger
from services.gateway.request_context import RequestContext
from services.gateway.rest.answers import to_json
from services.gateway.rest.errors import openai_error

_log = get_logger(__name__)
_PING = b": ping\n\n"


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How patient a stream is with its reader."""

    buffer_events: int
    stall_seconds: float
    ping_interval_seconds: float


class EventStreamResponse(Response):
    """Sends `events`, JSON texts, as they come; `close` ends what makes them, whatever happened."""

    media_type = "text/event-stream"

    def __init__(
        self,
        stream_id: str,
        events: AsyncIterator[str],
        close: Callable[[], None],
        context: RequestContext,
        limits: StreamLimits,
        headers: Mapping[str, str],
    ) -> None:
        # No-transform and X-Accel-Buffering keep proxies from holding events back.
        super().__init__(headers={**headers, "Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._stream_id = stream_id
        self._events = events
        self._close = close
        self._context = context
        self._limits = limits
        self._buffer: deque[bytes] = deque()
        self._num_events = 0
        self._is_filled = False
        self._wake = asyncio.Event()
        self._overflowed = asyncio.Event()
        self._sent_at = time.monotonic()
        self._is_sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._run(receive, send)
        finally:
            self._close()

    async def _run(self, receive: Receive, send: Send) -> None:
        filling = asyncio.create_task(self._fill())
        sending = asyncio.create_task(self._send(send))
        reader_left = asyncio.create_task(_disconnected(receive))
        reader_stalled = asyncio.create_task(self._watch_reader())
        tasks = (filling, sending, reader_left, reader_stalled)
        try:
            await asyncio.wait((sending, reader_left, reader_stalled), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                self._context.cancelled("streaming" if reader_left.done() else "stalled")
        except asyncio.CancelledError:
            # The drain timeout is over. What could still be sent is, and the reader learns why it ends.
            self._fail(Draining("The server is going away."))
            await send({"type": "http.response.body", "body": b"".join(self._buffer), "more_body": False})
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fill(self) -> None:
        """Moves events into the buffer, and at their end either `[DONE]` or the error."""
        try:
            async for event in self._events:
                self._put(event)
            self._put("[DONE]")
        except JanusError as error:
            self._fail(error)
        except Exception:
            _log.exception("stream failed", request_id=self._context.request_id)
            self._fail(Internal("The stream failed."))
        self._is_filled = True
        self._wake.set()

    def _fail(self, error: JanusError) -> None:
        self._context.failed(error)
        self._put(to_json({"error": openai_error(error), "request_id": self._context.request_id}))

    def _put(self, data: str) -> None:
        self._buffer.append(f"id: {self._stream_id}:{self._num_events}\ndata: {data}\n\n".encode())
        self._num_events += 1
        self._wake.set()
        if len(self._buffer) > self._limits.buffer_events:
            self._overflowed.set()

    async def _send(self, send: Send) -> None:
        while self._buffer or not self._is_filled:
            await self._wake.wait()
            self._wake.clear()
            body = b"".join(self._buffer)
            self._buffer.clear()
            self._is_sending = True
            await send({"type": "http.response.body", "body": body, "more_body": True})
            self._is_sending = False
            self._sent_at = time.monotonic()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch_reader(self) -> None:
        """Pings a silent stream; returns when the reader has stalled."""
        patience = min(self._limits.ping_interval_seconds, self._limits.stall_seconds)
        while not self._overflowed.is_set():
            try:
                await asyncio.wait_for(self._overflowed.wait(), patience)
            except TimeoutError:
                silent_seconds = time.monotonic() - self._sent_at
                if self._is_sending and silent_seconds >= self._limits.stall_seconds:
                    return
                if not self._is_sending and silent_seconds >= self._limits.ping_interval_seconds:
                    self._buffer.append(_PING)
                    self._wake.set()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
