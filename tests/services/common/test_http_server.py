"""An HTTP server's end and its connections, on real sockets."""

import asyncio

import httpx
from starlette.types import Receive, Scope, Send

from services.common.http_server import start_http_server

START = {"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"5")]}


async def test_what_is_cut_can_still_say_so():
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        has_begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.2)
            await send(dict(START))
            await send({"type": "http.response.body", "body": b"going"})

    has_begun = asyncio.Event()
    server = await start_http_server(slow, host="127.0.0.1", port=0, setting="X")
    async with httpx.AsyncClient() as http:
        asking = asyncio.create_task(http.get(f"http://127.0.0.1:{server.port}/"))
        await has_begun.wait()
        await server.stop()
        others = {asyncio.current_task(), asking}
        assert not [task for task in asyncio.all_tasks() if task not in others], "a request outlived its server"
        answer = await asking
    assert (answer.status_code, answer.text) == (503, "going")
