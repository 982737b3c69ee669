"""A channel to a running gateway, and its errors as one line."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import grpc
import typer
from rich.console import Console

from services.common.grpc_server import CHANNEL_OPTIONS
from services.common.rpc_status import from_rpc_error
from services.common.settings import GatewaySettings, load_settings

CONNECT_SECONDS = 3.0
T = TypeVar("T")

Target = Annotated[
    str | None,
    typer.Option("--target", help="the gateway's gRPC address (default: this machine's, JANUS_GATEWAY_GRPC_PORT)"),
]


class NoGateway(Exception):
    """Nothing answers at the address."""


@asynccontextmanager
async def connect(target: str | None) -> AsyncIterator[grpc.aio.Channel]:
    """A channel that is up.

    Raises: NoGateway.
    """
    address = target or f"127.0.0.1:{load_settings(GatewaySettings, []).grpc_port}"
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), CONNECT_SECONDS)
        except TimeoutError:
            raise NoGateway(f"no gateway answers at {address}; `janus serve` starts one") from None
        yield channel


def tell(error: Exception) -> str:
    """What went wrong, for a person."""
    if isinstance(error, grpc.aio.AioRpcError):
        known = from_rpc_error(error)
        return f"{known.code}: {known.message}"
    return str(error)


def run_client(client: Coroutine[Any, Any, T]) -> T:
    """Run a client's coroutine; what it can't do is one line and exit code 1."""
    try:
        return asyncio.run(client)
    except (NoGateway, grpc.aio.AioRpcError) as error:
        Console(stderr=True).print(tell(error), style="red", highlight=False, markup=False)
        raise typer.Exit(1) from None
