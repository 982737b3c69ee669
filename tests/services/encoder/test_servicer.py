"""The gRPC side with a scripted runner: what each answer carries, what is refused and when, what is measured."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import numpy
import pytest

from janus.v1 import encoder_pb2, encoder_pb2_grpc, models_pb2, models_pb2_grpc
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

    def load(self) -> "asyncio.Task[None]":
        settings = EncoderSettings(max_batch_tokens=16, max_queue_requests=2)
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
        running = await start_server(services, host="127.0.0.1", port=0, setting="test", metrics=self.metrics)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            self.encoder = encoder_pb2_grpc.EncoderServiceStub(channel)
            self.models = models_pb2_grpc.ModelServiceStub(channel)
            yield self
        await running.drain(1)


@pytest.fixture
async def loading() -> AsyncIterator[House]:
    async for house in House().serve():
        yield house


@pytest.fixture
async def house(loading: House) -> AsyncIterator[House]:
    batching = loading.load()
    yield loading
    batching.cancel()
    assert loading.door.worker is not None
    loading.door.worker.thread.shutdown()


async def test_an_answer_carries_what_it_cost(house: House) -> None:
    before = time.time()
    answer = await house.classify("a b c", "d")
    assert (answer.id, answer.model) == ("r1", "base")
    assert before - 1 <= answer.created_unix_seconds <= time.time()
    assert [[one.label for one in result.labels] for result in answer.results] == [["good", "bad"]] * 2
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens, answer.usage.truncated) == (4, 4, False)
    parts = answer.metrics.queue_ms + answer.metrics.tokenize_ms + answer.metrics.inference_ms
    assert 0 < parts <= answer.metrics.total_ms


async def test_metrics(house: House) -> None:
    await house.classify("a b c", "d", model="mood")
    of_task = {"task": "classify", "model": "mood"}
    for phase in ("queue", "tokenize", "inference"):
        assert house.metric(f"{phase}_duration_seconds_count", **of_task) == 1
    assert house.metric("prompt_tokens_total", model="mood") == 4
    assert house.metric("batch_size_sum", model="base") == 2
    assert house.metric("batch_tokens_sum", model="base") == 4
    assert house.metric("startup_phase_seconds", phase="load") == 1.5
    assert house.metric("model_info", model="mood", digest="abc", dtype="float32") == 1


async def test_gauges_tell_the_batch_from_the_queue(house: House) -> None:
    def gauges() -> list[float | None]:
        names = ("requests_running", "requests_waiting", "waiting_tokens")
        return [house.metric(name, model="base") for name in names]

    assert gauges() == [0, 0, 0]
    house.script.gate.clear()
    tasks = [asyncio.create_task(house.classify("a"))]
    await until(lambda: house.script.batches)
    tasks += [asyncio.create_task(house.classify("b c")) for _ in range(2)]
    await until(lambda: house.metric("requests_waiting", model="base") == 2)
    assert gauges() == [1, 2, 4]
    full = await house.refusal("d")
    assert full.code == "queue_full"
    assert full.retry_after_ms is not None
    house.script.gate.set()
    await asyncio.gather(*tasks)
    assert house.script.batches == [1, 2]
    assert gauges() == [0, 0, 0]


async def test_a_deadline_that_passes_in_the_queue_costs_no_pass(house: House) -> None:
    house.script.gate.clear()
    busy = asyncio.create_task(house.classify("a"))
    await until(lambda: house.script.batches)
    late = await house.refusal("b", seconds=0.1)
    assert late.code == "deadline_exceeded"
    house.script.gate.set()
    await busy
    await house.classify("c")
    assert house.script.batches == [1, 1]


async def test_a_client_that_goes_away_costs_no_pass(house: House) -> None:
    house.script.gate.clear()
    busy = asyncio.create_task(house.classify("a"))
    await until(lambda: house.script.batches)
    gone = asyncio.create_task(house.classify(*["b"] * 50))
    await until(lambda: house.metric("waiting_tokens", model="base") == 50)
    gone.cancel()
    await until(lambda: house.metric("waiting_tokens", model="base") == 0)
    house.script.gate.set()
    await busy
    assert house.script.batches == [1]


async def test_a_failed_pass_says_nothing_of_its_cause_and_the_next_one_runs(house: House) -> None:
    house.script.fails = True
    failed = await house.refusal("a")
    assert failed.code == "internal"
    assert "private" not in failed.message
    house.script.fails = False
    await house.classify("a")


async def test_refusals_by_model_and_task(house: House) -> None:
    unknown = await house.refusal("a", model="nobody")
    assert (unknown.code, unknown.param) == ("model_not_found", "model")
    request = encoder_pb2.EmbedTextRequest(model="mood", input=[encoder_pb2.EmbedTextInput(text="a")])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await house.encoder.EmbedText(request)
    error = from_rpc_error(refused.value)
    assert (error.code, error.param) == ("task_not_supported", "model")


async def test_while_it_loads_and_while_it_drains(loading: House) -> None:
    early = await loading.refusal("a")
    assert (early.code, early.row.is_retryable) == ("model_loading", True)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await loading.models.GetModel(models_pb2.GetModelRequest(model="base"))
    assert from_rpc_error(refused.value).code == "model_loading"
    assert not (await loading.models.ListModels(models_pb2.ListModelsRequest())).models
    batching = loading.load()
    await loading.classify("a")
    loading.door.is_draining = True
    assert (await loading.refusal("a")).code == "draining"
    listed = (await loading.models.ListModels(models_pb2.ListModelsRequest())).models
    assert {model.state for model in listed} == {models_pb2.MODEL_STATE_DRAINING}
    batching.cancel()


async def test_models(house: House) -> None:
    base, mood = (await house.models.ListModels(models_pb2.ListModelsRequest())).models
    assert (base.id, base.parent, base.tasks, base.default_tasks, base.labels) == (
        "base",
        "",
        ["embeddings", "classify"],
        ["embeddings", "classify"],
        ["bad", "good"],
    )
    assert (mood.id, mood.parent, mood.tasks, mood.default_tasks) == ("mood", "base", ["classify"], [])
    assert (mood.max_input_tokens, mood.vocabulary_size) == (8, 100)
    assert (mood.dtype, mood.device, mood.kernel, mood.digest) == ("float32", "cpu", "portable", "abc")
    assert mood.state == models_pb2.MODEL_STATE_READY
    assert (await house.models.GetModel(models_pb2.GetModelRequest(model="mood"))).model == mood
    for name in ("nobody", ""):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await house.models.GetModel(models_pb2.GetModelRequest(model=name))
        error = from_rpc_error(refused.value)
        assert (error.code, error.param) == ("model_not_found", "model")
