"""Bad input gets its own clear answer, over the real workers."""

from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from running_janus import Stack

from janus.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc

CHAT, CLASSIFY, EMBED = "/v1/chat/completions", "/v1/classify", "/v1/embeddings"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("route", "body", "status", "code", "param"),
    [
        (CHAT, {"messages": "hello"}, 400, "invalid_request", "messages"),
        (CHAT, {"messages": HELLO, "temperature": "hot"}, 400, "invalid_request", "temperature"),
        (CHAT, {"messages": HELLO, "max_tokens": 0}, 400, "invalid_request", "max_tokens"),
        (CHAT, {"messages": HELLO, "surprise": 1}, 400, "invalid_request", "surprise"),
        (CHAT, {"messages": HELLO, "model": "gpt-17"}, 404, "model_not_found", "model"),
        (CHAT, {"messages": HELLO, "model": "all-MiniLM-L6-v2"}, 400, "task_not_supported", "model"),
        (CHAT, {"messages": [{"role": "user", "content": "long " * 9000}]}, 400, "context_length_exceeded", "messages"),
        (CLASSIFY, {"inputs": "word " * 600}, 400, "context_length_exceeded", "inputs"),
        (CLASSIFY, {"inputs": 7}, 400, "invalid_request", "inputs"),
        (CLASSIFY, {"inputs": []}, 400, "invalid_request", "inputs"),
        (CLASSIFY, {"inputs": "fine", "model": "nobody"}, 404, "model_not_found", "model"),
        (EMBED, {"input": "", "model": "all-MiniLM-L6-v2"}, 400, "invalid_request", "input"),
        (EMBED, {"input": [[999999]], "model": "all-MiniLM-L6-v2"}, 400, "invalid_request", "input"),
    ],
)
def test_bodies(stack: Stack, route: str, body: dict[str, Any], status: int, code: str, param: str) -> None:
    answer = httpx.post(f"{stack.url}{route}", json=body, timeout=30)
    assert answer.status_code == status, answer.text
    error = answer.json()
    assert error["error"]["code"] == code
    assert error["error"]["param"] == param
    assert error["status"] == status
    assert "long long" not in answer.text


def test_malformed_json(stack: Stack) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{stack.url}{CHAT}", content=b'{"messages": [', headers=headers, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


def test_unknown_route(stack: Stack) -> None:
    answer = httpx.get(f"{stack.url}/v2/everything", timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "route_not_found")


def test_a_body_over_the_limit(stack: Stack) -> None:
    answer = httpx.post(f"{stack.url}{CLASSIFY}", json={"inputs": "x" * (11 * 2**20)}, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


def reason(error: grpc.RpcError) -> str:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    next(detail for detail in status.details if detail.Is(info.DESCRIPTOR)).Unpack(info)
    return info.reason


def test_grpc_errors_name_the_same_words(stack: Stack) -> None:
    with grpc.insecure_channel(stack.grpc) as channel:
        encoder = encoder_pb2_grpc.EncoderServiceStub(channel)
        decoder = decoder_pb2_grpc.DecoderServiceStub(channel)
        with pytest.raises(grpc.RpcError) as unknown:
            encoder.ClassifyText(encoder_pb2.ClassifyTextRequest(model="nobody", inputs=["x"]), timeout=30)
        with pytest.raises(grpc.RpcError) as too_long:
            encoder.ClassifyText(encoder_pb2.ClassifyTextRequest(inputs=["word " * 600]), timeout=30)
        with pytest.raises(grpc.RpcError) as empty:
            list(decoder.Generate(decoder_pb2.GenerateRequest(text=""), timeout=30))
    assert reason(unknown.value) == "model_not_found"
    assert reason(too_long.value) == "context_length_exceeded"
    assert reason(empty.value) == "invalid_request"
