"""Many requests over one stream: several are answered at a time, and the answers come in the order of the requests.

    requests ──read──► [ up to `window` being answered ] ──in order──► answers

Whoever sends faster than is answered, or takes no answers, is not read from, so nothing piles up. A queue that is full
is waited for, since a bulk caller would only try again. A request that fails leaves its error in its place, and the
rest goes on. Each counts as a request of its task, the stream as one of its own.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, Protocol, TypeVar

from services.common.errors import Internal, JanusError, QueueFull
from services.common.logging import describe_request, get_logger, request_model
from services.common.metrics import ServiceMetrics

WINDOW: Final = 64
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


async def answer_stream(
    requests: AsyncIterator[BulkRequest[_Request]],
    answer: Callable[[_Request, int], Awaitable[object]],
    response: Callable[..., _Response],
    *,
    task: str,
    metrics: ServiceMetrics,
) -> AsyncIterator[_Response]:
    """The rpc: `response` makes a message of a `sequence` and either a `response` or an `error`.

    Raises: what reading raises, after the answers to what was read before.
    """

    async def answer_and_count(each: BulkRequest[_Request], number: int) -> object:
        started, code = time.perf_counter(), "cancelled"
        try:
            answered = await answer_when_there_is_room(lambda: answer(each.request, number))
            code = answered.code if isinstance(answered, JanusError) else "ok"
            return answered
        finally:
            seconds = time.perf_counter() - started
            metrics.observe_request(task=task, model=request_model(), code=code, transport="grpc", seconds=seconds)

    number = 0
    try:
        async with aclosing(answer_in_order(requests, answer_and_count)) as answers:
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
            await asyncio.sleep(min((full.retry_after_ms or 100) / 1000, LONGEST_WAIT_SECONDS))
        except JanusError as error:
            return error
        except Exception as error:
            _log.error("unexpected error", exc_info=error)
            return Internal("An internal error occurred.")


async def answer_in_order(
    requests: AsyncIterator[_Request], answer: Callable[[_Request, int], Awaitable[_Answer]], *, window: int = WINDOW
) -> AsyncGenerator[_Answer, None]:
    """An answer for each request, whose number, counted from 0, `answer` is told.

    At most `window` requests are read and their answers not yet taken. Closing it cancels what runs.
    Raises: what `answer` raises, in its place, and then ends; what reading raises, after all answers.
    """
    room = asyncio.Semaphore(window)
    answers: asyncio.Queue[asyncio.Task[_Answer] | None] = asyncio.Queue()

    async def read() -> None:
        number = 0
        await room.acquire()
        async for request in requests:
            answers.put_nowait(asyncio.ensure_future(answer(request, number)))
            number += 1
            await room.acquire()

    reading = asyncio.create_task(read())
    reading.add_done_callback(lambda _: answers.put_nowait(None))
    try:
        while (answering := await answers.get()) is not None:
            yield await answering
            room.release()
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
