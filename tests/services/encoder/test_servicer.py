"""The gRPC side with a scripted runner: what each answer carries, what is refused and when, what is measured."""

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from scripted_house import House, until

from janus.v1 import encoder_pb2, models_pb2
from services.common.rpc_status import from_rpc_error


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
