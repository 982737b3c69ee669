"""The gateway's end: what becomes of calls, of their deadlines, and of the stream that carries them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from exchange_house import HOST, House, Wire, channel_to, until

from janus.v1 import worker_pb2, worker_pb2_grpc
from services.common.errors import TABLE, DeadlineExceeded, JanusError, WorkerLost, from_code
from services.exchange import MESSAGE_BYTES, client
from services.exchange.client import Exchange, NotExchanged


class Recorder(worker_pb2_grpc.WorkerServiceServicer):
    """Answers every call with its own request, and keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[worker_pb2.ExchangeRequest] = []
        self.num_streams = 0

    async def Exchange(
        self, request_iterator: AsyncIterator[worker_pb2.ExchangeRequest], context: Any
    ) -> AsyncIterator[worker_pb2.ExchangeResponse]:
        self.num_streams += 1
        await context.send_initial_metadata(())
        async for message in request_iterator:
            self.messages.append(message)
            answers = [worker_pb2.UnaryAnswer(id=call.id, response=call.request) for call in message.calls]
            yield worker_pb2.ExchangeResponse(answers=reversed(answers))


@pytest.fixture
async def recorder() -> AsyncIterator[tuple[Recorder, Exchange]]:
    recorder = Recorder()
    server = grpc.aio.server()
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(recorder, server)
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    async with channel_to(port) as channel:
        exchange = Exchange(channel)
        yield recorder, exchange
        await exchange.close()
    await server.stop(0)


def ask(exchange: Exchange, request: bytes) -> "asyncio.Task[bytes]":
    return asyncio.create_task(exchange.ask("/m", request, timeout_seconds=10, metadata={"x-request-id": "r"}))


async def outcomes(calls: list[Any]) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)


async def test_calls_of_one_turn_leave_in_one_message_and_each_has_its_own_answer(recorder: Any) -> None:
    worker, exchange = recorder
    for _ in range(3):
        requests = [bytes([number]) for number in range(20)]
        assert await asyncio.gather(*(ask(exchange, request) for request in requests)) == requests
    assert [len(message.calls) for message in worker.messages] == [20] * 3
    ids = [call.id for message in worker.messages for call in message.calls]
    assert len(set(ids)) == 60
    first = worker.messages[0].calls[0]
    assert (first.method, dict(first.metadata), first.timeout_seconds) == ("/m", {"x-request-id": "r"}, 10)


async def test_a_message_is_bounded(recorder: Any) -> None:
    worker, exchange = recorder
    requests = [bytes(64 * 1024) for _ in range(20)]
    assert await asyncio.gather(*(ask(exchange, request) for request in requests)) == requests
    assert [sum(len(call.request) for call in message.calls) for message in worker.messages] == [MESSAGE_BYTES] * 5


async def test_a_call_that_was_cancelled_before_it_left_is_not_sent(recorder: Any) -> None:
    worker, exchange = recorder
    gone, stays = ask(exchange, b"gone"), ask(exchange, b"stays")
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == b"stays"
    assert gone.cancelled()
    assert [call.request for message in worker.messages for call in message.calls] == [b"stays"]
    assert not any(message.cancelled_ids for message in worker.messages)


@pytest.mark.parametrize("code", sorted(TABLE.keys() - {"cancelled"}))
async def test_each_error_of_the_table_arrives_as_itself(house: House, code: str) -> None:
    error = from_code(code, "too much: é", param="inputs[1]", retry_after_ms=250)

    async def refuse() -> None:
        raise error

    house.encoder.answer = refuse
    with pytest.raises(JanusError) as refused:
        await house.classify()
    assert type(refused.value) is type(error)
    assert vars(refused.value) == vars(error)
    assert house.counted(code) == 1


async def test_an_error_without_a_param_has_none(house: House) -> None:
    async def refuse() -> None:
        raise from_code("invalid_request", "no")

    house.encoder.answer = refuse
    with pytest.raises(JanusError) as refused:
        await house.classify()
    assert (refused.value.param, refused.value.retry_after_ms) == (None, None)


async def test_a_call_that_the_worker_lets_go_of_is_lost(house: House) -> None:
    async def let_go() -> None:
        raise asyncio.CancelledError

    house.encoder.answer = let_go
    with pytest.raises(WorkerLost):
        await house.classify()


async def test_a_caller_that_goes_away_cancels_its_call_alone(house: House) -> None:
    gone, stays = asyncio.create_task(house.classify("gone")), asyncio.create_task(house.classify("stays"))
    await until(lambda: len(house.encoder.held) == 2)
    gone.cancel()
    await until(lambda: house.encoder.let_go)
    house.encoder.gates["stays"].set()
    assert await stays == "r"
    assert house.encoder.let_go == ["gone"]
    assert (house.counted("cancelled"), house.counted("ok")) == (1, 1)


async def test_a_deadline_that_passes(house: House) -> None:
    with pytest.raises(DeadlineExceeded):
        await house.classify("slow", seconds=0.05)
    await until(lambda: house.counted("deadline_exceeded"))
    assert house.count("cancellations_total", stage="waiting") == 0
    assert await house.classify() == "r"


async def test_a_deadline_is_kept_where_the_worker_is_silent(house: House) -> None:
    wire = Wire(house.port)
    async with channel_to(await wire.open()) as channel:
        house.exchange, replaced = Exchange(channel), house.exchange
        assert await house.classify() == "r"
        for pump in wire._pumps:
            pump.cancel()
        with pytest.raises(DeadlineExceeded):
            await house.classify(seconds=0.1)
        await house.exchange.close()
        house.exchange = replaced
    await wire.close()


async def test_a_large_answer_is_put_together(house: House) -> None:
    assert await asyncio.gather(*(house.embed(num) for num in (1, 300_000, 2, 150_000))) == [1, 300_000, 2, 150_000]


async def test_a_wire_that_is_cut_ends_each_call_once_and_the_next_finds_a_new_one(house: House) -> None:
    wire = Wire(house.port)
    async with channel_to(await wire.open()) as channel:
        house.exchange, replaced = Exchange(channel), house.exchange
        calls = [asyncio.create_task(house.classify(f"{number}")) for number in range(50)]
        await until(lambda: len(house.encoder.held) == 50)
        wire.cut()
        ended = await outcomes(calls)
        assert [type(each) for each in ended] == [WorkerLost] * 50
        assert len({id(each) for each in ended}) == 50
        # Nobody is left to answer.
        await until(lambda: len(house.encoder.let_go) == 50)
        async with asyncio.timeout(5):
            while True:
                try:
                    assert await house.classify() == "r"
                    break
                except WorkerLost:
                    await asyncio.sleep(0.05)
        await house.exchange.close()
        house.exchange = replaced
    await wire.close()


async def test_a_worker_that_is_stopped_and_comes_back(house: House) -> None:
    calls = [asyncio.create_task(house.classify(f"{number}")) for number in range(50)]
    await until(lambda: len(house.encoder.held) == 50)
    await house.server.drain(0)
    assert [type(each) for each in await outcomes(calls)] == [WorkerLost] * 50
    with pytest.raises(WorkerLost):
        await house.classify()
    await house.start()
    async with asyncio.timeout(5):
        while True:
            try:
                assert await house.classify() == "r"
                break
            except WorkerLost:
                await asyncio.sleep(0.05)


async def test_a_worker_without_an_exchange_was_not_asked() -> None:
    house = House(has_exchange=False)
    await house.start()
    async with channel_to(house.port) as house.channel:
        house.exchange = Exchange(house.channel)
        ended = await outcomes([house.classify() for _ in range(10)])
        assert [type(each) for each in ended] == [NotExchanged] * 10
        assert house.counted("ok") == 0
        await house.exchange.close()
    await house.server.drain(0)


async def test_a_stream_is_replaced_after_a_while_and_no_call_notices(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "STREAM_SECONDS", 0.1)
    slow = asyncio.create_task(house.classify("slow"))
    gone = asyncio.create_task(house.classify("gone"))
    await until(lambda: len(house.encoder.held) == 2)
    first = house.exchange._stream
    assert first is not None
    await until(lambda: not first.is_open)
    assert await house.classify() == "r"
    assert house.exchange._stream is not first
    gone.cancel()  # the old stream still tells of it
    await until(lambda: house.encoder.let_go)
    house.encoder.gates["slow"].set()
    assert await slow == "r"
    await until(lambda: not house.exchange._carrying)
    assert house.counted("ok") == 2


async def test_closing_ends_every_call(house: House) -> None:
    calls = [asyncio.create_task(house.classify(f"{number}")) for number in range(5)]
    await until(lambda: len(house.encoder.held) == 5)
    await house.exchange.close()
    assert [type(each) for each in await outcomes(calls)] == [WorkerLost] * 5
    await until(lambda: len(house.encoder.let_go) == 5)
