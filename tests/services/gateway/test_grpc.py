"""gRPC: the same operations, so the same answers and the same errors as REST."""

from typing import Any

import grpc
import pytest
from gateway_house import House, StartHouse, until
from google.protobuf import json_format
from google.protobuf.message import Message

from janus.v1 import (
    common_pb2,
    decoder_pb2,
    decoder_pb2_grpc,
    encoder_pb2,
    encoder_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
)
from services.common.errors import ContextLengthExceeded, JanusError, QueueFull
from services.common.rpc_status import from_rpc_error

ClassifyText = encoder_pb2.ClassifyTextRequest
EmbedText = encoder_pb2.EmbedTextRequest
Text = encoder_pb2.EmbedTextInput
Generate = decoder_pb2.GenerateRequest
Chat = decoder_pb2.ChatRequest
Options = decoder_pb2.GenerationOptions
HELLO = [decoder_pb2.ChatMessage(role="user", content="hello")]
REST_HELLO = [{"role": "user", "content": "hello"}]


async def ask(channel: grpc.aio.Channel, request: Message, **options: Any) -> Any:
    """The answer, or the list of events.

    Raises JanusError.
    """
    encoder = encoder_pb2_grpc.EncoderServiceStub(channel)
    decoder = decoder_pb2_grpc.DecoderServiceStub(channel)
    try:
        match request:
            case decoder_pb2.GenerateRequest():
                return [each.event async for each in decoder.Generate(request, **options)]
            case decoder_pb2.ChatRequest():
                return [each.event async for each in decoder.Chat(request, **options)]
            case _:
                return await getattr(encoder, type(request).__name__.removesuffix("Request"))(request, **options)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


async def read(call: Any) -> Any:
    """What comes next; None at the end, however it ends."""
    try:
        response = await call.read()
    except grpc.aio.AioRpcError:
        return None
    return None if response is grpc.aio.EOF else response


async def test_classification_is_the_same_on_both(house, channel):
    rpc = await ask(channel, ClassifyText(inputs=["a", "b"]), metadata=(("x-request-id", "r1"),))
    rest = (await house.http.post("/v1/classify", json={"inputs": ["a", "b"]}, headers={"X-Request-Id": "r1"})).json()
    assert rest["id"] == rpc.id == "cls-r1"
    assert rest["model"] == rpc.model == "acme/minilm"
    assert rest["results"] == [
        [{"label": each.label, "score": each.score} for each in result.labels] for result in rpc.results
    ]
    assert rest["usage"] == {"prompt_tokens": 6, "total_tokens": 6, "truncated": False}
    assert rpc.usage.prompt_tokens == 6
    assert rest["metrics"] == {"queue_ms": 0.5, "tokenize_ms": 0.25, "inference_ms": 2, "total_ms": 3}
    assert rest["created"] > 0
    assert rest["object"] == "classification"
    first, second = house.encoder.requests
    assert (first.inputs, first.truncate) == (second.inputs, second.truncate)


async def test_embeddings_are_the_same_on_both(house, channel):
    rpc = await ask(channel, EmbedText(input=[Text(text="abc")], dimensions=3, truncate=True))
    rest = (await house.http.post("/v1/embeddings", json={"input": "abc", "dimensions": 3, "truncate": True})).json()
    assert rest["data"][0]["embedding"] == list(rpc.embeddings[0].values)
    assert rest["usage"]["truncated"] is rpc.usage.truncated is True
    first, second = house.encoder.requests
    assert first == second


async def test_generations_are_the_same_on_both(house, channel):
    events = await ask(channel, Chat(messages=HELLO, options=Options(seed=3, temperature=0)))
    rest = (
        await house.http.post("/v1/chat/completions", json={"messages": REST_HELLO, "seed": 3, "temperature": 0})
    ).json()
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["started", *["delta"] * 4, "finished", "ended"]
    assert [event.sequence for event in events] == list(range(7))
    assert rest["choices"][0]["message"]["content"] == "".join(event.delta.text for event in events)
    assert rest["usage"]["total_tokens"] == events[-1].ended.usage.total_tokens
    assert (events[0].started.model, events[0].started.seed) == ("smol", 3)
    assert events[0].started.created_unix_seconds > 0
    first, second = house.decoder.requests
    assert first == second

    by_tokens = Generate(token_ids=common_pb2.TokenIds(ids=[1, 2]), options=Options(max_tokens=16))
    await ask(channel, by_tokens)
    await house.http.post("/v1/completions", json={"prompt": [1, 2]})
    first, second = house.decoder.requests[2:]
    assert first == second


async def test_models_are_the_same_on_both(house, channel):
    stub = models_pb2_grpc.ModelServiceStub(channel)
    listed = await stub.ListModels(models_pb2.ListModelsRequest())
    rest = (await house.http.get("/v1/models")).json()["data"]
    assert [model.id for model in listed.models] == [model["id"] for model in rest] == ["acme/minilm", "smol"]
    one = await stub.GetModel(models_pb2.GetModelRequest(model="acme/minilm"))
    assert one.model.digest == (await house.http.get("/v1/models/acme/minilm")).json()["digest"]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.GetModel(models_pb2.GetModelRequest(model="nobody"))
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


ClassifyZeroShot = encoder_pb2.ClassifyZeroShotRequest
ZeroShot = encoder_pb2.ClassifyZeroShotParameters
ClassifyTokens = encoder_pb2.ClassifyTokensRequest
Tokens = encoder_pb2.ClassifyTokensParameters
FillMask = encoder_pb2.FillMaskRequest
Masks = encoder_pb2.FillMaskParameters
AnswerQuestion = encoder_pb2.AnswerQuestionRequest
Question = encoder_pb2.QuestionInContext
Reading = encoder_pb2.AnswerQuestionParameters
Rerank = encoder_pb2.RerankTextsRequest
Inspect = encoder_pb2.InspectAttentionRequest
Shown = encoder_pb2.InspectAttentionParameters
REST_QUESTION = {"question": "Where?", "context": "In Berkeley"}

TASKS: list[tuple[Message, str, dict[str, Any]]] = [
    (
        ClassifyZeroShot(inputs=["a"], parameters=ZeroShot(candidate_labels=["x", "y"], multi_label=True)),
        "zero-shot-classify",
        {"inputs": "a", "parameters": {"candidate_labels": "x, y", "multi_label": True}},
    ),
    (
        ClassifyTokens(
            inputs=["Ada lived"],
            parameters=Tokens(
                aggregation_strategy=encoder_pb2.AGGREGATION_STRATEGY_MAX, ignore_labels=common_pb2.Texts(), stride=4
            ),
        ),
        "token-classify",
        {"inputs": "Ada lived", "parameters": {"aggregation_strategy": "max", "ignore_labels": [], "stride": 4}},
    ),
    (
        FillMask(inputs=["a [MASK]"], parameters=Masks(top_k=1, targets=["x", "y"]), truncate=True),
        "fill-mask",
        {"inputs": "a [MASK]", "parameters": {"top_k": 1, "targets": ["x", "y"]}, "truncate": True},
    ),
    (
        AnswerQuestion(
            inputs=[Question(question="Where?", context="In Berkeley")],
            parameters=Reading(top_k=2, align_to_words=False),
        ),
        "question-answering",
        {"inputs": REST_QUESTION, "parameters": {"top_k": 2, "align_to_words": False}},
    ),
    (
        Rerank(query="q", documents=["a", "b"], top_n=1, return_documents=True),
        "rerank",
        {"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True},
    ),
    (
        Inspect(
            inputs=["a cat"],
            parameters=Shown(layers=[-1], heads=[0, 1], reduce=encoder_pb2.ATTENTION_REDUCTION_NONE),
        ),
        "attention",
        {"inputs": "a cat", "parameters": {"layers": [-1], "heads": [0, 1], "reduce": "none"}},
    ),
]


async def test_tasks_are_the_same_on_both(house, channel):
    for request, path, body in TASKS:
        rpc = await ask(channel, request, metadata=(("x-request-id", "r1"),))
        rest = (await house.http.post(f"/v1/{path}", json=body, headers={"X-Request-Id": "r1"})).json()
        first, second = house.encoder.requests[-2:]
        assert first == second, path
        assert (rest["id"], rest["model"], rest["usage"]) == (
            rpc.id,
            rpc.model,
            {
                "prompt_tokens": rpc.usage.prompt_tokens,
                "total_tokens": rpc.usage.total_tokens,
                "truncated": rpc.usage.truncated,
            },
        )
        assert numbers_and_texts(rest["results"]) == numbers_and_texts(json_format.MessageToDict(rpc)["results"]), path


def numbers_and_texts(value: Any) -> list[Any]:
    """The leaves of an answer, whatever holds them; zeros and what is absent, which gRPC does not send, left out."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return sorted((leaf for part in parts for leaf in numbers_and_texts(part)), key=str)
    return [value] if value else []


WRONG: list[tuple[Message, str, dict[str, Any]]] = [
    (ClassifyText(), "classify", {"inputs": []}),
    (
        ClassifyText(inputs=["a"], parameters=encoder_pb2.ClassifyTextParameters(top_k=0)),
        "classify",
        {"inputs": "a", "parameters": {"top_k": 0}},
    ),
    (ClassifyText(model="nobody", inputs=["a"]), "classify", {"model": "nobody", "inputs": "a"}),
    (ClassifyText(model="smol", inputs=["a"]), "classify", {"model": "smol", "inputs": "a"}),
    (ClassifyText(inputs=["a", ""]), "classify", {"inputs": ["a", ""]}),
    (
        ClassifyZeroShot(inputs=["a"], parameters=ZeroShot(candidate_labels=[])),
        "zero-shot-classify",
        {"inputs": "a", "parameters": {"candidate_labels": []}},
    ),
    (
        ClassifyZeroShot(inputs=["a"], parameters=ZeroShot(candidate_labels=["x"], hypothesis_template="")),
        "zero-shot-classify",
        {"inputs": "a", "parameters": {"candidate_labels": ["x"], "hypothesis_template": ""}},
    ),
    (
        ClassifyTokens(inputs=["a"], parameters=Tokens(stride=1)),
        "token-classify",
        {"inputs": "a", "parameters": {"stride": 1}},
    ),
    (FillMask(inputs=["a"], parameters=Masks(top_k=0)), "fill-mask", {"inputs": "a", "parameters": {"top_k": 0}}),
    (
        FillMask(inputs=["a"], parameters=Masks(targets=[""])),
        "fill-mask",
        {"inputs": "a", "parameters": {"targets": ""}},
    ),
    (AnswerQuestion(), "question-answering", {"inputs": []}),
    (
        AnswerQuestion(inputs=[Question(question="a")]),
        "question-answering",
        {"inputs": {"question": "a", "context": ""}},
    ),
    (
        AnswerQuestion(
            inputs=[Question(question="Where?", context="In Berkeley")], parameters=Reading(max_answer_len=0)
        ),
        "question-answering",
        {"inputs": REST_QUESTION, "parameters": {"max_answer_len": 0}},
    ),
    (Rerank(documents=["a"]), "rerank", {"query": "", "documents": ["a"]}),
    (Rerank(query="q"), "rerank", {"query": "q", "documents": []}),
    (Rerank(query="q", documents=["a"], top_n=-1), "rerank", {"query": "q", "documents": ["a"], "top_n": -1}),
    (
        Inspect(inputs=["a"], parameters=Shown(top_k_edges=0)),
        "attention",
        {"inputs": "a", "parameters": {"top_k_edges": 0}},
    ),
    (EmbedText(input=[Text(text="")]), "embeddings", {"input": ""}),
    (EmbedText(input=[Text(text="a")], dimensions=-1), "embeddings", {"input": "a", "dimensions": -1}),
    (Chat(messages=[]), "chat/completions", {"messages": []}),
    (Chat(model="acme/minilm", messages=HELLO), "chat/completions", {"model": "acme/minilm", "messages": REST_HELLO}),
    (
        Chat(messages=HELLO, options=Options(temperature=3)),
        "chat/completions",
        {"messages": REST_HELLO, "temperature": 3},
    ),
    (
        Chat(messages=HELLO, options=Options(top_p=float("inf"))),
        "chat/completions",
        {"messages": REST_HELLO, "top_p": 2},
    ),
    (Chat(messages=HELLO, options=Options(stop=[""])), "chat/completions", {"messages": REST_HELLO, "stop": ""}),
    (Generate(text="a", options=Options(max_tokens=0)), "completions", {"prompt": "a", "max_tokens": 0}),
    (Generate(text="a", options=Options(stop_token_ids=[-1])), "completions", {"prompt": "a", "stop_token_ids": [-1]}),
]


@pytest.mark.parametrize(("request_", "path", "body"), WRONG)
async def test_errors_are_the_same_on_both(house, channel, request_, path, body):
    with pytest.raises(JanusError) as error:
        await ask(channel, request_)
    rest = (await house.http.post(f"/v1/{path}", json=body)).json()["error"]
    assert (rest["code"], rest["param"], rest["message"]) == (
        error.value.code,
        error.value.param,
        error.value.message,
    )


async def test_only_grpc_can_leave_a_prompt_or_a_role_out(channel):
    with pytest.raises(JanusError) as error:
        await ask(channel, Generate())
    assert error.value.param == "prompt"
    with pytest.raises(JanusError) as error:
        await ask(channel, Chat(messages=[decoder_pb2.ChatMessage(content="x")]))
    assert error.value.param == "messages[0].role"
    with pytest.raises(JanusError) as error:
        await ask(channel, Chat(messages=HELLO, options=Options(temperature=float("nan"))))
    assert error.value.param == "temperature"


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (
            ClassifyText(inputs=["a"], parameters=encoder_pb2.ClassifyTextParameters(function_to_apply=9)),
            "parameters.function_to_apply",
        ),
        (
            ClassifyTokens(inputs=["a"], parameters=Tokens(aggregation_strategy=9, stride=1)),
            "parameters.aggregation_strategy",
        ),
        (Inspect(inputs=["a"], parameters=Shown(reduce=9)), "parameters.reduce"),
    ],
)
async def test_an_enum_that_nobody_knows(channel, request_, param):
    with pytest.raises(JanusError) as error:
        await ask(channel, request_)
    assert (error.value.code, error.value.param) == ("invalid_request", param)


async def test_a_workers_error_is_passed_on_whole(house, channel):
    house.decoder.failure = ContextLengthExceeded("9 tokens, the context has 8", param="messages")
    with pytest.raises(ContextLengthExceeded) as error:
        await ask(channel, Chat(messages=HELLO))
    assert (error.value.param, error.value.message) == ("messages", "9 tokens, the context has 8")
    house.encoder.failure = QueueFull("full", retry_after_ms=2500)
    with pytest.raises(QueueFull) as refused:
        await ask(channel, EmbedText(input=[Text(text="a")]))
    assert refused.value.retry_after_ms == 2500


async def test_a_client_that_cancels_cancels_the_worker(house, channel):
    house.decoder.token_seconds = 0.02
    house.decoder.words = ["x"] * 1000
    call = decoder_pb2_grpc.DecoderServiceStub(channel).Chat(Chat(messages=HELLO))
    await call.read()
    call.cancel()
    await until(lambda: house.decoder.num_cancelled == 1)
    await until(lambda: house.decoder.num_running == 0)
    await house.until_metric(0, "janus_requests_running", model="smol")


async def test_the_callers_deadline_is_the_workers(house, channel):
    house.decoder.answer_seconds = 5
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await decoder_pb2_grpc.DecoderServiceStub(channel).Chat(Chat(messages=HELLO), timeout=0.2).read()
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: house.decoder.num_running == 0)


async def test_a_reader_that_stalls_loses_its_stream(start_house: StartHouse):
    house: House = await start_house(stream_stall_seconds=0.3)
    house.decoder.words = ["word " * 1000] * 20_000
    async with grpc.aio.insecure_channel(f"127.0.0.1:{house.gateway.grpc_port}") as channel:
        call = decoder_pb2_grpc.DecoderServiceStub(channel).Chat(Chat(messages=HELLO))
        await call.read()
        await until(lambda: house.decoder.num_cancelled == 1, seconds=10)
        await house.until_metric(0, "janus_requests_running", model="smol")
        while (await read(call)) is not None:
            pass
        await house.until_metric(1, "janus_cancellations_total", stage="stalled")
