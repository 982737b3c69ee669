"""Bulk streams of the worker over a real connection, with a scripted runner."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator

import grpc
import pytest
from scripted_house import House, until
from structlog.testing import capture_logs

from janus.v1 import encoder_pb2
from services.common.bulk import WINDOW
from services.common.rpc_status import from_rpc_error
from services.encoder.worker import EncoderWorker

Each = encoder_pb2.ClassifyTextStreamRequest
Answer = encoder_pb2.ClassifyTextStreamResponse


def each(*inputs: str, model: str = "") -> Each:
    return Each(request=encoder_pb2.ClassifyTextRequest(model=model, inputs=inputs))


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async for house in House().serve():
        batching = house.load(max_queue_requests=1024)
        yield house
        house.script.gate.set()
        batching.cancel()
        assert house.door.worker is not None
        house.door.worker.thread.shutdown()


@pytest.fixture
async def small_queue() -> AsyncIterator[House]:
    """Two requests may wait."""
    async for house in House().serve():
        batching = house.load()
        yield house
        batching.cancel()
        assert house.door.worker is not None
        house.door.worker.thread.shutdown()


async def classify(house: House, requests: Iterable[Each]) -> list[Answer]:
    call = house.encoder.ClassifyTextStream(iter(requests), metadata=(("x-request-id", "r1"),), timeout=60)
    return [answer async for answer in call]


def num_waiting(house: House) -> float:
    return house.metric("requests_waiting", model="base") or 0


async def test_answers_in_order_and_errors_in_their_place(house: House) -> None:
    requests = [each("a b"), each(), each("a", model="nobody"), Each(), each("c", "d", model="mood"), each("x " * 9)]
    answers = await classify(house, requests)
    assert [answer.sequence for answer in answers] == [0, 1, 2, 3, 4, 5]
    assert [(answer.error.code, answer.error.param) for answer in answers] == [
        ("", ""),
        ("invalid_request", "inputs"),
        ("model_not_found", "model"),
        ("invalid_request", "inputs"),
        ("", ""),
        ("context_length_exceeded", "inputs"),
    ]
    assert not answers[1].error.HasField("retry_after_ms")
    assert [(answers[i].response.id, answers[i].response.model) for i in (0, 4)] == [("r1-0", "base"), ("r1-4", "mood")]
    assert [len(answers[i].response.results) for i in (0, 4)] == [1, 2]
    alone = await house.classify("a b")
    assert answers[0].response.results == alone.results
    assert answers[0].response.usage == alone.usage


async def test_embeddings(house: House) -> None:
    requests = [
        encoder_pb2.EmbedTextStreamRequest(request=encoder_pb2.EmbedTextRequest(input=inputs))
        for inputs in ([encoder_pb2.EmbedTextInput(text="a")], [])
    ]
    good, bad = [answer async for answer in house.encoder.EmbedTextStream(iter(requests))]
    assert list(good.response.embeddings[0].values) == pytest.approx([0.6, 0.8])
    assert (bad.sequence, bad.error.code, bad.error.param) == (1, "invalid_request", "input")


async def test_a_thousand(house: House) -> None:
    answers = await classify(house, [each("a " * (1 + number % 8)) for number in range(1000)])
    assert [answer.sequence for answer in answers] == list(range(1000))
    assert [answer.response.usage.prompt_tokens for answer in answers] == [1 + number % 8 for number in range(1000)]
    assert max(house.script.batches) > 1, "requests of one stream share passes"


def num_read(house: House) -> float:
    """Requests that wait or run, where none has ended yet."""
    return num_waiting(house) + sum(house.script.batches)


async def test_a_slow_answer_holds_reading_back(house: House) -> None:
    house.script.gate.clear()
    all_sent = asyncio.Event()

    async def requests() -> AsyncIterator[Each]:
        for _ in range(200):
            yield each("a")
        all_sent.set()

    call = house.encoder.ClassifyTextStream(requests(), timeout=60)
    await until(lambda: num_read(house) == WINDOW)
    await all_sent.wait()
    for _ in range(20):  # what comes later over the same connection was read and answered: so could the others be
        await house.refusal("a", model="nobody")
    assert num_read(house) == WINDOW
    house.script.gate.set()
    assert len([answer async for answer in call]) == 200


async def test_a_full_queue_is_waited_for(small_queue: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house = small_queue
    house.script.gate.clear()
    open_door, num_tries = house.door.open, 0

    def open_and_count() -> EncoderWorker:
        nonlocal num_tries
        num_tries += 1
        return open_door()

    monkeypatch.setattr(house.door, "open", open_and_count)
    answering = asyncio.create_task(classify(house, [each("a b c d e f g h")] * 10))
    await until(lambda: num_waiting(house) == 2)
    await until(lambda: num_tries > 14)  # ten, and some of them again
    assert num_waiting(house) == 2
    house.script.gate.set()
    answers = await answering
    assert [answer.sequence for answer in answers] == list(range(10))
    assert all(answer.HasField("response") for answer in answers)
    assert not house.metric("rejections_total", reason="queue_full")


async def test_a_client_that_cancels_frees_the_queue(house: House) -> None:
    house.script.gate.clear()
    call = house.encoder.ClassifyTextStream(iter([each("a")] * 200))
    reading = asyncio.create_task(call.read())
    await until(lambda: num_read(house) == WINDOW)
    call.cancel()
    await until(lambda: num_waiting(house) == 0)
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: house.metric("cancellations_total", stage="waiting") == 1)
    house.script.gate.set()
    await house.classify("b")
    assert house.script.batches == [1, 1]


async def test_a_client_that_cancels_between_two_answers(house: House) -> None:
    call = house.encoder.ClassifyTextStream()
    await call.write(each("a"))
    assert (await call.read()).sequence == 0
    house.script.gate.clear()
    await call.write(each("a"))
    await until(lambda: len(house.script.batches) == 2)
    for _ in range(4):
        await call.write(each("a"))
    await until(lambda: num_waiting(house) == 4)
    call.cancel()
    await until(lambda: num_waiting(house) == 0)
    await until(lambda: house.metric("cancellations_total", stage="streaming") == 1)


async def test_a_deadline_ends_the_stream_and_frees_the_queue(house: House) -> None:
    house.script.gate.clear()
    call = house.encoder.ClassifyTextStream(iter([each("a")] * 10), timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await call.read()
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: num_waiting(house) == 0)
    counted = {"task": "classify-stream", "model": "", "code": "deadline_exceeded", "transport": "grpc"}
    await until(lambda: house.metric("requests_total", **counted) == 1)


async def test_a_client_may_wait_for_an_answer_before_it_asks_again(house: House) -> None:
    call = house.encoder.ClassifyTextStream()
    for number in range(3):
        await call.write(each("a"))
        assert (await call.read()).sequence == number
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_a_failed_pass_is_one_requests_affair(house: House) -> None:
    call = house.encoder.ClassifyTextStream()
    house.script.fails = True
    await call.write(each("a"))
    failed = await call.read()
    assert (failed.error.code, "private" in failed.error.message) == ("internal", False)
    house.script.fails = False
    await call.write(each("a"))
    assert (await call.read()).HasField("response")
    call.cancel()


async def test_what_was_read_before_a_drain_is_answered(house: House) -> None:
    house.script.gate.clear()
    call = house.encoder.ClassifyTextStream()
    for _ in range(3):
        await call.write(each("a"))
    await until(lambda: num_waiting(house) == 2)
    house.door.is_draining = True
    draining = asyncio.create_task(house.grpc.drain(20))
    await call.write(each("a"))
    await call.done_writing()
    house.script.gate.set()
    answers = [answer async for answer in call]
    assert [answer.error.code for answer in answers] == ["", "", "", "draining"]
    assert answers[3].error.retry_after_ms > 0
    await asyncio.wait_for(draining, 5)


async def test_a_drain_does_not_wait_for_a_client_that_keeps_its_stream_open(house: House) -> None:
    call = house.encoder.ClassifyTextStream()
    await call.write(each("a"))
    assert (await call.read()).sequence == 0
    await asyncio.wait_for(house.grpc.drain(0.2), 5)
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call.read()


async def test_a_message_that_can_not_be_read_ends_the_stream_after_the_answers(house: House) -> None:
    def messages() -> Iterator[bytes]:
        yield each("a").SerializeToString()
        yield b"\xff"
        yield each("b").SerializeToString()

    ask = house.channel.stream_stream(
        "/janus.v1.EncoderService/ClassifyTextStream", response_deserializer=Answer.FromString
    )
    call = ask(messages())
    with capture_logs() as logs:
        assert (await call.read()).HasField("response")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    error = from_rpc_error(refused.value)
    assert (refused.value.code(), error.code) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")
    assert [(line["event"], line["code"]) for line in logs] == [("rpc", "invalid_request")]


async def test_requests_are_counted_one_by_one_and_the_stream_is_one_more(house: House) -> None:
    with capture_logs() as logs:
        await classify(house, [each("a"), each("b"), each(), each("c", model="mood")])

    def count(task: str, model: str, code: str) -> float | None:
        return house.metric("requests_total", task=task, model=model, code=code, transport="grpc")

    await until(lambda: count("classify-stream", "", "ok") == 1)
    assert count("classify", "base", "ok") == 2
    assert count("classify", "base", "invalid_request") == 1
    assert count("classify", "mood", "ok") == 1
    assert house.metric("inference_duration_seconds_count", task="classify", model="base") == 2
    assert [line["method"] for line in logs] == ["ClassifyTextStream"]
