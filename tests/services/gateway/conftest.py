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
from prometheus_client.parser import text_string_to_metric_families

HERE = Path(__file__).parent
# The root first: tests/services would else be taken for the package `services`.
sys.path[:0] = [str(HERE.parents[2]), str(HERE)]

from gateway_fakes import FakeWorker  # noqa: E402

from services.common.grpc_server import CHANNEL_OPTIONS  # noqa: E402
from services.common.settings import GatewaySettings  # noqa: E402
from services.gateway.server import Gateway, start_gateway  # noqa: E402


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

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the series that have these labels."""
        text = (await self.http.get("/metrics")).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())

    async def until_metric(self, value: float, name: str, **labels: str) -> None:
        """A request is counted when it is over, which its client may see first."""
        for _ in range(100):
            if await self.metric(name, **labels) == value:
                return
            await asyncio.sleep(0.01)
        assert await self.metric(name, **labels) == value


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
