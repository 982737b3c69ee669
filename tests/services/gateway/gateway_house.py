"""The gateway and its scripted workers as the tests hold them, and how the tests wait."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx
from gateway_fakes import FakeWorker
from prometheus_client.parser import text_string_to_metric_families

from services.gateway.server import Gateway


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
