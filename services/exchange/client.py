"""The gateway's end: calls wait for the turn of the event loop to end, and leave in one message."""

import asyncio
import itertools
from collections.abc import Mapping
from typing import Final

import grpc

from janus.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from services.common.errors import Cancelled, DeadlineExceeded, JanusError, WorkerLost, from_code
from services.exchange import MESSAGE_BYTES

# A connection that is asked to go (`grpc_server.OPTIONS`) is cut 15 minutes later: no stream may stay on it so long.
STREAM_SECONDS: Final = 60.0

_Call = grpc.aio.StreamStreamCall[worker_pb2.ExchangeRequest, worker_pb2.ExchangeResponse]


class NotExchanged(Exception):
    """The worker is of a version that has no exchange; the call did not reach it."""


class Exchange:
    """The calls to one worker. A stream is opened when there is something to ask, and replaced after a while."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = worker_pb2_grpc.WorkerServiceStub(channel)
        self._stream: _Stream | None = None
        self._carrying: set[asyncio.Task[None]] = set()

    async def ask(self, method: str, request: bytes, *, timeout_seconds: float, metadata: Mapping[str, str]) -> bytes:
        """The response of `method`, as bytes; whoever is cancelled meanwhile cancels the call.

        Raises: JanusError, what the worker answered, DeadlineExceeded, or WorkerLost; NotExchanged.
        """
        if self._stream is None or not self._stream.is_open:
            self._stream = _Stream(self._stub.Exchange())
            carrying = asyncio.create_task(self._stream.carry())
            self._carrying.add(carrying)
            carrying.add_done_callback(self._carrying.discard)
        call = worker_pb2.UnaryCall(method=method, request=request, timeout_seconds=timeout_seconds, metadata=metadata)
        return await self._stream.ask(call)

    async def close(self) -> None:
        """Every call that still runs is lost."""
        for carrying in self._carrying:
            carrying.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)


class _Asked:
    """A call that has no answer yet."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def take(self, answer: worker_pb2.UnaryAnswer) -> None:
        if answer.WhichOneof("outcome") == "error":
            self.fail(_error(answer.error))
            return
        self.parts.append(answer.response)
        if not answer.has_more and not self.answer.done():
            self.answer.set_result(b"".join(self.parts))

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class _Stream:
    """One stream: takes calls while it `is_open`, and ends when the last of them is answered."""

    def __init__(self, call: _Call) -> None:
        self.is_open = True
        self._call = call
        self._ids = itertools.count(1)
        self._asked: dict[int, _Asked] = {}
        self._unsent: dict[int, worker_pb2.UnaryCall] = {}
        self._cancelled_ids: list[int] = []
        self._has_news = asyncio.Event()

    async def ask(self, call: worker_pb2.UnaryCall) -> bytes:
        call.id = next(self._ids)
        asked = self._asked[call.id] = _Asked()
        self._unsent[call.id] = call
        self._has_news.set()
        try:
            async with asyncio.timeout(call.timeout_seconds):
                return await asked.answer
        except TimeoutError:
            # The worker has a clock of its own.
            raise DeadlineExceeded("The deadline passed before the answer was complete.") from None
        except asyncio.CancelledError:
            if call.id not in self._unsent:
                self._cancelled_ids.append(call.id)
            raise
        finally:
            del self._asked[call.id]
            self._unsent.pop(call.id, None)
            if not self.is_open or self._cancelled_ids:
                self._has_news.set()

    async def carry(self) -> None:
        """To its end, of which every call that is left is told."""
        closing = asyncio.get_running_loop().call_later(STREAM_SECONDS, self._close)
        writing = asyncio.create_task(self._write())
        is_known = True
        try:
            while isinstance(message := await self._call.read(), worker_pb2.ExchangeResponse):
                for answer in message.answers:
                    if answer.id in self._asked:
                        self._asked[answer.id].take(answer)
        except grpc.aio.AioRpcError as error:
            is_known = error.code() is not grpc.StatusCode.UNIMPLEMENTED
        finally:
            # A worker that cancels the stream is told of by a CancelledError, which ends this task as it should.
            self.is_open = False
            closing.cancel()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            self._call.cancel()
            for asked in self._asked.values():
                asked.fail(_lost() if is_known else NotExchanged())

    async def _write(self) -> None:
        # Until the worker has accepted the stream, a failed write would hide why it did not.
        await self._call.initial_metadata()
        while self.is_open or self._asked or self._cancelled_ids:
            await self._has_news.wait()
            self._has_news.clear()
            while self._unsent or self._cancelled_ids:
                await self._call.write(self._message())
        await self._call.done_writing()

    def _message(self) -> worker_pb2.ExchangeRequest:
        """What is unsent, as far as there is room; calls that are cancelled are of an earlier message."""
        message = worker_pb2.ExchangeRequest(cancelled_ids=self._cancelled_ids)
        self._cancelled_ids.clear()
        room = MESSAGE_BYTES
        while self._unsent and room > 0:
            call = self._unsent.pop(next(iter(self._unsent)))
            message.calls.append(call)
            room -= len(call.request)
        return message

    def _close(self) -> None:
        self.is_open = False
        self._has_news.set()


def _error(error: common_pb2.Error) -> JanusError:
    """What the worker answered; one that cancels what nobody asked it to cancel is lost."""
    if error.code == Cancelled.code:
        return _lost()
    return from_code(
        error.code,
        error.message,
        param=error.param or None,
        retry_after_ms=error.retry_after_ms if error.HasField("retry_after_ms") else None,
    )


def _lost() -> WorkerLost:
    return WorkerLost("The worker could not be reached, or went away.")
