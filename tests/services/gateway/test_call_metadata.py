"""What the gateway alone says of a call reaches the worker as the gateway says it, whatever its caller sent."""

from typing import Any

import grpc
import pytest
from gateway_fakes import FakeWorker
from gateway_house import House

from janus.v1 import decoder_pb2, decoder_pb2_grpc
from services.common.call_metadata import CACHE_NAMESPACE, PRIORITY


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, str]]]:
    """The metadata of each call that the workers got."""
    heard: list[list[tuple[str, str]]] = []
    begin = FakeWorker._begin

    async def listen(self: FakeWorker, request: Any, context: Any) -> bool:
        heard.append([(name, value) for name, value in context.invocation_metadata() if name.startswith("x-janus")])
        return await begin(self, request, context)

    monkeypatch.setattr(FakeWorker, "_begin", listen)
    return heard


async def test_prompts_are_shared_in_a_namespace_that_no_caller_names(
    house: House, said: list[list[tuple[str, str]]]
) -> None:
    mine = ((CACHE_NAMESPACE, "mine"), (PRIORITY, "-100"))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{house.gateway.grpc_port}") as channel:
        decoder = decoder_pb2_grpc.DecoderServiceStub(channel)
        async for _ in decoder.Generate(decoder_pb2.GenerateRequest(text="hello"), metadata=mine):
            pass
    await house.http.post("/v1/completions", json={"prompt": "hello"}, headers=dict(mine))
    assert said == [[(CACHE_NAMESPACE, "everyone")]] * 2
