"""Every rule that a REST body can break: a 400 with the field's name, and never the value."""

import asyncio
import json
from typing import Any

import pytest
from gateway_house import House

from services.common.errors import ContextLengthExceeded
from services.gateway.validation import MAX_INPUTS

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
SECRET = "the-value-that-was-sent"

BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({}, "messages"),
    ({"messages": SECRET}, "messages"),
    ({"messages": [SECRET]}, "messages[0]"),
    ({"messages": [{"role": SECRET, "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"content": SECRET}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": SECRET}}]}]},
        "messages[0].content[0]",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({**CHAT, "temperature": -0.1}, "temperature"),
    ({**CHAT, "temperature": 2.1}, "temperature"),
    ({**CHAT, "temperature": "0.5"}, "temperature"),
    ({**CHAT, "temperature": True}, "temperature"),
    ({**CHAT, "top_p": 0}, "top_p"),
    ({**CHAT, "top_p": 1.5}, "top_p"),
    ({**CHAT, "top_k": -1}, "top_k"),
    ({**CHAT, "min_p": 1.1}, "min_p"),
    ({**CHAT, "max_tokens": 0}, "max_tokens"),
    ({**CHAT, "max_tokens": 1.5}, "max_tokens"),
    ({**CHAT, "max_tokens": 2**31}, "max_tokens"),
    ({**CHAT, "max_completion_tokens": 0}, "max_completion_tokens"),
    ({**CHAT, "max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
    ({**CHAT, "min_tokens": -1}, "min_tokens"),
    ({**CHAT, "min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({**CHAT, "seed": 2**63}, "seed"),
    ({**CHAT, "seed": 1.0}, "seed"),
    ({**CHAT, "stop": 5}, "stop"),
    ({**CHAT, "stop": ["a", 5]}, "stop"),
    ({**CHAT, "stop": [""]}, "stop"),
    ({**CHAT, "stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({**CHAT, "stop_token_ids": [-1]}, "stop_token_ids"),
    ({**CHAT, "stop_token_ids": ["a"]}, "stop_token_ids[0]"),
    ({**CHAT, "ignore_eos": 1}, "ignore_eos"),
    ({**CHAT, "stream": "yes"}, "stream"),
    ({**CHAT, "stream_options": {"include_usage": True}}, "stream_options"),
    ({**CHAT, "stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({**CHAT, "stream": True, "stream_options": {"novel": 1}}, "stream_options.novel"),
    ({**CHAT, "model": ""}, "model"),
    ({**CHAT, "model": 7}, "model"),
    ({**CHAT, "novel": SECRET}, "novel"),
    ({**CHAT, "n": 0}, "n"),
    ({**CHAT, "n": 10_000}, "n"),
    ({**CHAT, "n": True}, "n"),
    ({**CHAT, "stop": "x" * 100_000}, "stop"),
    ({**CHAT, "allowed_token_ids": []}, "allowed_token_ids"),
    ({**CHAT, "allowed_token_ids": [-1]}, "allowed_token_ids"),
    ({**CHAT, "echo": True}, "echo"),
    ({**CHAT, "continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
    ({**CHAT, "continue_final_message": 1}, "continue_final_message"),
    ({**CHAT, "tools": [{"type": "function"}]}, "tools"),
    ({**CHAT, "tool_choice": "required"}, "tool_choice"),
    ({**CHAT, "functions": [{}]}, "functions"),
    ({**CHAT, "response_format": {"type": "json_object"}}, "response_format"),
    ({**CHAT, "logprobs": 1}, "logprobs"),
    ({**CHAT, "top_logprobs": 2}, "top_logprobs"),
    ({**CHAT, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({**CHAT, "logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({**CHAT, "presence_penalty": 2.1}, "presence_penalty"),
    ({**CHAT, "frequency_penalty": -2.1}, "frequency_penalty"),
    ({**CHAT, "repetition_penalty": 0}, "repetition_penalty"),
    ({**CHAT, "logit_bias": {"5": 101}}, "logit_bias"),
    ({**CHAT, "logit_bias": {"5": True}}, "logit_bias"),
    ({**CHAT, "logit_bias": {"5": "1"}}, "logit_bias"),
    ({**CHAT, "logit_bias": {"-5": 1}}, "logit_bias"),
    ({**CHAT, "logit_bias": {SECRET: 1}}, "logit_bias"),
    ({**CHAT, "logit_bias": {"9999999999": 1}}, "logit_bias"),
    ({**CHAT, "logit_bias": [1]}, "logit_bias"),
    ({**CHAT, "audio": {}}, "audio"),
    ({**CHAT, "modalities": ["audio"]}, "modalities"),
    ({**CHAT, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({**CHAT, "prompt": "x"}, "prompt"),
]

BAD_COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [1, -1]}, "prompt"),
    ({"prompt": [2**31]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": ["a"] * 129}, "prompt"),
    ({"prompt": "a", "logprobs": True}, "logprobs"),
    ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ({"prompt": "a", "logprobs": -1}, "logprobs"),
    ({"prompt": "a", "top_logprobs": 1}, "top_logprobs"),
    ({"prompt": "a", "echo": 1}, "echo"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "n": 129}, "n"),
    ({"prompt": "a", "suffix": "b"}, "suffix"),
    ({"prompt": "a", "best_of": 2}, "best_of"),
    ({"prompt": "a", "messages": []}, "messages"),
]

BAD_EMBEDDINGS: list[tuple[dict[str, Any], str]] = [
    ({}, "input"),
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": ["a"] * (MAX_INPUTS + 1)}, "input"),
    ({"input": ["a", ""]}, "input"),
    ({"input": [[]]}, "input"),
    ({"input": [1.5]}, "input"),
    ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ({"input": "a", "dimensions": 0}, "dimensions"),
    ({"input": "a", "truncate": "yes"}, "truncate"),
    ({"input": "a", "novel": 1}, "novel"),
]

BAD_CLASSIFICATIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "inputs"),
    ({"inputs": []}, "inputs"),
    ({"inputs": ["a"] * (MAX_INPUTS + 1)}, "inputs"),
    ({"inputs": ""}, "inputs"),
    ({"inputs": [1]}, "inputs"),
    ({"inputs": {"text": "a"}}, "inputs"),
    ({"inputs": "a", "parameters": {"top_k": 0}}, "parameters.top_k"),
    ({"inputs": "a", "parameters": {"top_k": "all"}}, "parameters.top_k"),
    ({"inputs": "a", "parameters": {"function_to_apply": "tanh"}}, "parameters.function_to_apply"),
    ({"inputs": "a", "parameters": {"novel": 1}}, "parameters.novel"),
    ({"inputs": "a", "parameters": [1]}, "parameters"),
    ({"inputs": "a", "novel": 1}, "novel"),
]


LABELS = {"candidate_labels": ["x"]}
BAD_ZERO_SHOTS: list[tuple[dict[str, Any], str]] = [
    ({}, "inputs"),
    ({"inputs": "a"}, "parameters"),
    ({"inputs": "", "parameters": LABELS}, "inputs"),
    ({"inputs": [], "parameters": LABELS}, "inputs"),
    ({"inputs": "a", "parameters": {}}, "parameters.candidate_labels"),
    ({"inputs": "a", "parameters": {"candidate_labels": []}}, "parameters.candidate_labels"),
    ({"inputs": "a", "parameters": {"candidate_labels": " , "}}, "parameters.candidate_labels"),
    ({"inputs": "a", "parameters": {"candidate_labels": ["x", ""]}}, "parameters.candidate_labels"),
    ({"inputs": "a", "parameters": {"candidate_labels": [1]}}, "parameters.candidate_labels"),
    ({"inputs": "a", "parameters": {"candidate_labels": {"x": 1}}}, "parameters.candidate_labels"),
    ({"inputs": "a", "parameters": {**LABELS, "hypothesis_template": "no place"}}, "parameters.hypothesis_template"),
    ({"inputs": "a", "parameters": {**LABELS, "hypothesis_template": "{} {}"}}, "parameters.hypothesis_template"),
    ({"inputs": ["a"] * 100, "parameters": {"candidate_labels": ["x"] * 41}}, "inputs"),
    ({"inputs": ["a"] * MAX_INPUTS, "parameters": {"candidate_labels": ["x"] * MAX_INPUTS}}, "inputs"),
    ({"inputs": "a", "parameters": {**LABELS, "hypothesis_template": 1}}, "parameters.hypothesis_template"),
    ({"inputs": "a", "parameters": {**LABELS, "multi_label": "yes"}}, "parameters.multi_label"),
    ({"inputs": "a", "parameters": {**LABELS, "novel": SECRET}}, "parameters.novel"),
]

BAD_TOKEN_CLASSIFICATIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "inputs"),
    ({"inputs": ["a", ""]}, "inputs"),
    ({"inputs": "a", "parameters": {"aggregation_strategy": SECRET}}, "parameters.aggregation_strategy"),
    ({"inputs": "a", "parameters": {"aggregation_strategy": 1}}, "parameters.aggregation_strategy"),
    ({"inputs": "a", "parameters": {"ignore_labels": "O"}}, "parameters.ignore_labels"),
    ({"inputs": "a", "parameters": {"ignore_labels": ["O", 1]}}, "parameters.ignore_labels[1]"),
    ({"inputs": "a", "parameters": {"stride": 5}}, "parameters.stride"),
    ({"inputs": "a", "parameters": {"stride": 5, "aggregation_strategy": "none"}}, "parameters.stride"),
    ({"inputs": "a", "parameters": {"stride": -1, "aggregation_strategy": "max"}}, "parameters.stride"),
    ({"inputs": "a", "parameters": {"stride": 1.5, "aggregation_strategy": "max"}}, "parameters.stride"),
    ({"inputs": "a", "parameters": {"stride": 2**31, "aggregation_strategy": "max"}}, "parameters.stride"),
    ({"inputs": "a", "truncate": 1}, "truncate"),
]

BAD_MASKS: list[tuple[dict[str, Any], str]] = [
    ({"inputs": {}}, "inputs"),
    ({"inputs": "a", "parameters": {"top_k": 0}}, "parameters.top_k"),
    ({"inputs": "a", "parameters": {"top_k": True}}, "parameters.top_k"),
    ({"inputs": "a", "parameters": {"targets": []}}, "parameters.targets"),
    ({"inputs": "a", "parameters": {"targets": ""}}, "parameters.targets"),
    ({"inputs": "a", "parameters": {"targets": ["x", ""]}}, "parameters.targets"),
    ({"inputs": "a", "parameters": {"targets": ["x", 1]}}, "parameters.targets"),
    ({"inputs": "a", "parameters": {"targets": 1}}, "parameters.targets"),
    ({"inputs": "a", "parameters": {"novel": 1}}, "parameters.novel"),
]

QUESTION = {"question": "Where?", "context": "In Berkeley"}
BAD_QUESTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "inputs"),
    ({"inputs": SECRET}, "inputs"),
    ({"inputs": []}, "inputs"),
    ({"inputs": {}}, "inputs.question"),
    ({"inputs": {"question": "a"}}, "inputs.context"),
    ({"inputs": {**QUESTION, "question": ""}}, "inputs"),
    ({"inputs": {**QUESTION, "context": ""}}, "inputs"),
    ({"inputs": {**QUESTION, "context": [SECRET]}}, "inputs.context"),
    ({"inputs": {**QUESTION, "novel": SECRET}}, "inputs.novel"),
    ({"inputs": [SECRET]}, "inputs[0]"),
    ({"inputs": [QUESTION, {"question": 1, "context": "b"}]}, "inputs[1].question"),
    ({"inputs": [QUESTION, {"context": "b"}]}, "inputs[1].question"),
    ({"inputs": QUESTION, "truncate": True}, "truncate"),
    ({"inputs": QUESTION, "parameters": {"top_k": 0}}, "parameters.top_k"),
    ({"inputs": QUESTION, "parameters": {"doc_stride": -1}}, "parameters.doc_stride"),
    ({"inputs": QUESTION, "parameters": {"max_answer_len": 0}}, "parameters.max_answer_len"),
    ({"inputs": QUESTION, "parameters": {"max_seq_len": 0}}, "parameters.max_seq_len"),
    ({"inputs": QUESTION, "parameters": {"max_question_len": 0}}, "parameters.max_question_len"),
    ({"inputs": QUESTION, "parameters": {"align_to_words": 1}}, "parameters.align_to_words"),
    ({"inputs": QUESTION, "parameters": {"handle_impossible_answer": "no"}}, "parameters.handle_impossible_answer"),
]

BAD_RERANKINGS: list[tuple[dict[str, Any], str]] = [
    ({}, "query"),
    ({"query": "q"}, "documents"),
    ({"query": "", "documents": ["a"]}, "query"),
    ({"query": ["q"], "documents": ["a"]}, "query"),
    ({"query": "q", "documents": []}, "documents"),
    ({"query": "q", "documents": SECRET}, "documents"),
    ({"query": "q", "documents": ["a"] * (MAX_INPUTS + 1)}, "documents"),
    ({"query": "q", "documents": ["a", ""]}, "documents"),
    ({"query": "q", "documents": ["a", 1]}, "documents[1]"),
    ({"query": "q", "documents": [{}]}, "documents[0].text"),
    ({"query": "q", "documents": [{"text": 1}]}, "documents[0].text"),
    ({"query": "q", "documents": ["a", {"text": "b", "image": SECRET}]}, "documents[1].image"),
    ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
    ({"query": "q", "documents": ["a"], "top_n": "1"}, "top_n"),
    ({"query": "q", "documents": ["a"], "return_documents": 1}, "return_documents"),
    ({"query": "q", "documents": ["a"], "inputs": "a"}, "inputs"),
]

BAD_ATTENTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "inputs"),
    ({"inputs": "a", "parameters": {"layers": []}}, "parameters.layers"),
    ({"inputs": "a", "parameters": {"layers": 1}}, "parameters.layers"),
    ({"inputs": "a", "parameters": {"layers": [1, 2**31]}}, "parameters.layers[1]"),
    ({"inputs": "a", "parameters": {"layers": [-(2**31) - 1]}}, "parameters.layers[0]"),
    ({"inputs": "a", "parameters": {"layers": [1.0]}}, "parameters.layers[0]"),
    ({"inputs": "a", "parameters": {"layers": [True]}}, "parameters.layers[0]"),
    ({"inputs": "a", "parameters": {"heads": ["1"]}}, "parameters.heads[0]"),
    ({"inputs": "a", "parameters": {"heads": []}}, "parameters.heads"),
    ({"inputs": "a", "parameters": {"reduce": "max"}}, "parameters.reduce"),
    ({"inputs": "a", "parameters": {"top_k_edges": 0}}, "parameters.top_k_edges"),
]


@pytest.fixture
async def refuse(house: House):
    async def refuse(path: str, body: Any) -> dict[str, Any]:
        response = await house.http.post(path, json=body)
        answer: dict[str, Any] = response.json()
        assert response.status_code == 400, (body, answer)
        assert answer["error"]["code"] == "invalid_request"
        assert answer["error"]["type"] == "invalid_request_error"
        assert response.headers["x-should-retry"] == "false"
        assert SECRET not in response.text
        return answer

    return refuse


@pytest.mark.parametrize(
    ("path", "cases"),
    [
        ("/v1/chat/completions", BAD_CHATS),
        ("/v1/completions", BAD_COMPLETIONS),
        ("/v1/embeddings", BAD_EMBEDDINGS),
        ("/v1/classify", BAD_CLASSIFICATIONS),
        ("/v1/zero-shot-classify", BAD_ZERO_SHOTS),
        ("/v1/token-classify", BAD_TOKEN_CLASSIFICATIONS),
        ("/v1/fill-mask", BAD_MASKS),
        ("/v1/question-answering", BAD_QUESTIONS),
        ("/v1/rerank", BAD_RERANKINGS),
        ("/v1/attention", BAD_ATTENTIONS),
    ],
)
async def test_what_is_wrong_is_named(house, refuse, path, cases):
    for body, param in cases:
        answer = await refuse(path, body)
        assert answer["error"]["param"] == param, (body, answer)
    assert not house.decoder.requests
    assert not house.encoder.requests


async def test_values_that_change_nothing_are_accepted(house):
    neutral = {
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1,
        "logit_bias": {},
        "logprobs": False,
        "top_logprobs": 0,
        "tools": [],
        "tool_choice": "none",
        "functions": None,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "audio": None,
        "user": "me",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "temperature": None,
        "max_tokens": None,
        "stop": None,
        "stream": None,
        "stream_options": None,
        "model": None,
        "structured_outputs": None,
        "priority": 0,
    }
    response = await house.http.post("/v1/chat/completions", json={**CHAT, **neutral})
    assert response.status_code == 200, response.text
    assert not house.decoder.requests[0].options.HasField("temperature")


async def test_options_reach_the_worker(house):
    options = {
        "temperature": 2,
        "top_p": 1,
        "top_k": 0,
        "min_p": 0.5,
        "seed": -(2**63),
        "max_tokens": 9,
        "min_tokens": 9,
        "stop": "end",
        "stop_token_ids": [3],
        "ignore_eos": True,
        "repetition_penalty": 1.5,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "logit_bias": {"0": -100, "17": 2.5},
        "allowed_token_ids": [4, 5],
        "n": 2,
        "logprobs": True,
        "top_logprobs": 20,
    }
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    response = await house.http.post("/v1/chat/completions", json={**CHAT, **options, **flags})
    assert response.status_code == 200, response.text
    assert house.decoder.requests[0].continue_final_message
    assert house.decoder.requests[0].HasField("add_generation_prompt")
    sent = house.decoder.requests[0].options
    assert (sent.repetition_penalty, sent.presence_penalty, sent.frequency_penalty) == (1.5, -2, 2)
    assert (dict(sent.logit_bias), list(sent.allowed_token_ids.ids)) == ({0: -100, 17: 2.5}, [4, 5])
    assert (sent.n, sent.logprobs, sent.top_logprobs) == (2, True, 20)
    assert (sent.temperature, sent.top_p, sent.top_k, sent.min_p) == (2, 1, 0, 0.5)
    assert (sent.seed, sent.max_tokens, sent.min_tokens) == (-(2**63), 9, 9)
    assert (list(sent.stop), list(sent.stop_token_ids), sent.ignore_eos) == (["end"], [3], True)


async def test_messages_as_clients_send_them(house):
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
        {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None, "tool_calls": []},
        {"role": "user", "content": "", "novel": 1},
    ]
    response = await house.http.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 200, response.text
    sent = [(message.role, message.content, message.name) for message in house.decoder.requests[0].messages]
    assert sent == [("developer", "be brief", ""), ("user", "a\nb", "ann"), ("assistant", "", ""), ("user", "", "")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
        b'{"temperature": Infinity, "messages": [{"role": "user", "content": "x"}]}',
        b'{"temperature": -Infinity, "messages": [{"role": "user", "content": "x"}]}',
        b'{"temperature": 1e999, "messages": [{"role": "user", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"\\udfff": 1, "messages": [{"role": "user", "content": "x"}]}',
        b"[" * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        "\ufeff{}".encode(),
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
async def test_bodies_that_are_no_strict_json(house, body):
    response = await house.http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "invalid_request"


async def test_a_surrogate_pair_is_a_character(house):
    body = b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}]}'
    response = await house.http.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json; charset=utf-8"}
    )
    assert response.status_code == 200
    assert house.decoder.requests[0].messages[0].content == "😀"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_a_body_that_is_not_declared_as_json(house, headers):
    response = await house.http.post("/v1/chat/completions", content=json.dumps(CHAT).encode(), headers=headers)
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"


async def test_a_body_that_is_too_large(start_house):
    house = await start_house(max_body_bytes=1000)
    headers = {"content-type": "application/json"}

    async def chunks():
        for _ in range(20):
            yield b" " * 100

    for content in (b" " * 2000, chunks()):
        response = await house.http.post("/v1/chat/completions", content=content, headers=headers)
        assert response.status_code == 413, response.text
        assert response.json()["error"]["code"] == "payload_too_large"


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "soon", "9" * 20])
async def test_a_timeout_header_that_is_no_number(house, value):
    response = await house.http.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Timeout-Ms": value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "X-Request-Timeout-Ms"


def slow_body(*headers: str) -> bytes:
    """A request of which half the body comes."""
    lines = ["POST /v1/classify HTTP/1.1", "Host: janus", "Content-Type: application/json", "Content-Length: 99"]
    return "\r\n".join([*lines, *headers, "", '{"inputs": ']).encode()


async def test_a_body_that_never_ends_meets_the_deadline(house):
    reader, writer = await asyncio.open_connection("127.0.0.1", house.gateway.http_port)
    writer.write(slow_body("X-Request-Timeout-Ms: 50"))
    status = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    assert b"504" in status
    await house.until_metric(1, "janus_requests_total", code="deadline_exceeded", transport="rest")


async def test_a_client_that_leaves_before_its_body_is_whole(house):
    _, writer = await asyncio.open_connection("127.0.0.1", house.gateway.http_port)
    writer.write(slow_body())
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await house.until_metric(1, "janus_requests_total", code="cancelled", transport="rest")
    assert await house.metric("janus_cancellations_total", stage="waiting") == 1
    assert await house.metric("janus_requests_total", code="internal") == 0


async def test_a_workers_refusal_names_the_limit_as_it_was_sent(house):
    house.decoder.failure = ContextLengthExceeded("Too many.", param="max_tokens")
    for name in ("max_tokens", "max_completion_tokens"):
        body = {"messages": CHAT["messages"], name: 9}
        error = (await house.http.post("/v1/chat/completions", json=body)).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", name)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("messages", [1], "'messages[0]' must be an object."),
        ("stream_options", True, "'stream_options' must be an object."),
        ("seed", 1.5, "'seed' must be a valid integer."),
        ("model", "", "'model' can't be empty."),
    ],
)
async def test_a_wrong_type_is_told_in_a_sentence(refuse, field, value, message):
    answer = await refuse("/v1/chat/completions", {**CHAT, field: value})
    assert answer["error"]["message"] == message
