"""A gateway on real sockets over two scripted workers."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

HERE = Path(__file__).parent
# The root first: tests/services would else be taken for the package `services`.
sys.path[:0] = [str(HERE.parents[2]), str(HERE)]

from gateway_fakes import FakeWorker

from services.common.grpc_server import CHANNEL_OPTIONS
from services.common.settings import GatewaySettings
from services.gateway.server import Gateway, start_gateway


@dataclass
class House:
    """The gateway and its workers."""

    gateway: Gateway
    encoder: FakeWorker
    decoder: FakeWorker
    http: httpx.AsyncClient

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.http_port}"

    async def metric(self, line: str) -> float:
        """The value of one series, given as it is written; 0 when it isn't there."""
        for each in (await self.http.get("/metrics")).text.splitlines():
            if each.startswith(f"{line} "):
                return float(each.rpartition(" ")[2])
        return 0.0


StartHouse = Callable[..., Awaitable[House]]


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


async def until_ready(http: httpx.AsyncClient, seconds: float = 5.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while (await http.get("/readyz")).status_code != 200:
        assert asyncio.get_running_loop().time() < deadline, (await http.get("/readyz")).text
        await asyncio.sleep(0.01)


@pytest.fixture
async def start_house() -> AsyncIterator[StartHouse]:
    """Starts a house with settings of its own."""
    houses: list[House] = []

    async def start(*, is_ready: bool = True, **settings: Any) -> House:
        encoder, decoder = FakeWorker("encoder"), FakeWorker("decoder")
        await encoder.start(is_serving=is_ready)
        await decoder.start(is_serving=is_ready)
        targets = {"encoder_targets": encoder.target, "decoder_targets": decoder.target}
        gateway = await start_gateway(
            GatewaySettings(**{"http_port": 0, "grpc_port": 0, "drain_timeout_seconds": 1, **targets, **settings})
        )
        http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.http_port}", timeout=20)
        house = House(gateway, encoder, decoder, http)
        houses.append(house)
        if is_ready:
            await until_ready(http)
        return house

    yield start
    for house in houses:
        await house.http.aclose()
        await house.gateway.drain()
        await house.encoder.stop()
        await house.decoder.stop()


@pytest.fixture
async def house(start_house: StartHouse) -> House:
    return await start_house()


@pytest.fixture
async def channel(house: House) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{house.gateway.grpc_port}", list(CHANNEL_OPTIONS)) as channel:
        yield channel
