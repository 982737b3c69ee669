"""Many requests over one stream: several are answered at a time, and the answers come in the order of the requests.

    requests ──read──► [ up to `window` being answered ] ──in order──► answers

Whoever sends faster than is answered is not read from, so nothing piles up; a queue that is full is waited for, since a
bulk caller would only try again. A request that fails leaves its error in its place, and the rest goes on.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

from services.common.errors import JanusError, QueueFull

WINDOW: Final = 64

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


async def answer_in_order(
    requests: AsyncIterator[_Request],
    answer: Callable[[int, _Request], Awaitable[_Answer]],
    *,
    window: int = WINDOW,
) -> AsyncIterator[tuple[int, _Answer | JanusError]]:
    """Each request's number, counted from 0, with its answer or its error. Raises: what is no JanusError."""
    room = asyncio.Semaphore(window)
    running: asyncio.Queue[asyncio.Task[_Answer | JanusError] | None] = asyncio.Queue()

    async def read() -> None:
        number = 0
        await room.acquire()
        async for request in requests:
            running.put_nowait(asyncio.create_task(_answered(number, request, answer)))
            number += 1
            await room.acquire()

    reading = asyncio.create_task(read())
    reading.add_done_callback(lambda _: running.put_nowait(None))
    number = 0
    try:
        while (task := await running.get()) is not None:
            yield number, await task
            number += 1
            room.release()
        await reading
    finally:
        left = [reading, *_drained(running)]
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _answered(
    number: int, request: _Request, answer: Callable[[int, _Request], Awaitable[_Answer]]
) -> _Answer | JanusError:
    while True:
        try:
            return await answer(number, request)
        except QueueFull as full:
            await asyncio.sleep((full.retry_after_ms or 100) / 1000)
        except JanusError as error:
            return error


def _drained(running: "asyncio.Queue[asyncio.Task[_Answer] | None]") -> "list[asyncio.Task[_Answer]]":
    """Takes out whatever is still in it. Mutates: `running`."""
    left = []
    while not running.empty():
        if (task := running.get_nowait()) is not None:
            left.append(task)
    return left
