"""A worker's life: refused while it loads, works, drains, ends; and ends the process when it can't go on."""

import asyncio
from dataclasses import dataclass, field

import pytest

from services.common.errors import Draining, ModelLoading
from services.common.metrics import EncoderMetrics
from services.common.settings import ConfigurationError, EncoderSettings
from services.common.worker_server import Door, serve_worker


@dataclass
class Steps:
    """A worker that only says what is asked of it."""

    said: list[str] = field(default_factory=list)
    failure: Exception | None = None

    def summary(self) -> dict[str, object]:
        return {"model": "steps"}

    async def run(self) -> None:
        self.said.append("run")
        if self.failure is not None:
            raise self.failure
        await asyncio.Event().wait()

    def drain(self) -> None:
        self.said.append("drain")

    async def close(self) -> None:
        self.said.append("close")


async def life(worker: Steps, drain: asyncio.Event, door: Door[Steps], *, loaded: asyncio.Event | None = None) -> None:
    async def load() -> Steps:
        if loaded is not None:
            await loaded.wait()
        return worker

    settings = EncoderSettings(grpc_port=0, metrics_port=0, drain_timeout_seconds=0)
    await serve_worker(settings, drain, metrics=EncoderMetrics(), door=door, services=[], load=load)


async def test_from_loading_to_the_end() -> None:
    worker, drain, door, loaded = Steps(), asyncio.Event(), Door[Steps](), asyncio.Event()
    serving = asyncio.create_task(life(worker, drain, door, loaded=loaded))
    await asyncio.sleep(0.05)
    with pytest.raises(ModelLoading):
        door.open()
    assert not door.is_open
    loaded.set()
    await asyncio.sleep(0.05)
    assert door.open() is worker
    drain.set()
    await serving
    with pytest.raises(Draining):
        door.open()
    assert worker.said == ["run", "drain", "close"]


async def test_a_drain_while_it_loads() -> None:
    worker, drain, door = Steps(), asyncio.Event(), Door[Steps]()
    serving = asyncio.create_task(life(worker, drain, door, loaded=asyncio.Event()))
    await asyncio.sleep(0.05)
    drain.set()
    await asyncio.wait_for(serving, 10)
    assert worker.said == []


async def test_a_worker_that_can_not_go_on_ends_the_process() -> None:
    worker = Steps(failure=ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await asyncio.wait_for(life(worker, asyncio.Event(), Door[Steps]()), 10)
    assert worker.said == ["run", "close"]


async def test_a_model_that_can_not_be_loaded() -> None:
    async def load() -> Steps:
        raise ConfigurationError("no such model")

    settings = EncoderSettings(grpc_port=0, metrics_port=0)
    with pytest.raises(ConfigurationError, match="no such model"):
        await serve_worker(
            settings, asyncio.Event(), metrics=EncoderMetrics(), door=Door[Steps](), services=[], load=load
        )
