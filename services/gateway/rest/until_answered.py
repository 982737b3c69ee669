"""Waiting for an answer and for the client at once: one that goes away is not computed for."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from services.common.errors import Cancelled
from services.gateway.request_context import RequestContext

_Answer = TypeVar("_Answer")


async def until_answered(request: Request, answering: Coroutine[Any, Any, _Answer]) -> _Answer:
    """What `answering` returns, unless the client disconnects first: then it is cancelled.

    Raises Cancelled, and whatever `answering` raises.
    """
    answer = asyncio.create_task(answering)
    left = asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        RequestContext.of(request.scope).cancelled("waiting")
        raise Cancelled("The client went away.")
    finally:
        left.cancel()
        answer.cancel()
        await asyncio.gather(answer, left, return_exceptions=True)


async def disconnected(request: Request) -> None:
    """Returns when the client has gone; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
