"""The gateway put together and started: workers watched, REST and gRPC in one event loop, drained at the end."""

import asyncio

from services.common.grpc_server import GrpcServer, start_server
from services.common.http_server import HttpServer, start_http_server
from services.common.logging import get_logger
from services.common.metrics import GatewayMetrics
from services.common.settings import GatewaySettings, setting_of
from services.gateway.app import create_app
from services.gateway.grpc_api import grpc_services
from services.gateway.methods import WorkerKind
from services.gateway.operations import Operations
from services.gateway.rest.probes import Readiness
from services.gateway.router import Router
from services.gateway.worker_client import WorkerClient

_log = get_logger(__name__)


class Gateway:
    """A running gateway; `http_port` and `grpc_port` are the ones in force."""

    def __init__(
        self, settings: GatewaySettings, http: HttpServer, grpc: GrpcServer, router: Router, readiness: Readiness
    ) -> None:
        self.http_port = http.port
        self.grpc_port = grpc.port
        self.router = router
        self._settings = settings
        self._http = http
        self._grpc = grpc
        self._readiness = readiness

    async def drain(self) -> None:
        """Takes nothing new, lets what runs end within the drain timeout, then lets go of the workers."""
        self._readiness.is_draining = True
        await asyncio.gather(self._http.stop(), self._grpc.drain(self._settings.drain_timeout_seconds))
        await self.router.close()


async def start_gateway(settings: GatewaySettings) -> Gateway:
    """Opens both ports and begins to watch the workers; returns at once, ready or not.

    Raises PortTaken with the setting that the port came from.
    """
    metrics = GatewayMetrics()
    metrics.set_build()
    router = Router(_workers(settings), metrics)
    operations = Operations(router, metrics)
    readiness = Readiness(router, settings.supervisor_state)
    http = await start_http_server(
        create_app(settings, operations, metrics, readiness),
        host=settings.bind_host,
        port=settings.http_port,
        setting=setting_of(settings, "http_port"),
        drain_timeout_seconds=settings.drain_timeout_seconds,
    )
    try:
        grpc = await start_server(
            grpc_services(settings, operations, metrics),
            host=settings.bind_host,
            port=settings.grpc_port,
            setting=setting_of(settings, "grpc_port"),
            metrics=metrics,
        )
    except BaseException:
        await http.stop()
        raise
    router.start()
    await grpc.set_serving()
    return Gateway(settings, http, grpc, router, readiness)


async def serve(settings: GatewaySettings, drain: asyncio.Event) -> None:
    """The gateway's whole life."""
    gateway = await start_gateway(settings)
    _log.info("serving", http_port=gateway.http_port, grpc_port=gateway.grpc_port)
    await drain.wait()
    _log.info("draining")
    await gateway.drain()


def _workers(settings: GatewaySettings) -> list[WorkerClient]:
    kinds: list[tuple[WorkerKind, str]] = [
        ("encoder", settings.encoder_targets),
        ("decoder", settings.decoder_targets),
    ]
    return [
        WorkerClient(kind, target.strip()) for kind, targets in kinds for target in targets.split(",") if target.strip()
    ]
