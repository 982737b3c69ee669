"""The decoder worker put together: its servicers, its metrics, and how its model is loaded."""

import asyncio

from janus.v1 import decoder_pb2, decoder_pb2_grpc, models_pb2, models_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc
from services.common.grpc_server import Service
from services.common.metrics import DecoderMetrics
from services.common.settings import DecoderSettings
from services.common.worker_server import serve_worker
from services.decoder.servicer import DecoderServicer, ModelServicer, WorkerDoor
from services.decoder.tokenizer_servicer import TokenizerServicer
from services.decoder.worker import DecoderWorker
from services.exchange.server import exchange_service


async def serve(settings: DecoderSettings, drain: asyncio.Event) -> None:
    """The worker's whole life. Raises: ConfigurationError, for a model, a device or a port that can't be had."""
    metrics = DecoderMetrics()
    door = WorkerDoor()
    await serve_worker(
        settings,
        drain,
        metrics=metrics,
        door=door,
        services=services_behind(door, metrics),
        load=lambda: DecoderWorker.start(settings, metrics),
    )


def services_behind(door: WorkerDoor, metrics: DecoderMetrics) -> list[Service]:
    """What the worker's gRPC port answers, apart from health and reflection."""
    services = [
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
        Service(
            tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"],
            tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server,
            TokenizerServicer(door),
        ),
    ]
    return [*services, exchange_service(services, metrics)]
