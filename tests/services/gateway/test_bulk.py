"""Bulk streams through the gateway: each request finds a worker of its own, and fails alone."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import scripted_house
from gateway_fakes import FakeWorker
from gateway_house import House, StartHouse, until
from structlog.testing import capture_logs

from janus.v1 import encoder_pb2, encoder_pb2_grpc
from services.common.bulk import WINDOW
from services.common.errors import QueueFull
from services.gateway.validation import MAX_INPUTS
from services.gateway.worker_client import WorkerState

Each = encoder_pb2.ClassifyTextStreamRequest
Answer = encoder_pb2.ClassifyTextStreamResponse


def each(*inputs: str, model: str = "") -> Each:
    return Each(request=encoder_pb2.ClassifyTextRequest(model=model, inputs=inputs))


@asynccontextmanager
async def stub_of(house: House) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{house.gateway.grpc_port}") as channel:
        yield encoder_pb2_grpc.EncoderServiceStub(channel)


@pytest.fixture
async def stub(house: House) -> AsyncIterator[Any]:
    async with stub_of(house) as stub:
        yield stub


async def classify(stub: Any, requests: Iterable[Each]) -> list[Answer]:
    call = stub.ClassifyTextStream(iter(requests), metadata=(("x-request-id", "r1"),), timeout=60)
    return [answer async for answer in call]


async def test_answers_in_order_and_errors_in_their_place(house, stub):
    answers = await classify(stub, [each("a", "b"), each(), each("a", model="nobody"), Each(), each("c")])
    assert [answer.sequence for answer in answers] == [0, 1, 2, 3, 4]
    assert [(answer.error.code, answer.error.param) for answer in answers] == [
        ("", ""),
        ("invalid_request", "inputs"),
        ("model_not_found", "model"),
        ("invalid_request", "inputs"),
        ("", ""),
    ]
    assert [(answers[i].response.id, answers[i].response.model) for i in (0, 4)] == [
        ("cls-r1-0", "acme/minilm"),
        ("cls-r1-4", "acme/minilm"),
    ]
    assert sorted(house.encoder.request_ids) == ["r1-0", "r1-4"]
    alone = await stub.ClassifyText(encoder_pb2.ClassifyTextRequest(inputs=["a", "b"]))
    assert answers[0].response.results == alone.results


async def test_embeddings(house, stub):
    requests = [
        encoder_pb2.EmbedTextStreamRequest(request=encoder_pb2.EmbedTextRequest(input=inputs))
        for inputs in ([encoder_pb2.EmbedTextInput(text="a")], [])
    ]
    good, bad = [answer async for answer in stub.EmbedTextStream(iter(requests))]
    alone = await stub.EmbedText(requests[0].request)
    assert good.response.embeddings == alone.embeddings
    assert (bad.sequence, bad.error.code, bad.error.param) == (1, "invalid_request", "input")


async def test_no_more_than_the_window_is_asked_for_and_a_client_that_cancels_stops_it(house, stub):
    house.encoder.answer_seconds = 30
    all_sent = asyncio.Event()

    async def requests() -> AsyncIterator[Each]:
        for _ in range(200):
            yield each("a")
        all_sent.set()

    call = stub.ClassifyTextStream(requests())
    reading = asyncio.create_task(call.read())
    await until(lambda: len(house.encoder.requests) == WINDOW)
    await all_sent.wait()
    for _ in range(20):  # what comes later over the same connection was read and answered: so could the others be
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ClassifyText(encoder_pb2.ClassifyTextRequest())
    assert len(house.encoder.requests) == WINDOW
    await house.until_metric(WINDOW, "janus_requests_running", model="acme/minilm")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await house.until_metric(0, "janus_requests_running", model="acme/minilm")
    await house.until_metric(1, "janus_cancellations_total", stage="waiting")
    await house.until_metric(WINDOW, "janus_requests_total", task="classify", code="cancelled", transport="grpc")


async def test_a_full_queue_is_waited_for(house, stub):
    house.encoder.failure = QueueFull("full", retry_after_ms=50)
    answering = asyncio.create_task(classify(stub, [each("a")] * 3))
    await until(lambda: len(house.encoder.requests) > 6)
    assert not answering.done()
    house.encoder.failure = None
    assert [answer.HasField("response") for answer in await answering] == [True] * 3
    await house.until_metric(0, "janus_rejections_total", reason="queue_full")


async def test_a_full_queue_is_waited_for_no_longer_than_the_requests_deadline(start_house: StartHouse):
    house: House = await start_house(request_timeout_seconds=0.5)
    house.encoder.failure = QueueFull("full", retry_after_ms=50)
    async with stub_of(house) as stub:
        answers = await classify(stub, [each("a"), each("b")])
    assert [answer.error.code for answer in answers] == ["deadline_exceeded"] * 2
    assert len(house.encoder.requests) > 4, "each was asked again"
    await house.until_metric(2, "janus_requests_total", task="classify", code="deadline_exceeded")
    await house.until_metric(0, "janus_rejections_total")


async def test_a_reader_that_stalls_loses_its_stream_and_what_runs_for_it(start_house: StartHouse):
    house: House = await start_house(stream_stall_seconds=2)
    worker = house.gateway.router.workers[0]
    async with stub_of(house) as stub:
        call = stub.ClassifyTextStream()
        for _ in range(40):  # answers that fill every buffer on the way
            await call.write(each(*["a"] * MAX_INPUTS))
        await until(lambda: len(house.encoder.requests) == 40 and worker.num_running == 0)
        house.encoder.answer_seconds = 30
        await call.write(each("a"))
        await until(lambda: worker.num_running == 1)
        await until(lambda: worker.num_running == 0, seconds=10)
        await house.until_metric(1, "janus_requests_total", task="classify", code="cancelled")
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            _ = [answer async for answer in call]
        assert lost.value.code() is grpc.StatusCode.CANCELLED
        await house.until_metric(1, "janus_cancellations_total", stage="stalled")


async def test_a_worker_that_is_lost_in_the_middle(house, stub):
    """What it had is lost, as is what comes while nobody is there; the stream goes on when somebody is."""
    call = stub.ClassifyTextStream()
    await call.write(each("a"))
    assert (await call.read()).HasField("response")
    house.encoder.answer_seconds = 30
    for _ in range(2):
        await call.write(each("b"))
    await until(lambda: len(house.encoder.requests) == 3)
    await house.encoder.stop()
    lost = [await call.read(), await call.read()]
    assert [(answer.sequence, answer.error.code) for answer in lost] == [(1, "worker_lost"), (2, "worker_lost")]
    assert all(answer.error.retry_after_ms for answer in lost)
    await until(lambda: house.gateway.router.workers[0].state is WorkerState.LOST)
    await call.write(each("c"))
    assert (await call.read()).error.code == "no_worker"
    house.encoder.answer_seconds = 0
    await house.encoder.start()
    await until(lambda: house.gateway.router.workers[0].state is WorkerState.READY)
    await call.write(each("d"))
    again = await call.read()
    assert (again.sequence, again.HasField("response")) == (4, True)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_another_worker_takes_over_what_one_lost(start_house: StartHouse):
    workers = [FakeWorker("encoder"), FakeWorker("encoder")]
    for worker in workers:
        await worker.start()
    house: House = await start_house(encoder_targets=",".join(worker.target for worker in workers))
    await until(lambda: all(worker.state is WorkerState.READY for worker in house.gateway.router.workers))
    workers[0].answer_seconds = 30
    async with stub_of(house) as stub:
        answering = asyncio.create_task(classify(stub, [each(f"text {number}") for number in range(20)]))
        await until(lambda: len(workers[0].requests) > 0 and len(workers[1].requests) > 0)
        await workers[0].stop()
        answers = await answering
    assert [answer.sequence for answer in answers] == list(range(20))
    assert all(answer.HasField("response") for answer in answers)
    taken_over = {request.inputs[0] for request in workers[0].requests}
    assert taken_over <= {request.inputs[0] for request in workers[1].requests}
    await workers[1].stop()


async def test_each_request_has_a_deadline_of_its_own(start_house: StartHouse):
    """Those that follow take longer than it together, but none of them alone."""
    house: House = await start_house(request_timeout_seconds=1)
    async with stub_of(house) as stub:
        call = stub.ClassifyTextStream()
        house.encoder.answer_seconds = 30
        await call.write(each("a"))
        assert (await call.read()).error.code == "deadline_exceeded"
        house.encoder.answer_seconds = 0.3
        for _ in range(4):
            await call.write(each("b"))
            assert (await call.read()).HasField("response")
        call.cancel()


async def test_requests_are_counted_one_by_one_and_the_stream_is_one_more(house, stub):
    with capture_logs() as logs:
        await classify(stub, [each("a"), each("b"), each()])
    of_requests = {"task": "classify", "transport": "grpc"}
    await house.until_metric(1, "janus_requests_total", task="classify-stream", model="", code="ok")
    await house.until_metric(2, "janus_requests_total", model="acme/minilm", code="ok", **of_requests)
    await house.until_metric(1, "janus_requests_total", model="", code="invalid_request", **of_requests)
    await house.until_metric(3, "janus_request_duration_seconds_count", **of_requests)
    assert len([line for line in logs if line.get("method") == "ClassifyTextStream"]) == 1


async def test_a_drain_does_not_wait_for_a_client_that_keeps_its_stream_open(house, stub):
    call = stub.ClassifyTextStream()
    await call.write(each("a"))
    assert (await call.read()).sequence == 0
    await asyncio.wait_for(house.gateway.drain(), 5)
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call.read()


@pytest.mark.parametrize(("num_requests", "max_queue_requests"), [(1000, 1024), (100, 8)], ids=["thousand", "full"])
async def test_through_the_gateway_and_a_real_batcher(start_house: StartHouse, num_requests, max_queue_requests):
    """A queue that is shorter than the window makes requests wait, not fail."""
    async for worker in scripted_house.House().serve():
        batching = worker.load(max_queue_requests=max_queue_requests)
        await worker.grpc.set_serving()
        house: House = await start_house(encoder_targets=f"127.0.0.1:{worker.grpc.port}")
        async with stub_of(house) as stub:
            lengths = [1 + number % 8 for number in range(num_requests)]
            answers = await classify(stub, [each("a " * length) for length in lengths])
        assert [answer.sequence for answer in answers] == list(range(num_requests))
        assert [answer.response.usage.prompt_tokens for answer in answers] == lengths
        batching.cancel()
        worker.door.worker.thread.shutdown()
