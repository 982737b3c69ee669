"""The encoder worker put together: its servicers, its metrics, and how its model is loaded."""

import asyncio

from janus.v1 import encoder_pb2, encoder_pb2_grpc, models_pb2, models_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc
from services.common.grpc_server import Service
from services.common.metrics import EncoderMetrics
from services.common.settings import EncoderSettings
from services.common.worker_server import serve_worker
from services.encoder.servicer import EncoderServicer, ModelServicer, WorkerDoor
from services.encoder.tokenizer_servicer import TokenizerServicer
from services.encoder.worker import EncoderWorker
from services.exchange.server import exchange_service


async def serve(settings: EncoderSettings, drain: asyncio.Event) -> None:
    """The worker's whole life. Raises: ConfigurationError, for a model, a device or a port that can't be had."""
    metrics = EncoderMetrics()
    door = WorkerDoor()
    await serve_worker(
        settings,
        drain,
        metrics=metrics,
        door=door,
        services=services_behind(door, metrics),
        load=lambda: EncoderWorker.start(settings, metrics),
    )


def services_behind(door: WorkerDoor, metrics: EncoderMetrics) -> list[Service]:
    """What the worker's gRPC port answers, apart from health and reflection."""
    services = [
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
        Service(
            tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"],
            tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server,
            TokenizerServicer(door),
        ),
    ]
    return [*services, exchange_service(services, metrics)]
