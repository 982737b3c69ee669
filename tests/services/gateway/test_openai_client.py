"""The official OpenAI client, unchanged, against the gateway."""

import base64
import struct
from collections.abc import AsyncIterator

import openai
import pytest
from gateway_house import House

MESSAGES: list[dict[str, str]] = [{"role": "user", "content": "Tell me of Paris"}]


@pytest.fixture
async def client(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_chat(client, house):
    answer = await client.chat.completions.create(model="smol", messages=MESSAGES, seed=7, stop=["x"])
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "smol"
    assert answer.choices[0].message.content == "Paris is lovely."
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 4, 9)
    sent = house.decoder.requests[0]
    assert (sent.options.seed, list(sent.options.stop)) == (7, ["x"])
    assert not sent.options.HasField("max_tokens")


async def test_chat_stream(client):
    stream = await client.chat.completions.create(
        model="smol", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", "")
    assert [chunk.choices[0].delta.content for chunk in chunks[1:5]] == ["Paris", " is", " lovely", "."]
    assert chunks[5].choices[0].finish_reason == "stop"
    assert chunks[6].choices == []
    assert chunks[6].usage.completion_tokens == 4
    assert chunks[6].timings["decode_ms"] == 8
    assert len(chunks) == 7
    assert all(chunk.usage is None for chunk in chunks[:6])


async def test_chat_finishes_by_length(client):
    answer = await client.chat.completions.create(model="smol", messages=MESSAGES, max_completion_tokens=2)
    assert answer.choices[0].message.content == "Paris is"
    assert answer.choices[0].finish_reason == "length"


async def test_completion_takes_every_kind_of_prompt(client, house):
    answer = await client.completions.create(model="smol", prompt="Paris")
    assert answer.object == "text_completion"
    assert (answer.choices[0].text, answer.choices[0].index) == ("Paris is lovely.", 0)
    assert house.decoder.requests[-1].options.max_tokens == 16
    for prompt, count in [(["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2, 3]], 2)]:
        answer = await client.completions.create(model="smol", prompt=prompt, max_tokens=1)
        assert [(choice.index, choice.text) for choice in answer.choices] == [(i, "Paris") for i in range(count)]
        assert answer.usage.prompt_tokens == 5 * count
    # Side by side, so that either may be the first to arrive.
    assert sorted(list(request.token_ids.ids) for request in house.decoder.requests[-2:]) == [[1], [2, 3]]


async def test_completion_stream_of_several_prompts(client):
    stream = await client.completions.create(
        model="smol", prompt=["a", "b"], stream=True, stream_options={"include_usage": True}
    )
    texts = {0: "", 1: ""}
    finished = []
    chunks = [chunk async for chunk in stream]
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        if choice.finish_reason:
            finished.append(choice.index)
    assert texts == {0: "Paris is lovely.", 1: "Paris is lovely."}
    assert sorted(finished) == [0, 1]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 18


async def test_embeddings_base64_by_default(client):
    answer = await client.embeddings.create(model="acme/minilm", input=["abc", "de"])
    assert [each.index for each in answer.data] == [0, 1]
    assert answer.data[0].embedding == pytest.approx([0.5, -0.25, 0.1, 3])
    assert answer.usage.prompt_tokens == 6
    raw = await client.embeddings.with_raw_response.create(model="acme/minilm", input="abc", encoding_format="base64")
    packed = raw.http_response.json()["data"][0]["embedding"]
    assert struct.unpack("<4f", base64.b64decode(packed)) == pytest.approx((0.5, -0.25, 0.1, 3))


async def test_embeddings_float_tokens_and_dimensions(client, house):
    answer = await client.embeddings.create(input=[1, 2, 3], model="acme/minilm", encoding_format="float", dimensions=2)
    assert answer.data[0].embedding == pytest.approx([0.5, -0.25])
    assert list(house.encoder.requests[-1].input[0].tokens.ids) == [1, 2, 3]
    await client.embeddings.create(input=[[1], [2]], model="acme/minilm")
    assert len(house.encoder.requests[-1].input) == 2


async def test_models(client):
    models = {model.id: model async for model in client.models.list()}
    assert set(models) == {"acme/minilm", "smol"}
    assert models["acme/minilm"].labels == ["negative", "positive"]
    smol = await client.models.retrieve("smol")
    assert smol.state == "ready"
    assert smol.generation_defaults["temperature"] == 0.2


async def test_errors_reach_the_client_as_its_own(client):
    with pytest.raises(openai.NotFoundError) as error:
        await client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert (error.value.code, error.value.param, error.value.type) == ("model_not_found", "model", "not_found_error")
    with pytest.raises(openai.BadRequestError) as error:
        await client.chat.completions.create(model="smol", messages=MESSAGES, n=2)
    assert error.value.param == "n"
