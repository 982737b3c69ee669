"""An answer that comes before its request is whole, on a connection that closes: read on for a while, then close.

A socket that is closed while its client still sends is reset, and the reset destroys the answer on its way: whoever
sends a body that is too large, and reads only then, would learn nothing. So the answer goes out, what still comes is
read and dropped, and the connection is closed at its end or when patience is. A client that waits with its body to be
asked for it (`Expect: 100-continue`) sends none, and a connection that stays open has uvicorn read on.

Source: RFC 9112, section 9.6; nginx's lingering_close.
"""

import asyncio
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_LINGERING_BYTES = 64 * 2**20
_LINGERING_SECONDS = 30.0
_SILENCE_SECONDS = 5.0


class LingeringClose:
    """Around an application: plain ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _closes_after_a_body(scope):
            await self._app(scope, receive, send)
            return
        is_whole = is_held_open = False

        async def receive_and_note() -> Message:
            nonlocal is_whole
            message = await receive()
            is_whole = not message.get("more_body", False)
            return message

        async def send_all_but_the_end(message: Message) -> None:
            nonlocal is_held_open
            is_end = message["type"] == "http.response.body" and not message.get("more_body", False)
            is_held_open = is_end and not is_whole
            await send({**message, "more_body": True} if is_held_open else message)

        await self._app(scope, receive_and_note, send_all_but_the_end)
        if is_held_open:
            with contextlib.suppress(TimeoutError):
                await _read_on(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _closes_after_a_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
    is_closing = b"close" in headers.get(b"connection", b"").lower() or scope["http_version"] == "1.0"
    return has_body and is_closing and b"expect" not in headers


async def _read_on(receive: Receive) -> None:
    """Raises: TimeoutError for a client that sends for too long, or nothing for long."""
    num_bytes = 0
    async with asyncio.timeout(_LINGERING_SECONDS):
        while num_bytes < MAX_LINGERING_BYTES:
            async with asyncio.timeout(_SILENCE_SECONDS):
                message = await receive()
            if not message.get("more_body", False):
                return
            num_bytes += len(message["body"])
