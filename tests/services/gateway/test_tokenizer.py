"""Tokenizing through the gateway: any model's, the default decoder's without a name; REST and gRPC alike."""

from typing import Any

import grpc
import pytest
from gateway_fakes import DECODER_MODEL, FakeWorker
from gateway_house import House, StartHouse, until
from google.protobuf.message import Message

from janus.v1 import decoder_pb2, models_pb2, tokenizer_pb2, tokenizer_pb2_grpc
from services.common.errors import InvalidRequest, JanusError
from services.common.rpc_status import from_rpc_error
from services.gateway.worker_client import WorkerState

Tokenize = tokenizer_pb2.TokenizeTextRequest
Detokenize = tokenizer_pb2.DetokenizeTokensRequest
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
CHAT = tokenizer_pb2.ChatMessages(
    messages=[
        decoder_pb2.ChatMessage(role="system", content="be brief"),
        decoder_pb2.ChatMessage(role="user", content="hi"),
    ]
)


async def ask(channel: grpc.aio.Channel, request: Message) -> Any:
    """Raises JanusError."""
    stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    try:
        return await (stub.TokenizeText if isinstance(request, Tokenize) else stub.DetokenizeTokens)(request)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


async def test_a_prompt(house, channel):
    rpc = await ask(channel, Tokenize(prompt="one  three", return_token_strs=True))
    rest = await house.http.post("/v1/tokenize", json={"prompt": "one  three", "return_token_strs": True})
    assert rest.json() == {
        "count": 2,
        "max_model_len": 2048,
        "tokens": [3, 5],
        "token_strs": ["one", "three"],
        "offsets": [[0, 3], [5, 10]],
        "model": "smol",
    }
    assert (rpc.model, rpc.count, rpc.max_model_len, list(rpc.tokens)) == ("smol", 2, 2048, [3, 5])
    assert list(rpc.token_strs) == ["one", "three"]
    assert [[each.start, each.end] for each in rpc.offsets] == [[0, 3], [5, 10]]
    first, second = house.decoder.requests
    assert first == second
    assert first.model == "smol"


async def test_messages(house, channel):
    rpc = await ask(channel, Tokenize(messages=CHAT, add_generation_prompt=False, add_special_tokens=True))
    body = {"messages": MESSAGES, "add_generation_prompt": False, "add_special_tokens": True}
    rest = await house.http.post("/v1/tokenize", json=body)
    assert rest.json() == {"count": 3, "max_model_len": 2048, "tokens": [2, 5, 2], "token_strs": None, "model": "smol"}
    assert list(rpc.tokens) == [2, 5, 2]
    first, second = house.decoder.requests
    assert first == second


async def test_what_is_absent_is_the_workers_to_decide(house):
    await house.http.post("/v1/tokenize", json={"prompt": "a", "tools": [], "add_special_tokens": None})
    (request,) = house.decoder.requests
    assert request == Tokenize(model="smol", prompt="a")


async def test_tokens_to_text(house, channel):
    for tokens, prompt in (([1, 3], "x xxx"), ([], "")):
        rpc = await ask(channel, Detokenize(tokens=tokens))
        rest = await house.http.post("/v1/detokenize", json={"tokens": tokens})
        assert rest.json() == {"prompt": prompt, "model": "smol"}
        assert (rpc.prompt, rpc.model) == (prompt, "smol")


async def test_an_empty_prompt(house):
    rest = (await house.http.post("/v1/tokenize", json={"prompt": "", "return_token_strs": True})).json()
    assert (rest["count"], rest["tokens"], rest["token_strs"], rest["offsets"]) == (0, [], [], [])


async def test_any_model_tokenizes(house):
    for path, body in (("tokenize", {"prompt": "a"}), ("detokenize", {"tokens": [1]})):
        rest = await house.http.post(f"/v1/{path}", json={**body, "model": "acme/minilm"})
        assert rest.json()["model"] == "acme/minilm"
    assert [type(request) for request in house.encoder.requests] == [Tokenize, Detokenize]
    assert not house.decoder.requests
    listed = (await house.http.get("/v1/models")).json()["data"]
    assert all("tokenize" not in model["tasks"] for model in listed)


async def test_it_counts_as_a_task_of_its_own(house, channel):
    await house.http.post("/v1/tokenize", json={"prompt": "a"})
    await ask(channel, Detokenize(tokens=[1]))
    await house.until_metric(1, "janus_requests_total", task="tokenize", model="smol", code="ok", transport="rest")
    await house.until_metric(1, "janus_requests_total", task="detokenize", model="smol", code="ok", transport="grpc")
    assert await house.metric("janus_requests_running", model="smol") == 0


WRONG: list[tuple[Message, str, dict[str, Any], str, str]] = [
    (Tokenize(), "tokenize", {}, "invalid_request", "prompt"),
    (Tokenize(model="nobody", prompt="a"), "tokenize", {"model": "nobody", "prompt": "a"}, "model_not_found", "model"),
    (Tokenize(messages=tokenizer_pb2.ChatMessages()), "tokenize", {"messages": []}, "invalid_request", "messages"),
    (
        Tokenize(prompt="a", add_generation_prompt=True),
        "tokenize",
        {"prompt": "a", "add_generation_prompt": True},
        "invalid_request",
        "add_generation_prompt",
    ),
    (
        Detokenize(model="nobody", tokens=[1]),
        "detokenize",
        {"model": "nobody", "tokens": [1]},
        "model_not_found",
        "model",
    ),
]


@pytest.mark.parametrize(("request_", "path", "body", "code", "param"), WRONG)
async def test_errors_are_the_same_on_both(house, channel, request_, path, body, code, param):
    with pytest.raises(JanusError) as error:
        await ask(channel, request_)
    rest = (await house.http.post(f"/v1/{path}", json=body)).json()["error"]
    assert (rest["code"], rest["param"]) == (error.value.code, error.value.param) == (code, param)
    assert rest["message"] == error.value.message


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tokenize", {"prompt": "a", "messages": MESSAGES}, "messages"),
        ("tokenize", {"prompt": ["a"]}, "prompt"),
        ("tokenize", {"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ("tokenize", {"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ("tokenize", {"prompt": "a", "add_special_tokens": "yes"}, "add_special_tokens"),
        ("tokenize", {"prompt": "a", "chat_template": "{{ 1 }}"}, "chat_template"),
        ("tokenize", {"prompt": "a", "text": "b"}, "text"),
        ("detokenize", {}, "tokens"),
        ("detokenize", {"tokens": 1}, "tokens"),
        ("detokenize", {"tokens": ["a"]}, "tokens"),
        ("detokenize", {"tokens": [-1]}, "tokens"),
        ("detokenize", {"tokens": [2**31]}, "tokens"),
        ("detokenize", {"tokens": [True]}, "tokens"),
    ],
)
async def test_bodies_that_are_refused(house, path, body, param):
    response = await house.http.post(f"/v1/{path}", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_request", param)


async def test_a_negative_token_over_grpc(channel):
    with pytest.raises(InvalidRequest) as error:
        await ask(channel, Detokenize(tokens=[-1]))
    assert error.value.param == "tokens"


async def test_a_workers_refusal_is_passed_on(house):
    house.decoder.failure = InvalidRequest("'tokens' holds what is no token: ids go from 0 to 99.", param="tokens")
    error = (await house.http.post("/v1/detokenize", json={"tokens": [100]})).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", "tokens")


async def test_the_default_is_the_default_chat_model(start_house: StartHouse):
    plain, chatty = models_pb2.Model(), models_pb2.Model()
    for model, name, tasks in ((plain, "plain", ["completions"]), (chatty, "chatty", ["chat", "completions"])):
        model.CopyFrom(DECODER_MODEL)
        model.id = name
        model.tasks[:] = model.default_tasks[:] = tasks
    workers = [FakeWorker("decoder", [plain]), FakeWorker("decoder", [chatty])]
    for worker in workers:
        await worker.start()
    house: House = await start_house(decoder_targets=",".join(worker.target for worker in workers))
    await until(lambda: all(worker.state is WorkerState.READY for worker in house.gateway.router.workers))
    assert (await house.http.post("/v1/tokenize", json={"prompt": "a"})).json()["model"] == "chatty"
    named = await house.http.post("/v1/tokenize", json={"prompt": "a", "model": "plain"})
    assert named.json()["model"] == "plain"
    for worker in workers:
        await worker.stop()


async def test_a_decoder_without_chat_is_the_default_where_there_is_no_other(house):
    house.gateway.router.workers[1].models["smol"].tasks[:] = ["completions"]
    house.gateway.router.workers[1].models["smol"].default_tasks[:] = ["completions"]
    assert (await house.http.post("/v1/tokenize", json={"prompt": "a"})).json()["model"] == "smol"


async def test_while_no_decoder_is_ready(start_house: StartHouse):
    house: House = await start_house(is_ready=False)
    await house.encoder.set_serving()
    await until(lambda: house.gateway.router.workers[0].state is WorkerState.READY)
    for body in ({"prompt": "a"}, {"prompt": "a", "model": "smol"}):
        response = await house.http.post("/v1/tokenize", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_loading")
    assert (await house.http.post("/v1/tokenize", json={"prompt": "a", "model": "acme/minilm"})).status_code == 200
