"""A worker in name behind an exchange, and a wire between the two that can be cut."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from janus.v1 import encoder_pb2, encoder_pb2_grpc, worker_pb2, worker_pb2_grpc
from services.common.grpc_server import CHANNEL_OPTIONS, GrpcServer, Service, start_server
from services.common.logging import describe_request, request_id
from services.common.metrics import ServiceMetrics
from services.exchange.client import Exchange
from services.exchange.server import exchange_service

HOST = "127.0.0.1"
CLASSIFY = "/janus.v1.EncoderService/ClassifyText"
EMBED = "/janus.v1.EncoderService/EmbedText"


class Encoder(encoder_pb2_grpc.EncoderServiceServicer):
    """Answers with the request's id, once its gate is open; `held` are those that wait."""

    def __init__(self) -> None:
        self.answer: Callable[[], Awaitable[None]] | None = None
        self.gates: dict[str, asyncio.Event] = {}
        self.held: list[str] = []
        self.let_go: list[str] = []

    async def ClassifyText(
        self, request: encoder_pb2.ClassifyTextRequest, context: Any
    ) -> encoder_pb2.ClassifyTextResponse:
        describe_request(model="served")
        if request.model:
            self.held.append(request.model)
            try:
                await self.gates.setdefault(request.model, asyncio.Event()).wait()
            except asyncio.CancelledError:
                self.let_go.append(request.model)
                raise
        if self.answer is not None:
            await self.answer()
        return encoder_pb2.ClassifyTextResponse(id=request_id())

    async def EmbedText(self, request: encoder_pb2.EmbedTextRequest, context: Any) -> encoder_pb2.EmbedTextResponse:
        """An embedding of as many values as the first text has characters."""
        values = [float(number) for number in range(len(request.input[0].text))]
        return encoder_pb2.EmbedTextResponse(id=request_id(), embeddings=[encoder_pb2.Embedding(values=values)])


class House:
    """The worker, its server on a port of its own, and a gateway's end."""

    def __init__(self, *, has_exchange: bool = True) -> None:
        self.encoder = Encoder()
        self.metrics = ServiceMetrics()
        self.has_exchange = has_exchange
        self.port = 0
        self.server: GrpcServer
        self.channel: grpc.aio.Channel
        self.exchange: Exchange

    async def start(self) -> None:
        encoder = encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"]
        services = [Service(encoder, encoder_pb2_grpc.add_EncoderServiceServicer_to_server, self.encoder)]
        if self.has_exchange:
            services.append(exchange_service(services, self.metrics))
        self.server = await start_server(
            services, host=HOST, port=self.port, setting="X", metrics=self.metrics, is_inner=True
        )
        self.port = self.server.port

    def raw(self) -> grpc.aio.StreamStreamCall[worker_pb2.ExchangeRequest, worker_pb2.ExchangeResponse]:
        return worker_pb2_grpc.WorkerServiceStub(self.channel).Exchange()

    async def classify(self, gate: str = "", *, seconds: float = 10, request_id: str = "r") -> str:
        """The id of the answer."""
        request = encoder_pb2.ClassifyTextRequest(model=gate).SerializeToString()
        answer = await self.exchange.ask(
            CLASSIFY, request, timeout_seconds=seconds, metadata={"x-request-id": request_id}
        )
        return encoder_pb2.ClassifyTextResponse.FromString(answer).id

    async def embed(self, num_characters: int) -> int:
        """How many values the answer has."""
        text = encoder_pb2.EmbedTextInput(text="x" * num_characters)
        request = encoder_pb2.EmbedTextRequest(input=[text]).SerializeToString()
        answer = await self.exchange.ask(EMBED, request, timeout_seconds=10, metadata={})
        return len(encoder_pb2.EmbedTextResponse.FromString(answer).embeddings[0].values)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"janus_{name}", labels) or 0.0

    def counted(self, code: str, model: str = "served") -> float:
        return self.count("requests_total", task="classify", model=model, code=code, transport="grpc")


@asynccontextmanager
async def channel_to(port: int) -> AsyncIterator[grpc.aio.Channel]:
    options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"{HOST}:{port}", options) as channel:
        yield channel


class Wire:
    """Passes bytes on to a port until it is cut, as when a worker's process is killed."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: list[asyncio.Task[None]] = []

    async def open(self) -> int:
        self._server = await asyncio.start_server(self._connected, HOST, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        self.cut()
        self._server.close()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(HOST, self._to)
        self._writers += [writer, there_writer]
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            self._pumps.append(asyncio.create_task(_pump(source, sink)))


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while passed := await source.read(65536):
            sink.write(passed)
            await sink.drain()
    except ConnectionError:
        sink.transport.abort()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
