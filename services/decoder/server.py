"""The decoder worker put together: gRPC up at once, the model loaded beside it, drained at the end."""

import asyncio

from janus.v1 import decoder_pb2, decoder_pb2_grpc, models_pb2, models_pb2_grpc
from services.common.grpc_server import GrpcServer, Service, start_server
from services.common.logging import get_logger
from services.common.metrics import DecoderMetrics
from services.common.metrics_server import serve_metrics
from services.common.settings import DecoderSettings, setting_of
from services.decoder.servicer import DecoderServicer, ModelServicer, WorkerDoor
from services.decoder.worker import DecoderWorker

_log = get_logger(__name__)


async def serve(settings: DecoderSettings, drain: asyncio.Event) -> None:
    """The worker's whole life. Raises: ConfigurationError, for a model, a device or a port that can't be had."""
    metrics = DecoderMetrics()
    door = WorkerDoor()
    http = await serve_metrics(
        metrics,
        host=settings.bind_host,
        port=settings.metrics_port,
        setting=setting_of(settings, "metrics_port"),
        is_ready=lambda: door.worker is not None and not door.is_draining,
    )
    try:
        grpc = await start_server(
            services_behind(door, metrics),
            host=settings.bind_host,
            port=settings.grpc_port,
            setting=setting_of(settings, "grpc_port"),
            metrics=metrics,
        )
        await _serve(settings, drain, metrics, door, grpc)
    finally:
        await http.stop()


async def _serve(
    settings: DecoderSettings, drain: asyncio.Event, metrics: DecoderMetrics, door: WorkerDoor, grpc: GrpcServer
) -> None:
    _log.info("loading", model=str(settings.model), grpc_port=grpc.port)
    loading = asyncio.create_task(asyncio.to_thread(DecoderWorker.start, settings, metrics))
    asked = asyncio.create_task(drain.wait())
    try:
        await asyncio.wait((loading, asked), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            door.worker = loading.result()
            runner = door.worker.runner
            _log.info(
                "serving",
                model=door.worker.model_id,
                device=runner.device,
                dtype=runner.dtype,
                cache_tokens=runner.num_blocks * runner.block_size,
                load_seconds=round(runner.load_seconds, 2),
            )
            await grpc.set_serving()
            await asked
        _log.info("draining")
        door.is_draining = True
        if door.worker is not None:
            door.worker.engine.drain()
    finally:
        asked.cancel()
        await grpc.drain(settings.drain_timeout_seconds)
    if door.worker is not None:
        await asyncio.to_thread(door.worker.engine.stop)


def services_behind(door: WorkerDoor, metrics: DecoderMetrics) -> list[Service]:
    """What the worker's gRPC port answers, apart from health and reflection."""
    return [
        Service(
            decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"],
            decoder_pb2_grpc.add_DecoderServiceServicer_to_server,
            DecoderServicer(door, metrics),
        ),
        Service(
            models_pb2.DESCRIPTOR.services_by_name["ModelService"],
            models_pb2_grpc.add_ModelServiceServicer_to_server,
            ModelServicer(door),
        ),
    ]
