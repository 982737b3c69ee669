"""A served encoder worker around a scripted runner, with its parts at hand."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import numpy
import pytest

from janus.v1 import encoder_pb2, encoder_pb2_grpc, models_pb2_grpc
from services.common.errors import JanusError
from services.common.grpc_server import start_server
from services.common.metrics import EncoderMetrics
from services.common.rpc_status import from_rpc_error
from services.common.settings import EncoderSettings
from services.encoder import server
from services.encoder.batcher import Item
from services.encoder.runner import ServedModel
from services.encoder.servicer import WorkerDoor
from services.encoder.tasks.labels import Labels
from services.encoder.tasks.task import Head
from services.encoder.worker import EncoderWorker

PAIR = Labels(("bad", "good"), "softmax")


class Words:
    """What the tokenizer in name makes of a text."""

    def __init__(self, num_words: int) -> None:
        self.ids = [1] * num_words
        self.type_ids = [0] * num_words

    def __len__(self) -> int:
        return len(self.ids)


class Script:
    """A runner in name: a token a word, two scores an input; it waits while the gate is shut."""

    max_input_tokens = 8
    vocabulary_size = 100
    width = 2
    device, dtype, kernel, digest = "cpu", "float32", "portable", "abc"
    load_seconds, warm_up_seconds = 1.5, 0.5

    def __init__(self) -> None:
        self.models = [
            ServedModel("base", "", {"embeddings": Head(None), "classify": Head(None, labels=PAIR)}),
            ServedModel("mood", "base", {"classify": Head(None, 1, PAIR)}),
        ]
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.fails = False

    @property
    def tokenizer(self) -> "Script":
        return self

    def encode_batch(self, texts: Sequence[str]) -> list[Words]:
        return [Words(len(text.split())) for text in texts]

    def encode_within(self, max_tokens: int, text: str) -> Words:
        return Words(min(max_tokens, len(text.split())))

    def execute(self, items: Sequence[Item]) -> list[Any]:
        self.batches.append(len(items))
        assert self.gate.wait(10)
        if self.fails:
            raise ValueError("a private text")
        return [numpy.array([0.6, 0.8], dtype=numpy.float32) for _ in items]


async def until(condition: Callable[[], object]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


class House:
    """A served worker with its parts at hand."""

    def __init__(self) -> None:
        self.script = Script()
        self.metrics = EncoderMetrics()
        self.door = WorkerDoor()

    def load(self, *, max_queue_requests: int = 2) -> "asyncio.Task[None]":
        settings = EncoderSettings(max_batch_tokens=16, max_queue_requests=max_queue_requests)
        self.door.worker = EncoderWorker.make([self.script], settings, self.metrics)
        return asyncio.create_task(self.door.worker.run())

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"janus_{name}", labels)

    async def classify(self, *inputs: str, seconds: float = 10, **fields: object) -> encoder_pb2.ClassifyTextResponse:
        request = encoder_pb2.ClassifyTextRequest(inputs=inputs, **fields)
        return await self.encoder.ClassifyText(request, timeout=seconds, metadata=(("x-request-id", "r1"),))

    async def refusal(self, *inputs: str, **fields: object) -> JanusError:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.classify(*inputs, **fields)
        return from_rpc_error(refused.value)

    async def serve(self) -> AsyncIterator["House"]:
        services = server.services_behind(self.door, self.metrics)
        self.grpc = await start_server(services, host="127.0.0.1", port=0, setting="test", metrics=self.metrics)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.grpc.port}") as self.channel:
            self.encoder = encoder_pb2_grpc.EncoderServiceStub(self.channel)
            self.models = models_pb2_grpc.ModelServiceStub(self.channel)
            yield self
        await self.grpc.drain(1)
