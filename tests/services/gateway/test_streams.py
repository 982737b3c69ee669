"""Server-sent events on a real socket: framing, failures, readers that leave or stall."""

import asyncio
import json
import re
import socket
from typing import Any

import pytest
from gateway_house import House, StartHouse, until

from services.common.errors import ContextLengthExceeded, QueueFull, WorkerLost

CHAT = {"messages": [{"role": "user", "content": "hello"}], "stream": True}


async def read_events(house: House, body: dict[str, Any], path: str = "/v1/chat/completions") -> list[str]:
    async with house.http.stream("POST", path, json=body) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        return (await response.aread()).decode().split("\n\n")[:-1]


async def test_every_event_has_an_id_and_done_is_last(house):
    events = await read_events(house, CHAT)
    assert [re.match(r"id: (\S+):(\d+)\ndata: ", event).groups() for event in events] == [
        ("s1", str(number)) for number in range(len(events))
    ]
    assert events[-1].endswith("data: [DONE]")
    chunks = [json.loads(event.partition("data: ")[2]) for event in events[:-1]]
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-s1"}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 5 + ["stop"]
    assert chunks[-1]["timings"] == {"queue_ms": 0.5, "tokenize_ms": 0.25, "prefill_ms": 4, "decode_ms": 8}


async def test_a_failure_before_the_first_token_is_a_status(house):
    house.decoder.failure = ContextLengthExceeded("9 tokens, the context has 8", param="messages")
    response = await house.http.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    house.decoder.failure, house.decoder.failure_after_tokens = QueueFull("full"), 0
    response = await house.http.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 429


async def test_a_failure_after_the_first_token_is_an_error_event_without_done(house):
    house.decoder.failure, house.decoder.failure_after_tokens = ValueError("secret cause"), 2
    events = await read_events(house, CHAT)
    assert "[DONE]" not in events[-1]
    assert "secret" not in events[-1]
    error = json.loads(events[-1].partition("data: ")[2])
    assert error["error"]["code"] == "internal"
    assert error["error"]["type"] == "server_error"
    assert len(events) == 4
    await house.until_metric(1, "janus_requests_total", code="internal", model="smol", task="chat", transport="rest")


@pytest.mark.parametrize("index", [0, 1])
async def test_one_of_several_prompts_fails(house, index):
    house.decoder.failure, house.decoder.failure_after_tokens = WorkerLost("gone"), 2
    events = await read_events(house, {"prompt": ["a", "b"], "stream": True}, "/v1/completions")
    assert json.loads(events[-1].partition("data: ")[2])["error"]["code"] == "worker_lost"
    await until(lambda: house.decoder.num_running == 0)


async def test_pings_break_a_silence(start_house: StartHouse):
    house = await start_house(ping_interval_seconds=0.1)
    house.decoder.token_seconds = 0.35
    events = await read_events(house, {**CHAT, "max_tokens": 2})
    assert events.count(": ping") >= 2
    assert events[-1].endswith("[DONE]")


async def test_a_client_that_leaves_cancels_the_rpc(house):
    house.decoder.token_seconds = 0.02
    house.decoder.words = ["x"] * 1000
    async with house.http.stream("POST", "/v1/chat/completions", json=CHAT) as response:
        async for _ in response.aiter_lines():
            break
    await until(lambda: house.decoder.num_cancelled == 1)
    assert house.decoder.num_running == 0
    assert house.decoder.num_sent < 100
    await house.until_metric(1, "janus_cancellations_total", stage="streaming")
    await house.until_metric(0, "janus_requests_running", model="smol")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
async def test_a_client_that_leaves_before_the_answer_cancels_the_rpc(house, path):
    house.decoder.answer_seconds = house.encoder.answer_seconds = 5
    body = json.dumps({"input": "a"} if "embed" in path else {**CHAT, "stream": False}).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", house.gateway.http_port)
    writer.write(
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (path.encode(), len(body), body)
    )
    workers = house.decoder, house.encoder
    await until(lambda: any(worker.requests for worker in workers))
    await house.until_metric(1, "janus_requests_running", model="smol" if "chat" in path else "acme/minilm")
    writer.transport.abort()
    await until(lambda: all(worker.num_running == 0 for worker in house.gateway.router.workers))
    await house.until_metric(1, "janus_cancellations_total", stage="waiting")
    await until(lambda: house.decoder.num_running == 0)


async def test_a_reader_that_stalls_loses_its_stream(start_house: StartHouse):
    house = await start_house(stream_buffer_events=50)
    house.decoder.words = ["word " * 100] * 20_000
    body = json.dumps(CHAT).encode()
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", house.gateway.http_port))
        reader.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await until(lambda: house.decoder.num_cancelled == 1, seconds=10)
        assert house.decoder.num_sent < 1_000  # the kernel's own buffers would take four times as much
        await house.until_metric(1, "janus_cancellations_total", stage="stalled")
        await house.until_metric(0, "janus_requests_running", model="smol")


async def test_a_reader_that_takes_nothing_for_too_long(start_house: StartHouse):
    house = await start_house(stream_buffer_events=100_000, stream_stall_seconds=0.5)
    house.decoder.words = ["word " * 1000] * 100_000
    house.decoder.token_seconds = 0.002
    body = json.dumps(CHAT).encode()
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", house.gateway.http_port))
        reader.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await until(lambda: house.decoder.num_cancelled == 1, seconds=10)
        await house.until_metric(1, "janus_cancellations_total", stage="stalled")


async def test_sixteen_streams_at_once(house):
    house.decoder.token_seconds = 0.001
    house.decoder.words = [f"{number} " for number in range(50)]
    answers = await asyncio.gather(*(read_events(house, CHAT) for _ in range(16)))
    assert all(len(events) == 53 and events[-1].endswith("[DONE]") for events in answers)
    await house.until_metric(0, "janus_requests_running", model="smol")
