"""The encoder worker put together: gRPC up at once, the model loaded beside it, drained at the end."""

import asyncio

from janus.v1 import encoder_pb2, encoder_pb2_grpc, models_pb2, models_pb2_grpc
from services.common.grpc_server import GrpcServer, Service, start_server
from services.common.logging import get_logger
from services.common.metrics import EncoderMetrics
from services.common.metrics_server import serve_metrics
from services.common.settings import EncoderSettings, setting_of
from services.encoder.runner import Runner
from services.encoder.servicer import EncoderServicer, ModelServicer, WorkerDoor
from services.encoder.worker import EncoderWorker

_log = get_logger(__name__)


async def serve(settings: EncoderSettings, drain: asyncio.Event) -> None:
    """The worker's whole life. Raises: ConfigurationError, for a model, a device or a port that can't be had."""
    metrics = EncoderMetrics()
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
            _services(door, metrics),
            host=settings.bind_host,
            port=settings.grpc_port,
            setting=setting_of(settings, "grpc_port"),
            metrics=metrics,
        )
        await _serve(settings, drain, metrics, door, grpc)
    finally:
        await http.stop()


async def _serve(
    settings: EncoderSettings, drain: asyncio.Event, metrics: EncoderMetrics, door: WorkerDoor, grpc: GrpcServer
) -> None:
    _log.info("loading", model=str(settings.model), grpc_port=grpc.port)
    loading = asyncio.create_task(asyncio.to_thread(Runner, settings))
    asked = asyncio.create_task(drain.wait())
    batching: asyncio.Task[None] | None = None
    try:
        await asyncio.wait((loading, asked), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            runner = loading.result()
            door.worker = EncoderWorker.make(runner, settings, metrics)
            batching = asyncio.create_task(door.worker.batcher.run())
            names = [model.model_id for model in runner.models]
            _log.info(
                "serving",
                models=names,
                device=runner.device,
                dtype=runner.dtype,
                load_seconds=round(runner.load_seconds, 2),
            )
            await grpc.set_serving()
            await asyncio.wait((asked, batching), return_when=asyncio.FIRST_COMPLETED)
            if batching.done():
                batching.result()  # it never returns: without it no request would ever be answered
        _log.info("draining")
        door.is_draining = True
    finally:
        asked.cancel()
        await grpc.drain(settings.drain_timeout_seconds)
        if batching is not None:
            batching.cancel()
    if door.worker is not None:
        door.worker.thread.shutdown()


def _services(door: WorkerDoor, metrics: EncoderMetrics) -> list[Service]:
    return [
        Service(
            encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"],
            encoder_pb2_grpc.add_EncoderServiceServicer_to_server,
            EncoderServicer(door, metrics),
        ),
        Service(
            models_pb2.DESCRIPTOR.services_by_name["ModelService"],
            models_pb2_grpc.add_ModelServiceServicer_to_server,
            ModelServicer(door),
        ),
    ]
