"""The gRPC server, over real connections."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from structlog.testing import capture_logs

from janus.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc
from services.common.errors import TABLE, QueueFull, from_code
from services.common.grpc_server import CHANNEL_OPTIONS, MAX_REQUEST_BYTES, GrpcServer, Service, start_server
from services.common.logging import describe_request, request_id
from services.common.metrics import ServiceMetrics
from services.common.ports import PortTaken
from services.common.rpc_status import from_rpc_error

ENCODER = "janus.v1.EncoderService"
DECODER = "janus.v1.DecoderService"
HOST = "127.0.0.1"
Context = grpc.aio.ServicerContext[Any, Any]


class Encoder(encoder_pb2_grpc.EncoderServiceServicer):
    """Does what the test says."""

    def __init__(self) -> None:
        self.answer: Callable[[], None] = lambda: None
        self.gate: asyncio.Event | None = None

    async def ClassifyText(
        self, request: encoder_pb2.ClassifyTextRequest, context: Context
    ) -> encoder_pb2.ClassifyTextResponse:
        describe_request(model="served")
        if self.gate is not None:
            await self.gate.wait()
        self.answer()
        return encoder_pb2.ClassifyTextResponse(id=request_id())

    async def EmbedText(self, request: encoder_pb2.EmbedTextRequest, context: Context) -> encoder_pb2.EmbedTextResponse:
        embedding = encoder_pb2.Embedding(values=[0.5] * 384)
        return encoder_pb2.EmbedTextResponse(embeddings=[embedding] * len(request.input))


class Decoder(decoder_pb2_grpc.DecoderServiceServicer):
    """Streams one event, waits for the gate, and ends or fails."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.error: Exception | None = None
        self.was_closed = asyncio.Event()

    async def Chat(self, request: decoder_pb2.ChatRequest, context: Context) -> AsyncIterator[decoder_pb2.ChatResponse]:
        try:
            if not request.model:
                yield decoder_pb2.ChatResponse()
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            yield decoder_pb2.ChatResponse()
        finally:
            self.was_closed.set()


class Rig:
    """A server with both services, and a channel to it."""

    def __init__(self, server: GrpcServer, channel: grpc.aio.Channel, metrics: ServiceMetrics) -> None:
        self.server = server
        self.channel = channel
        self.metrics = metrics
        self.encoder_servicer: Encoder
        self.decoder_servicer: Decoder
        self.encoder = encoder_pb2_grpc.EncoderServiceStub(channel)
        self.decoder = decoder_pb2_grpc.DecoderServiceStub(channel)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"janus_{name}", labels) or 0.0

    async def health(self, service: str) -> int:
        answer = await health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(service=service))
        return int(answer.status)


def services_of(encoder: Encoder, decoder: Decoder) -> list[Service]:
    return [
        Service(
            encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"],
            encoder_pb2_grpc.add_EncoderServiceServicer_to_server,
            encoder,
        ),
        Service(
            decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"],
            decoder_pb2_grpc.add_DecoderServiceServicer_to_server,
            decoder,
        ),
    ]


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    metrics, encoder, decoder = ServiceMetrics(), Encoder(), Decoder()
    server = await start_server(
        services_of(encoder, decoder), host=HOST, port=0, setting="JANUS_TEST_GRPC_PORT", metrics=metrics
    )
    async with grpc.aio.insecure_channel(f"{HOST}:{server.port}", options=CHANNEL_OPTIONS) as channel:
        rig = Rig(server, channel, metrics)
        rig.encoder_servicer, rig.decoder_servicer = encoder, decoder
        yield rig
    await server.drain(0)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("code", TABLE)
async def test_each_error_of_the_table_arrives_as_itself(rig: Rig, code: str) -> None:
    error = from_code(code, "too much: é", param="inputs[1]", retry_after_ms=250)

    def fail() -> None:
        raise error

    rig.encoder_servicer.answer = fail
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await rig.encoder.ClassifyText(encoder_pb2.ClassifyTextRequest())
    assert failed.value.code().name == TABLE[code].grpc
    back = from_rpc_error(failed.value)
    assert type(back) is type(error)
    assert vars(back) == vars(error)
    labels = {"task": "classify", "model": "served", "transport": "grpc"}
    assert rig.count("requests_total", code=code, **labels) == 1


async def test_an_unexpected_exception_is_internal_and_keeps_its_text(rig: Rig) -> None:
    def fail() -> None:
        raise KeyError("the secret")

    rig.encoder_servicer.answer = fail
    with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as failed:
        await rig.encoder.ClassifyText(encoder_pb2.ClassifyTextRequest())
    assert from_rpc_error(failed.value).code == "internal"
    assert "secret" not in f"{failed.value.details()} {failed.value.trailing_metadata()}"
    assert any(isinstance(line.get("exc_info"), KeyError) for line in logs)


async def test_a_request_that_is_no_message_is_refused_by_the_table(rig: Rig) -> None:
    one = rig.channel.unary_unary(f"/{ENCODER}/ClassifyText")
    many = rig.channel.unary_stream(f"/{DECODER}/Chat")
    for ask in (lambda: one(b"\xff"), lambda: many(b"\xff").read()):
        with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as failed:
            await ask()
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert from_rpc_error(failed.value).code == "invalid_request"
        assert [line["code"] for line in logs] == ["invalid_request"]


async def test_a_stream_that_fails_halfway_ends_in_its_status(rig: Rig) -> None:
    rig.decoder_servicer.error = QueueFull("full", retry_after_ms=7)
    call = rig.decoder.Chat(decoder_pb2.ChatRequest())
    assert isinstance(await call.read(), Message)
    rig.decoder_servicer.gate.set()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert from_rpc_error(failed.value).retry_after_ms == 7
    assert rig.count("rejections_total", reason="queue_full") == 1


@pytest.mark.parametrize(("model", "stage"), [("", "streaming"), ("silent", "waiting")])
async def test_a_client_that_goes_away_is_a_cancellation_not_an_error(rig: Rig, model: str, stage: str) -> None:
    with capture_logs() as logs:
        call = rig.decoder.Chat(decoder_pb2.ChatRequest(model=model))
        if not model:
            await call.read()
        else:
            await asyncio.sleep(0.1)
        call.cancel()
        await eventually(lambda: rig.count("cancellations_total", stage=stage) == 1)
    assert rig.decoder_servicer.was_closed.is_set()
    assert [(line["event"], line["code"], line["log_level"]) for line in logs] == [("rpc", "cancelled", "info")]


async def test_a_deadline_that_passes_is_counted_as_one(rig: Rig) -> None:
    rig.encoder_servicer.gate = asyncio.Event()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await rig.encoder.ClassifyText(encoder_pb2.ClassifyTextRequest(), timeout=0.1)
    assert from_rpc_error(failed.value).code == "deadline_exceeded"
    labels = {"task": "classify", "model": "served", "transport": "grpc"}
    await eventually(lambda: rig.count("requests_total", code="deadline_exceeded", **labels) == 1)
    assert rig.count("cancellations_total", stage="waiting") == 0


async def test_an_inner_server_leaves_the_line_of_what_went_well_to_its_gateway() -> None:
    encoder, metrics = Encoder(), ServiceMetrics()
    services = services_of(encoder, Decoder())
    server = await start_server(services, host=HOST, port=0, setting="test", metrics=metrics, is_inner=True)
    with capture_logs() as logs:
        async with grpc.aio.insecure_channel(f"{HOST}:{server.port}") as channel:
            stub = encoder_pb2_grpc.EncoderServiceStub(channel)
            await stub.ClassifyText(encoder_pb2.ClassifyTextRequest())
            encoder.answer = refuse
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ClassifyText(encoder_pb2.ClassifyTextRequest())
    await server.drain(0)
    told = [(line["code"], line["log_level"]) for line in logs if line["event"] == "rpc"]
    assert told == [("ok", "debug"), ("queue_full", "info")]


def refuse() -> None:
    raise QueueFull("There is no room.")


async def test_one_line_a_request_with_the_callers_id_and_the_served_model(rig: Rig) -> None:
    with capture_logs() as logs:
        request = encoder_pb2.ClassifyTextRequest(model="asked", inputs=["a private text"])
        answer = await rig.encoder.ClassifyText(request, metadata=(("x-request-id", "r-1"),))
        await rig.health(ENCODER)
    assert answer.id == "r-1"
    assert [line["method"] for line in logs if line["event"] == "rpc"] == ["ClassifyText"]
    assert "private" not in str(logs)
    assert rig.count("requests_total", task="classify", model="served", code="ok", transport="grpc") == 1


async def test_a_request_without_an_id_gets_one(rig: Rig) -> None:
    first = await rig.encoder.ClassifyText(encoder_pb2.ClassifyTextRequest())
    second = await rig.encoder.ClassifyText(encoder_pb2.ClassifyTextRequest())
    assert first.id
    assert first.id != second.id


async def test_health_is_not_serving_for_every_name_until_told(rig: Rig) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert [await rig.health(name) for name in ("", ENCODER, DECODER)] == [not_serving] * 3
    await rig.server.set_serving()
    assert [await rig.health(name) for name in ("", ENCODER, DECODER)] == [serving] * 3
    await rig.server.set_serving(False)
    assert await rig.health(ENCODER) == not_serving


async def test_the_health_of_what_is_not_there(rig: Rig) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await rig.health("janus.v1.Nothing")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    watch = health_pb2_grpc.HealthStub(rig.channel).Watch(health_pb2.HealthCheckRequest(service="janus.v1.Nothing"))
    answer = await watch.read()
    assert isinstance(answer, health_pb2.HealthCheckResponse)
    assert answer.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
async def test_reflection_lists_the_services(rig: Rig, version: str) -> None:
    ask = rig.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    call = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert {ENCODER, DECODER, "grpc.health.v1.Health", f"grpc.reflection.{version}.ServerReflection"} <= names
    call.cancel()


async def test_messages_beyond_grpcs_default_limit_pass_both_ways(rig: Rig) -> None:
    text = encoder_pb2.EmbedTextInput(text="x" * 2000)
    answer = await rig.encoder.EmbedText(encoder_pb2.EmbedTextRequest(input=[text] * 3000))
    assert answer.ByteSize() > 4 * 2**20
    assert len(answer.embeddings) == 3000


async def test_a_request_is_bounded(rig: Rig) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await rig.encoder.ClassifyText(encoder_pb2.ClassifyTextRequest(inputs=["x" * MAX_REQUEST_BYTES]))
    assert from_rpc_error(refused.value).code == "payload_too_large"


async def test_a_drain_lets_a_running_stream_end_and_takes_nothing_new(rig: Rig) -> None:
    call = rig.decoder.Chat(decoder_pb2.ChatRequest())
    await call.read()
    draining = asyncio.create_task(rig.server.drain(10))
    await asyncio.sleep(0.1)
    assert not draining.done()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await rig.encoder.ClassifyText(encoder_pb2.ClassifyTextRequest(), timeout=1)
    assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    rig.decoder_servicer.gate.set()
    assert isinstance(await call.read(), Message)
    assert await call.read() == grpc.aio.EOF
    await asyncio.wait_for(draining, 5)


async def test_a_drain_ends_the_watches_of_health_and_does_not_wait_for_them(rig: Rig) -> None:
    await rig.server.set_serving()
    watch = health_pb2_grpc.HealthStub(rig.channel).Watch(health_pb2.HealthCheckRequest(service=ENCODER))
    first = await watch.read()
    assert isinstance(first, health_pb2.HealthCheckResponse)
    assert first.status == health_pb2.HealthCheckResponse.SERVING
    await asyncio.wait_for(rig.server.drain(60), 5)
    told = []
    while isinstance(answer := await watch.read(), health_pb2.HealthCheckResponse):
        told.append(answer.status)
    assert told
    assert set(told) == {health_pb2.HealthCheckResponse.NOT_SERVING}


async def test_a_drain_cuts_what_outlives_its_timeout(rig: Rig) -> None:
    call = rig.decoder.Chat(decoder_pb2.ChatRequest())
    await call.read()
    await asyncio.wait_for(rig.server.drain(0.1), 5)
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call.read()


async def test_a_taken_port_is_told_with_its_setting_and_number(rig: Rig) -> None:
    again = services_of(Encoder(), Decoder())
    with pytest.raises(PortTaken, match=rf"^JANUS_DECODER_GRPC_PORT: port {rig.server.port} on {HOST} .*in use"):
        await start_server(
            again, host=HOST, port=rig.server.port, setting="JANUS_DECODER_GRPC_PORT", metrics=ServiceMetrics()
        )


async def test_a_port_that_is_only_bound_is_taken_too() -> None:
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        port = bound.getsockname()[1]
        with pytest.raises(PortTaken, match=str(port)):
            await start_server([], host=HOST, port=port, setting="S", metrics=ServiceMetrics())
