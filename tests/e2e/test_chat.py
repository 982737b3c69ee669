"""Chat, token by token, over SSE and gRPC, from real weights."""

import asyncio
import json
import time

import grpc
import httpx
from openai import AsyncOpenAI, OpenAI
from running_janus import Stack

from janus.v1 import decoder_pb2, decoder_pb2_grpc

QUESTION = "Name the capital of France."
CHAT = {
    "model": "SmolLM2-135M-Instruct",
    "messages": [{"role": "user", "content": QUESTION}],
    "max_tokens": 32,
}


def test_the_openai_client_streams_paris(stack: Stack) -> None:
    with OpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:
        chunks = list(client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "Paris" in "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 3, "it arrived token by token"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] in (
        ["stop"],
        ["length"],
    )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3


def test_grpc_streams_the_same_answer_as_rest(stack: Stack) -> None:
    options = decoder_pb2.GenerationOptions(max_tokens=32)
    messages = [decoder_pb2.ChatMessage(role="user", content=QUESTION)]
    with grpc.insecure_channel(stack.grpc) as channel:
        stub = decoder_pb2_grpc.DecoderServiceStub(channel)
        request = decoder_pb2.ChatRequest(messages=messages, options=options)
        events = [response.event for response in stub.Chat(request, timeout=60)]
    assert [event.sequence for event in events] == list(range(len(events)))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["finished", "ended"]
    assert set(kinds[1:-2]) == {"delta"}
    text = "".join(event.delta.text for event in events)
    assert "Paris" in text
    whole = httpx.post(f"{stack.url}/v1/chat/completions", json=CHAT, timeout=60).json()
    assert whole["choices"][0]["message"]["content"] == text
    assert whole["usage"]["completion_tokens"] == sum(len(event.delta.token_ids) for event in events)


def test_a_seed_repeats_itself(stack: Stack) -> None:
    body = {**CHAT, "temperature": 1.0, "seed": 11, "messages": [{"role": "user", "content": "Tell me a story."}]}
    answers = [httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=60).json() for _ in range(2)]
    assert answers[0]["choices"] == answers[1]["choices"]


async def test_ten_chats_interleave(stack: Stack) -> None:
    """Ten streams share steps: each has begun before any has ended, and together they beat one after another."""
    client = AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none")
    began: list[float] = []
    ended: list[float] = []

    async def one(number: int) -> int:
        messages = [{"role": "user", "content": f"Count slowly from {number} to {number + 50}."}]
        stream = await client.chat.completions.create(
            model="SmolLM2-135M-Instruct",
            messages=messages,
            max_tokens=48,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        count = 0
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                count += 1
                if count == 1:
                    began.append(time.monotonic())
        ended.append(time.monotonic())
        return count

    async with client:
        counts = await asyncio.gather(*(one(n) for n in range(10)))
    assert all(count > 10 for count in counts)
    assert max(began) < min(ended)


def test_a_client_that_hangs_up_frees_its_blocks(stack: Stack) -> None:
    body = {**CHAT, "max_tokens": 1000, "ignore_eos": True, "stream": True}

    def used() -> float:
        return stack.metric("DECODER_METRICS_PORT", "janus_kv_cache_usage_ratio")

    with httpx.stream("POST", f"{stack.url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        for _ in range(10):
            next(lines)
        assert used() > 0
    deadline = time.monotonic() + 10
    while used() > 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert used() == 0


def test_sse_events_are_numbered_and_done_comes_last(stack: Stack) -> None:
    body = {**CHAT, "stream": True}
    lines = httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=60).text.splitlines()
    identifiers = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
    numbers = [int(identifier.rsplit(":", 1)[1]) for identifier in identifiers]
    assert numbers == sorted(set(numbers))
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    first = json.loads(data[0])
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
