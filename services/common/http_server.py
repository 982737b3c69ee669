"""An ASGI application on a port, in the running event loop and without uvicorn's own signal handlers."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from services.common.lingering_close import LingeringClose
from services.common.ports import open_socket

# What the kernel keeps of a connection beyond what the reader has room for. By default it is megabytes, so a reader
# that takes nothing would look alive for minutes; what is under way is not counted, so nobody is slowed.
MAX_UNSENT_BYTES = 64 * 2**10
# A request that is cut still says so to its client, and in the log.
_LAST_WORDS_SECONDS = 1.0


class HttpServer:
    """A running server; `port` is the one in force."""

    def __init__(self, server: uvicorn.Server, port: int, serving: "asyncio.Task[None]") -> None:
        self._server = server
        self._serving = serving
        self.port = port

    async def stop(self) -> None:
        """Close the port, let running responses end within the server's drain timeout, then cut them."""
        self._server.should_exit = True
        await self._serving
        if cut := list(self._server.server_state.tasks):
            await asyncio.wait(cut, timeout=_LAST_WORDS_SECONDS)


class _Server(uvicorn.Server):
    """Says when its start is over, and leaves the signals to the lifecycle."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_settled = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.is_settled.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def start_http_server(
    application: ASGIApp, *, host: str, port: int, setting: str, drain_timeout_seconds: float = 1.0
) -> HttpServer:
    """Serve an application; returns when the port is open and the application has started.

    Raises: PortTaken.
    """
    listener = open_socket(host, port, setting)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)  # its connections inherit it
    server = _Server(
        uvicorn.Config(
            LingeringClose(application),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(drain_timeout_seconds)),
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await server.is_settled.wait()
    if not server.started:
        await serving
        listener.close()
        raise RuntimeError("the HTTP application failed to start")
    return HttpServer(server, listener.getsockname()[1], serving)
