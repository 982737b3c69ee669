"""A worker's life around its model: up at once, serving when loaded, gone when it should be."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import small_models
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.ports import PortTaken, open_socket
from services.common.settings import ConfigurationError, EncoderSettings, ModelSource
from services.encoder import server, worker
from services.encoder.batcher import Batcher
from services.encoder.runner import Runner

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.save(small_models.bert(), tmp_path_factory.mktemp("model"))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Loading waits for it."""
    opened = threading.Event()

    def load(source: ModelSource, settings: EncoderSettings) -> Runner:
        assert opened.wait(30)
        return Runner(source, settings)

    monkeypatch.setattr(worker, "Runner", load)
    yield opened
    opened.set()


class Life:
    """A worker in this process and its health."""

    def __init__(self, model: Path) -> None:
        with open_socket("127.0.0.1", 0, "test") as free:
            self.port = free.getsockname()[1]
        self.drain = asyncio.Event()
        settings = EncoderSettings(models=str(model), grpc_port=self.port, metrics_port=0, drain_timeout_seconds=1)
        self.serving = asyncio.create_task(server.serve(settings, self.drain))

    @asynccontextmanager
    async def health(self) -> AsyncIterator[AsyncIterator[int]]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            request = health_pb2.HealthCheckRequest(service="janus.v1.EncoderService")
            watch = health_pb2_grpc.HealthStub(channel).Watch(request, wait_for_ready=True, timeout=30)
            yield (answer.status async for answer in watch)
            watch.cancel()


async def test_health_follows_the_model(model: Path, gate: threading.Event) -> None:
    life = Life(model)
    async with life.health() as statuses:
        assert await anext(statuses) == NOT_SERVING
        gate.set()
        assert await anext(statuses) == SERVING
        life.drain.set()
        assert await anext(statuses) == NOT_SERVING
    await life.serving


async def test_a_drain_while_it_loads(model: Path, gate: threading.Event) -> None:
    life = Life(model)
    async with life.health() as statuses:
        assert await anext(statuses) == NOT_SERVING
    life.drain.set()
    await asyncio.wait_for(life.serving, 10)
    gate.set()


async def test_a_model_that_can_not_be_had_ends_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="JANUS_ENCODER_MODELS"):
        await Life(tmp_path / "nowhere").serving


async def test_a_batcher_that_ended_ends_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every request would wait for ever."""

    async def run(self: Batcher) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Batcher, "run", run)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(Life(model).serving, 20)


async def test_a_taken_port_is_named(model: Path) -> None:
    with open_socket("127.0.0.1", 0, "test") as taken:
        taken.listen()
        settings = EncoderSettings(models=str(model), grpc_port=taken.getsockname()[1], metrics_port=0)
        with pytest.raises(PortTaken, match="JANUS_ENCODER_GRPC_PORT"):
            await server.serve(settings, asyncio.Event())
