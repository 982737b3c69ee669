"""The worker's end, asked message by message."""

import asyncio
from typing import Any

import pytest
from exchange_house import CLASSIFY, EMBED, House, until
from grpc.aio import EOF
from structlog.testing import capture_logs

from janus.v1 import common_pb2, encoder_pb2, worker_pb2
from services.common.errors import Internal, QueueFull
from services.exchange import MESSAGE_BYTES, server
from services.exchange.server import CallContext


def call(call_id: int, gate: str = "", **fields: Any) -> worker_pb2.UnaryCall:
    request = encoder_pb2.ClassifyTextRequest(model=gate).SerializeToString()
    return worker_pb2.UnaryCall(**{"id": call_id, "method": CLASSIFY, "request": request, **fields})


def embedding(call_id: int, num_values: int) -> worker_pb2.UnaryCall:
    text = encoder_pb2.EmbedTextInput(text="x" * num_values)
    request = encoder_pb2.EmbedTextRequest(input=[text])
    return worker_pb2.UnaryCall(id=call_id, method=EMBED, request=request.SerializeToString())


async def answers(stream: Any, num: int) -> list[list[worker_pb2.UnaryAnswer]]:
    """Of each message, until `num` calls are answered to their ends."""
    messages: list[list[worker_pb2.UnaryAnswer]] = []
    while sum(not answer.has_more for message in messages for answer in message) < num:
        messages.append(list((await asyncio.wait_for(stream.read(), 10)).answers))
    return messages


async def refused(house: House, asked: worker_pb2.UnaryCall) -> common_pb2.Error:
    stream = house.raw()
    await stream.write(worker_pb2.ExchangeRequest(calls=[asked]))
    [[answer]] = await answers(stream, 1)
    await stream.done_writing()
    assert await stream.read() is EOF
    assert answer.WhichOneof("outcome") == "error"
    return answer.error


async def test_answers_that_are_ready_together_leave_in_one_message(house: House) -> None:
    stream = house.raw()
    await stream.write(worker_pb2.ExchangeRequest(calls=[call(number, "batch") for number in range(1, 9)]))
    await until(lambda: len(house.encoder.held) == 8)
    house.encoder.gates["batch"].set()
    [message] = await answers(stream, 8)
    assert [answer.id for answer in message] == list(range(1, 9))
    await stream.done_writing()
    assert await stream.read() is EOF


async def test_no_call_waits_for_another(house: House) -> None:
    stream = house.raw()
    await stream.write(worker_pb2.ExchangeRequest(calls=[call(1, "slow"), call(2)]))
    [[answer]] = await answers(stream, 1)
    assert answer.id == 2
    await stream.write(worker_pb2.ExchangeRequest(calls=[call(3)]))
    [[answer]] = await answers(stream, 1)
    assert answer.id == 3
    await stream.done_writing()  # the stream ends with its last answer, not before
    house.encoder.gates["slow"].set()
    [[answer]] = await answers(stream, 1)
    assert answer.id == 1
    assert await stream.read() is EOF


async def test_a_long_answer_comes_in_parts_and_lets_others_pass(house: House) -> None:
    stream = house.raw()
    num_values = MESSAGE_BYTES  # four bytes each
    await stream.write(worker_pb2.ExchangeRequest(calls=[embedding(1, num_values), embedding(2, 10)]))
    messages = await answers(stream, 2)
    assert all(sum(len(answer.response) for answer in message) <= MESSAGE_BYTES for message in messages)
    in_order = [answer for message in messages for answer in message]
    parts = [answer for answer in in_order if answer.id == 1]
    assert [part.has_more for part in parts] == [True] * 4 + [False]
    assert [answer.id for answer in in_order].index(2) <= 1
    whole = encoder_pb2.EmbedTextResponse.FromString(b"".join(part.response for part in parts))
    assert len(whole.embeddings[0].values) == num_values
    stream.cancel()


async def test_a_call_that_is_cancelled_ends_alone(house: House) -> None:
    stream = house.raw()
    with capture_logs() as logs:
        await stream.write(worker_pb2.ExchangeRequest(calls=[call(1, "gone"), call(2, "stays")]))
        await until(lambda: len(house.encoder.held) == 2)
        await stream.write(worker_pb2.ExchangeRequest(cancelled_ids=[1, 77]))
        await until(lambda: house.encoder.let_go)
    assert house.encoder.let_go == ["gone"]
    assert house.count("cancellations_total", stage="waiting") == 1
    assert house.counted("cancelled") == 1
    assert [(line["code"], line["log_level"]) for line in logs if line["event"] == "rpc"] == [("cancelled", "info")]
    house.encoder.gates["stays"].set()
    [[told], [answer]] = await answers(stream, 2)
    assert (told.id, told.error.code, answer.id) == (1, "cancelled", 2)
    stream.cancel()


async def test_a_deadline_that_passes_is_counted_as_one(house: House) -> None:
    error = await refused(house, call(1, "slow", timeout_seconds=0.05))
    assert error.code == "deadline_exceeded"
    assert house.encoder.let_go == ["slow"]
    assert house.counted("deadline_exceeded") == 1
    assert house.count("cancellations_total", stage="waiting") == 0


async def test_the_context_of_a_call() -> None:
    context = CallContext(call(1, timeout_seconds=100, metadata={"x-request-id": "r1"}))
    assert context.invocation_metadata() == (("x-request-id", "r1"),)
    remaining = context.time_remaining()
    assert remaining is not None
    assert 99 < remaining <= 100
    context.expire()
    assert context.time_remaining() == 0
    assert CallContext(call(1)).time_remaining() is None


async def test_what_went_well_is_told_in_the_debug_log_alone(house: House) -> None:
    async def refuse() -> None:
        raise QueueFull("There is no room.", retry_after_ms=70)

    with capture_logs() as logs:
        stream = house.raw()
        await stream.write(worker_pb2.ExchangeRequest(calls=[call(1, metadata={"x-request-id": "r1"})]))
        [[answer]] = await answers(stream, 1)
        house.encoder.answer = refuse
        error = await refused(house, call(1))
    assert encoder_pb2.ClassifyTextResponse.FromString(answer.response).id == "r1"
    assert (error.code, error.message, error.retry_after_ms) == ("queue_full", "There is no room.", 70)
    told = [(line["method"], line["code"], line["log_level"]) for line in logs if line["event"] == "rpc"]
    assert told == [("ClassifyText", "ok", "debug"), ("ClassifyText", "queue_full", "info")]
    assert (house.counted("ok"), house.counted("queue_full")) == (1, 1)
    assert house.count("rejections_total", reason="queue_full") == 1
    stream.cancel()


async def test_an_unexpected_exception_is_internal_and_keeps_its_text(house: House) -> None:
    async def fail() -> None:
        raise KeyError("the secret")

    house.encoder.answer = fail
    with capture_logs() as logs:
        error = await refused(house, call(1))
    assert error == common_pb2.Error(code="internal", message="An internal error occurred.")
    assert Internal.default_retry_after_ms is None
    assert any(isinstance(line.get("exc_info"), KeyError) for line in logs)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (call(1, request=b"\xff"), "invalid_request"),
        (call(1, method="/janus.v1.EncoderService/Nothing"), "route_not_found"),
        (call(1, method="/janus.v1.EncoderService/EmbedTextStream"), "route_not_found"),
        (call(1, method="/janus.v1.WorkerService/Exchange"), "route_not_found"),
    ],
)
async def test_what_grpc_itself_would_refuse(house: House, asked: worker_pb2.UnaryCall, code: str) -> None:
    assert (await refused(house, asked)).code == code


async def test_an_answer_beyond_the_limit_of_a_message(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_MESSAGE_BYTES", 1000)
    assert (await refused(house, embedding(1, 1000))).code == "payload_too_large"


async def test_a_gateway_that_goes_away_cancels_its_calls(house: House) -> None:
    stream = house.raw()
    await stream.write(worker_pb2.ExchangeRequest(calls=[call(number, str(number)) for number in range(8)]))
    await until(lambda: len(house.encoder.held) == 8)
    stream.cancel()
    await until(lambda: len(house.encoder.let_go) == 8)
    assert house.counted("cancelled") == 8


async def test_a_drain_answers_what_runs_and_waits_for_no_idle_stream(house: House) -> None:
    idle, busy = house.raw(), house.raw()
    await idle.write(worker_pb2.ExchangeRequest(calls=[call(1)]))
    await answers(idle, 1)
    await busy.write(worker_pb2.ExchangeRequest(calls=[call(1, "slow")]))
    await until(lambda: house.encoder.held)
    draining = asyncio.create_task(house.server.drain(60))
    assert await asyncio.wait_for(idle.read(), 5) is EOF
    assert not draining.done()
    house.encoder.gates["slow"].set()
    assert [answer.id for [answer] in await answers(busy, 1)] == [1]
    assert await busy.read() is EOF
    await asyncio.wait_for(draining, 5)
