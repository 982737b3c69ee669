"""An HTTP server's end and its connections, on real sockets."""

import asyncio
import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterator

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from services.common import lingering_close
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


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads one piece of the body and has seen enough."""
    if scope["type"] != "http":
        raise NotImplementedError
    await receive()
    await send({**START, "status": 413})
    await send({"type": "http.response.body", "body": b"large"})


def told(port: int, headers: dict[str, str], body: bytes | Iterator[bytes]) -> tuple[int, bytes]:
    """What a client learns that reads when it has sent everything, as urllib does."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_client_that_sends_everything_first_learns_why_it_was_too_much(is_chunked: bool) -> None:
    server = await start_http_server(refuse, host="127.0.0.1", port=0, setting="X")
    large = b" " * 20_000_000
    for _ in range(3):
        body = iter([large[:10_000_000]] * 2) if is_chunked else large
        headers = {"Transfer-Encoding": "chunked"} if is_chunked else {}
        assert await asyncio.to_thread(told, server.port, headers, body) == (413, b"large")
    await server.stop()


async def raw(port: int, head: str, body: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST / HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode() + body)
    return reader, writer


async def test_the_answer_does_not_wait_for_the_rest_and_silence_ends_the_wait(monkeypatch) -> None:
    monkeypatch.setattr(lingering_close, "_SILENCE_SECONDS", 2.0)
    server = await start_http_server(refuse, host="127.0.0.1", port=0, setting="X")
    reader, writer = await raw(server.port, "Connection: close\r\nContent-Length: 1000", b"a piece")
    async with asyncio.timeout(1.5):
        assert b"413" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(5) == b"large"
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    await server.stop()


async def test_no_more_is_read_than_the_bound(monkeypatch) -> None:
    monkeypatch.setattr(lingering_close, "MAX_LINGERING_BYTES", 2**20)
    server = await start_http_server(refuse, host="127.0.0.1", port=0, setting="X")
    _, writer = await raw(server.port, "Connection: close\r\nContent-Length: 1000000000")
    num_sent = 0
    with contextlib.suppress(ConnectionError):
        while num_sent < 10**9:
            writer.write(b" " * 2**20)
            await writer.drain()
            num_sent += 2**20
    assert num_sent < 100 * 2**20
    await server.stop()


@pytest.mark.parametrize(
    "head", ["Connection: close\r\nContent-Length: 9\r\nExpect: 100-continue", "Connection: close"]
)
async def test_nobody_is_waited_for_who_sends_nothing_more(head: str) -> None:
    async def refuse_at_once(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await send({**START, "status": 415})
        await send({"type": "http.response.body", "body": b"other"})

    server = await start_http_server(refuse_at_once, host="127.0.0.1", port=0, setting="X")
    reader, writer = await raw(server.port, head)
    async with asyncio.timeout(3):
        assert (await reader.read()).startswith(b"HTTP/1.1 415")
    writer.close()
    await server.stop()
