"""The official OpenAI client, unchanged, against the gateway."""

import base64
import math
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
        await client.chat.completions.create(model="smol", messages=MESSAGES, n=129)
    assert error.value.param == "n"


def logprob(index: int) -> float:
    """What the fake worker says of its token."""
    return (index + 1) * math.log(0.5)


async def test_choices(client):
    answer = await client.chat.completions.create(model="smol", messages=MESSAGES, n=3)
    texts = ["Paris is lovely.", "Paris is lovely", "Paris is"]
    assert [(each.index, each.message.content) for each in answer.choices] == list(enumerate(texts))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 9)
    several = await client.completions.create(model="smol", prompt=["a", "b"], n=2)
    assert [(each.index, each.text) for each in several.choices] == list(enumerate(texts[:2] * 2))


async def test_choices_in_one_stream(client):
    stream = await client.chat.completions.create(
        model="smol", messages=MESSAGES, n=3, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 9
    choices = [choice for chunk in chunks[:-1] for choice in chunk.choices]
    assert [(each.index, each.delta.role) for each in choices[:3]] == [
        (0, "assistant"),
        (1, "assistant"),
        (2, "assistant"),
    ]
    for index, text in enumerate(["Paris is lovely.", "Paris is lovely", "Paris is"]):
        mine = [each for each in choices if each.index == index]
        assert "".join(each.delta.content or "" for each in mine) == text
        assert [each.finish_reason for each in mine] == [None] * (len(mine) - 1) + ["stop"]
    stream = await client.completions.create(model="smol", prompt=["a", "b"], n=2, stream=True)
    texts = dict.fromkeys(range(4), "")
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert list(texts.values()) == ["Paris is lovely.", "Paris is lovely"] * 2


async def test_log_probabilities_of_a_chat(client):
    asked = {"model": "smol", "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    answer = await client.chat.completions.create(**asked)
    told = answer.choices[0].logprobs.content
    assert [each.token for each in told] == ["Paris", " is", " lovely", "."]
    assert [each.logprob for each in told] == pytest.approx([logprob(n) for n in range(4)])
    assert told[1].bytes == list(b" is")
    assert [(top.token, top.logprob) for top in told[1].top_logprobs] == [
        (" is", pytest.approx(logprob(1))),
        (" is1", pytest.approx(logprob(1) - 1)),
    ]
    chunks = [chunk async for chunk in await client.chat.completions.create(stream=True, **asked)]
    streamed = [each for chunk in chunks if (given := chunk.choices[0].logprobs) for each in given.content]
    assert streamed == told
    assert all(chunk.choices[0].logprobs is None or chunk.choices[0].delta.content for chunk in chunks)
    plain = await client.chat.completions.create(model="smol", messages=MESSAGES)
    assert plain.choices[0].logprobs is None
    chosen = await client.chat.completions.create(model="smol", messages=MESSAGES, logprobs=True)
    assert [each.top_logprobs for each in chosen.choices[0].logprobs.content] == [[]] * 4


async def test_log_probabilities_of_a_completion(client):
    asked = {"model": "smol", "prompt": "Paris", "logprobs": 2}
    told = (await client.completions.create(**asked)).choices[0].logprobs
    assert told.tokens == ["Paris", " is", " lovely", "."]
    assert told.token_logprobs == pytest.approx([logprob(n) for n in range(4)])
    assert told.text_offset == [0, 5, 8, 15]
    assert list(told.top_logprobs[0]) == ["Paris", "Paris1"]
    chunks = [chunk async for chunk in await client.completions.create(stream=True, **asked)]
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [offset for part in parts for offset in part.text_offset] == told.text_offset
    assert [token for part in parts for token in part.tokens] == told.tokens
    chosen = (await client.completions.create(model="smol", prompt="Paris", logprobs=0)).choices[0].logprobs
    assert chosen.top_logprobs == [{token: pytest.approx(logprob(n))} for n, token in enumerate(told.tokens)]


async def test_an_echo_begins_with_the_prompt(client, house):
    answer = await client.completions.create(model="smol", prompt=["Well: ", "So: "], echo=True, max_tokens=2, n=2)
    assert [each.text for each in answer.choices] == ["Well: Paris is", "Well: Paris", "So: Paris is", "So: Paris"]
    alone = await client.completions.create(model="smol", prompt="Well", echo=True, max_tokens=0)
    assert (alone.choices[0].text, alone.choices[0].finish_reason) == ("Well", "length")
    stream = await client.completions.create(model="smol", prompt="Well: ", echo=True, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Well: Paris is lovely."
    assert all(request.options.echo for request in house.decoder.requests)
