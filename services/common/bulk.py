"""Many requests over one stream: several are answered at a time, and the answers come in the order of the requests.

    requests ──read──► [ a window of them being answered ] ──in order──► answers

Whoever sends faster than is answered, or takes no answers, is not read from, so nothing piles up: neither many requests
nor a few that are large. A queue that is full is waited for, since a bulk caller would only try again. A request that
fails leaves its error in its place, and the rest goes on. Each counts as a request of its task, the stream as one of
its own.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, Protocol, TypeVar

from services.common.errors import Internal, JanusError, QueueFull
from services.common.logging import describe_request, get_logger, request_model
from services.common.metrics import ServiceMetrics

WINDOW: Final = 64
WINDOW_BYTES: Final = 32 * 2**20
# A queue that says how long it will take may be shorter sooner.
LONGEST_WAIT_SECONDS: Final = 1.0

_log = get_logger(__name__)
_Request = TypeVar("_Request")
_SentRequest = TypeVar("_SentRequest", covariant=True)
_Answer = TypeVar("_Answer")
_Response = TypeVar("_Response")


class BulkRequest(Protocol[_SentRequest]):
    """What each message of such a stream has."""

    @property
    def request(self) -> _SentRequest: ...

    def ByteSize(self) -> int: ...


async def answer_stream(
    requests: AsyncIterator[BulkRequest[_Request]],
    begin: Callable[[_Request, int], Callable[[], Awaitable[object]]],
    response: Callable[..., _Response],
    *,
    task: str,
    metrics: ServiceMetrics,
) -> AsyncGenerator[_Response, None]:
    """The rpc: `response` makes a message of a `sequence` and either a `response` or an `error`.

    `begin` is called once for each request and its number; what it returns answers, and is called again while the queue
    is full.
    Raises: what reading raises, after the answers to what was read before.
    """

    async def answer_and_count(each: BulkRequest[_Request], number: int) -> object:
        started, code = time.perf_counter(), "cancelled"
        try:
            answered = await answer_when_there_is_room(begin(each.request, number))
            code = answered.code if isinstance(answered, JanusError) else "ok"
            return answered
        finally:
            seconds = time.perf_counter() - started
            metrics.observe_request(task=task, model=request_model(), code=code, transport="grpc", seconds=seconds)

    number = 0
    try:
        in_order = answer_in_order(requests, answer_and_count, num_bytes=lambda each: each.ByteSize())
        async with aclosing(in_order) as answers:
            async for answered in answers:
                if isinstance(answered, JanusError):
                    yield response(sequence=number, error=_fields(answered))
                else:
                    yield response(sequence=number, response=answered)
                number += 1
    finally:
        describe_request(num_answers=number)


async def answer_when_there_is_room(answer: Callable[[], Awaitable[_Answer]]) -> _Answer | JanusError:
    """The answer, or the error in its place."""
    while True:
        try:
            return await answer()
        except QueueFull as full:
            wait_seconds = min((full.retry_after_ms or 100) / 1000, LONGEST_WAIT_SECONDS)
            # A window of requests is refused at once; coming back at once, all but a few would be refused again.
            await asyncio.sleep(wait_seconds * random.uniform(1, 2))
        except JanusError as error:
            return error
        except Exception as error:
            _log.error("unexpected error", exc_info=error)
            return Internal("An internal error occurred.")


class _Window:
    """The requests that were read and whose answers were not yet taken.

    There is room for one more while they are fewer than `num_requests`, of fewer than `num_bytes`: so one request is
    always read, however large it is.
    """

    def __init__(self, num_requests: int, num_bytes: int) -> None:
        self._num_requests = num_requests
        self._num_bytes_left = num_bytes
        self._sizes: deque[int] = deque()
        self._left = asyncio.Event()

    async def until_room(self) -> None:
        while len(self._sizes) >= self._num_requests or self._num_bytes_left <= 0:
            self._left.clear()
            await self._left.wait()

    def enter(self, num_bytes: int) -> None:
        self._sizes.append(num_bytes)
        self._num_bytes_left -= num_bytes

    def leave(self) -> None:
        """The oldest one."""
        self._num_bytes_left += self._sizes.popleft()
        self._left.set()


async def answer_in_order(
    requests: AsyncIterator[_Request],
    answer: Callable[[_Request, int], Awaitable[_Answer]],
    *,
    num_bytes: Callable[[_Request], int],
    window: int = WINDOW,
    window_bytes: int = WINDOW_BYTES,
) -> AsyncGenerator[_Answer, None]:
    """An answer for each request, whose number, counted from 0, `answer` is told.

    At most `window` requests are read and their answers not yet taken, fewer when they are of `window_bytes` or more.
    Closing it cancels what runs.
    Raises: what `answer` raises, in its place, and then ends; what reading raises, after all answers.
    """
    untaken = _Window(window, window_bytes)
    answers: asyncio.Queue[asyncio.Task[_Answer] | None] = asyncio.Queue()

    async def read() -> None:
        number = 0
        await untaken.until_room()
        async for request in requests:
            untaken.enter(num_bytes(request))
            answers.put_nowait(asyncio.ensure_future(answer(request, number)))
            number += 1
            await untaken.until_room()

    reading = asyncio.create_task(read())
    reading.add_done_callback(lambda _: answers.put_nowait(None))
    try:
        while (answering := await answers.get()) is not None:
            yield await answering
            untaken.leave()
        await reading
    finally:
        left: list[asyncio.Task[Any]] = [reading]
        while not answers.empty():
            if (answering := answers.get_nowait()) is not None:
                left.append(answering)
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _fields(error: JanusError) -> dict[str, object]:
    """Of the message that stands in the place of an answer."""
    fields = {
        "code": error.code,
        "message": error.message,
        "param": error.param,
        "retry_after_ms": error.retry_after_ms,
    }
    return {name: value for name, value in fields.items() if value is not None}
