"""The client commands, as processes, against a gRPC server that stands in for the gateway."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from janus.v1 import (
    decoder_pb2,
    decoder_pb2_grpc,
    encoder_pb2,
    encoder_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    streams_pb2,
)
from services.cli.bench import Stream, percentile
from services.common.errors import ModelNotFound
from services.common.grpc_server import Service, start_server
from services.common.metrics import ServiceMetrics

Context = grpc.aio.ServicerContext[Any, Any]


class Gateway(
    encoder_pb2_grpc.EncoderServiceServicer,
    decoder_pb2_grpc.DecoderServiceServicer,
    models_pb2_grpc.ModelServiceServicer,
):
    """Answers, and remembers what it was asked."""

    def __init__(self) -> None:
        self.port = 0
        self.chats: list[decoder_pb2.ChatRequest] = []
        self.was_cancelled = asyncio.Event()

    async def ClassifyText(
        self, request: encoder_pb2.ClassifyTextRequest, context: Context
    ) -> encoder_pb2.ClassifyTextResponse:
        if request.model:
            raise ModelNotFound(f"there is no model [{request.model}]", param="model")
        labels = [encoder_pb2.LabelScore(label=label, score=score) for label, score in (("[b]", 0.75), ("neg", 0.25))]
        one = encoder_pb2.TextClassification(labels=labels[: request.parameters.top_k or None])
        return encoder_pb2.ClassifyTextResponse(results=[one] * len(request.inputs))

    async def Chat(self, request: decoder_pb2.ChatRequest, context: Context) -> AsyncIterator[decoder_pb2.ChatResponse]:
        self.chats.append(request)
        yield decoder_pb2.ChatResponse(event=streams_pb2.StreamEvent(started=streams_pb2.StreamStarted()))
        for text in ("Hello ", "[you]"):
            delta = streams_pb2.StreamDelta(text=text, token_ids=[1, 2])
            yield decoder_pb2.ChatResponse(event=streams_pb2.StreamEvent(delta=delta))
        if request.messages[-1].content == "forever":
            try:
                await asyncio.Event().wait()
            finally:
                self.was_cancelled.set()

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        model = models_pb2.Model(
            id="tiny",
            tasks=["chat", "completions"],
            device="cpu",
            kernel="portable",
            labels=["negative", "positive"],
            state=models_pb2.MODEL_STATE_READY,
        )
        return models_pb2.ListModelsResponse(models=[model])


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    gateway = Gateway()
    services = [
        Service(
            encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"],
            encoder_pb2_grpc.add_EncoderServiceServicer_to_server,
            gateway,
        ),
        Service(
            decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"],
            decoder_pb2_grpc.add_DecoderServiceServicer_to_server,
            gateway,
        ),
        Service(
            models_pb2.DESCRIPTOR.services_by_name["ModelService"],
            models_pb2_grpc.add_ModelServiceServicer_to_server,
            gateway,
        ),
    ]
    server = await start_server(services, host="127.0.0.1", port=0, setting="S", metrics=ServiceMetrics())
    gateway.port = server.port
    yield gateway
    await server.drain(0)


async def start(gateway: Gateway, *arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from services.cli.main import main; main()",
        *arguments,
        env=os.environ | {"JANUS_GATEWAY_GRPC_PORT": str(gateway.port), "COLUMNS": "80", "PYTHONUNBUFFERED": "1"},
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )


async def said(gateway: Gateway, *arguments: str, heard: str = "") -> tuple[int | None, str, str]:
    process = await start(gateway, *arguments)
    output, errors = await asyncio.wait_for(process.communicate(heard.encode()), 30)
    return process.returncode, output.decode(), errors.decode()


async def test_classify_answers_a_line_a_text(gateway: Gateway) -> None:
    code, output, _ = await said(gateway, "classify", "I love it [/b]", "meh")
    assert code == 0
    assert [line.split() for line in output.splitlines()] == [
        ["I", "love", "it", "[/b]", "[b]", "0.7500", "neg", "0.2500"],
        ["meh", "[b]", "0.7500", "neg", "0.2500"],
    ]
    _, output, _ = await said(gateway, "classify", "--top-k", "1", "meh")
    assert "neg" not in output


async def test_an_error_is_one_line_with_its_word(gateway: Gateway) -> None:
    code, output, errors = await said(gateway, "classify", "--model", "none", "meh")
    assert (code, output, errors) == (1, "", "model_not_found: there is no model [none]\n")


async def test_models_lists_what_is_served(gateway: Gateway) -> None:
    code, output, _ = await said(gateway, "models")
    assert code == 0
    assert " ".join(output.splitlines()[1].split()) == "tiny chat completions negative positive 0 cpu portable ready"


async def test_chat_keeps_the_conversation(gateway: Gateway) -> None:
    code, output, _ = await said(gateway, "chat", "--system", "Be brief.", "--seed", "7", heard="hi\n\nand then?\n")
    assert code == 0
    assert output == "Hello [you]\nHello [you]\n"
    first, second = gateway.chats
    assert first.options.seed == 7
    assert not first.options.HasField("temperature")
    assert [(message.role, message.content) for message in second.messages] == [
        ("system", "Be brief."),
        ("user", "hi"),
        ("assistant", "Hello [you]"),
        ("user", "and then?"),
    ]


async def test_chat_answers_one_message(gateway: Gateway) -> None:
    assert await said(gateway, "chat", "hi") == (0, "Hello [you]\n", "")


async def test_ctrl_c_cancels_the_answer_and_not_the_conversation(gateway: Gateway) -> None:
    process = await start(gateway, "chat")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"forever\n")
    assert await process.stdout.readuntil(b"[you]") == b"Hello [you]"
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(gateway.was_cancelled.wait(), 10)
    output, errors = await asyncio.wait_for(process.communicate(b"hi\n"), 30)
    assert process.returncode == 0
    assert output.decode() == "\nHello [you]\n"
    assert errors.decode() == "(cancelled)\n"
    assert [message.content for message in gateway.chats[1].messages] == ["forever", "Hello [you]", "hi"]


async def test_bench_tells_latencies_and_throughput(gateway: Gateway) -> None:
    code, output, _ = await said(gateway, "bench", "--requests", "5", "--streams", "2", "--max-tokens", "4")
    assert code == 0
    assert output.startswith("5 streams, 2 at a time: ")
    for words in ("tokens/s", "time to first token", "time between tokens", "p50", "p95"):
        assert words in output
    assert len(gateway.chats) == 5
    assert gateway.chats[0].options.max_tokens == 4


async def test_no_gateway_is_told_with_its_address(gateway: Gateway) -> None:
    code, _, errors = await said(gateway, "models", "--target", "127.0.0.1:1")
    assert code == 1
    assert errors == "no gateway answers at 127.0.0.1:1; `janus serve` starts one\n"


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(value) for value in range(20, 0, -1)]
    assert percentile(values, 0.5) == 10
    assert percentile(values, 0.95) == 19
    assert percentile([3.0], 0.5) == 3


def test_gaps_are_between_tokens() -> None:
    assert Stream(0.0, [1.0, 1.5, 3.0]).gaps == [0.5, 1.5]
