"""A gateway on real sockets over two scripted workers."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

sys.path.append(str(Path(__file__).parent))

from gateway_fakes import FakeWorker
from gateway_house import House, StartHouse, until_ready

from janus.v1 import models_pb2
from services.common.grpc_server import CHANNEL_OPTIONS
from services.common.settings import GatewaySettings
from services.gateway.server import start_gateway


@pytest.fixture
async def start_house() -> AsyncIterator[StartHouse]:
    """Starts a house with settings of its own."""
    houses: list[House] = []

    async def start(
        *, is_ready: bool = True, encoder_models: list[models_pb2.Model] | None = None, **settings: Any
    ) -> House:
        encoder, decoder = FakeWorker("encoder", encoder_models), FakeWorker("decoder")
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
