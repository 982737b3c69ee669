"""A worker's whole life: its ports open at once, the model loads beside them, it works until asked to drain.

While the model loads, health says NOT_SERVING and `Door.open` refuses; a worker that can't go on ends its process, so
that whoever supervises it starts another.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from services.common.errors import Draining, ModelLoading
from services.common.grpc_server import GrpcServer, Service, start_server
from services.common.logging import get_logger
from services.common.metrics import WorkerMetrics
from services.common.metrics_server import serve_metrics
from services.common.settings import DecoderSettings, EncoderSettings, setting_of

_log = get_logger(__name__)


class Worker(Protocol):
    """A loaded model with what runs it."""

    def summary(self) -> Mapping[str, object]:
        """What the log says of it when it begins to serve."""
        ...

    async def run(self) -> None:
        """Works until it is cancelled. Raises: what keeps it from going on."""
        ...

    def drain(self) -> None:
        """Takes nothing new from now on; what runs goes on."""
        ...

    async def close(self) -> None:
        """Ends what it started, after the last request."""
        ...


W = TypeVar("W", bound=Worker)


class Door(Generic[W]):
    """What the servicers stand before: the worker once it is loaded, until it drains."""

    def __init__(self) -> None:
        self.worker: W | None = None
        self.is_draining = False

    @property
    def is_open(self) -> bool:
        return self.worker is not None and not self.is_draining

    def open(self) -> W:
        """Raises: Draining, ModelLoading."""
        if self.is_draining:
            raise Draining("The worker is draining.")
        if self.worker is None:
            raise ModelLoading("The model is still loading.")
        return self.worker


async def serve_worker(
    settings: EncoderSettings | DecoderSettings,
    drain: asyncio.Event,
    *,
    metrics: WorkerMetrics,
    door: Door[W],
    services: Sequence[Service],
    load: Callable[[], Awaitable[W]],
) -> None:
    """Until `drain` is set. Raises: ConfigurationError, for a model, a device or a port that can't be had."""
    http = await serve_metrics(
        metrics,
        host=settings.bind_host,
        port=settings.metrics_port,
        setting=setting_of(settings, "metrics_port"),
        is_ready=lambda: door.is_open,
    )
    try:
        grpc = await start_server(
            services,
            host=settings.bind_host,
            port=settings.grpc_port,
            setting=setting_of(settings, "grpc_port"),
            metrics=metrics,
            is_inner=True,
        )
        await _work(settings, drain, door, grpc, load)
    finally:
        await http.stop()


async def _work(
    settings: EncoderSettings | DecoderSettings,
    drain: asyncio.Event,
    door: Door[W],
    grpc: GrpcServer,
    load: Callable[[], Awaitable[W]],
) -> None:
    """Loads, works, drains; a drain that comes while it loads ends it, too."""
    models = settings.models if isinstance(settings, EncoderSettings) else str(settings.model)
    _log.info("loading", models=models, grpc_port=grpc.port)
    asked = asyncio.create_task(drain.wait())
    loading = asyncio.ensure_future(load())
    tasks: list[asyncio.Future[Any]] = [asked, loading]
    try:
        await asyncio.wait((loading, asked), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            door.worker = worker = loading.result()
            working = asyncio.create_task(worker.run())
            tasks.append(working)
            _log.info("serving", **worker.summary())
            await grpc.set_serving()
            await asyncio.wait((asked, working), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                raise RuntimeError("the worker stopped working")
            worker.drain()
        _log.info("draining")
    finally:
        door.is_draining = True
        # What runs ends here, so the worker goes on working until it has.
        await grpc.drain(settings.drain_timeout_seconds)
        for task in tasks:
            task.cancel()
        if door.worker is not None:
            await door.worker.close()
