"""The tokenizer service of the decoder worker, with the default model: what it says is what the model reads."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import small_models
from nasty_texts import NASTY_NUMBERS, NASTY_TEXTS

from janus.v1 import decoder_pb2, decoder_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc
from services.common.errors import JanusError
from services.common.grpc_server import CHANNEL_OPTIONS, MAX_MESSAGE_BYTES, start_server
from services.common.metrics import DecoderMetrics
from services.common.rpc_status import from_rpc_error
from services.common.settings import SMOLLM2, DecoderSettings
from services.common.tokenization import MAX_TEXT_BYTES
from services.decoder.server import services_behind
from services.decoder.servicer import WorkerDoor
from services.decoder.worker import DecoderWorker

SAID = [("system", "Be brief."), ("user", "안녕 😀"), ("assistant", "  Hi.  "), ("developer", "x"), ("user", "<b>")]


@dataclass(frozen=True)
class House:
    """A served worker and its stubs."""

    door: WorkerDoor
    decoder: "decoder_pb2_grpc.DecoderServiceAsyncStub"
    tokenizer: "tokenizer_pb2_grpc.TokenizerServiceAsyncStub"

    async def tokenize(self, prompt: str, **fields: object) -> tokenizer_pb2.TokenizeTextResponse:
        return await self.tokenizer.TokenizeText(tokenizer_pb2.TokenizeTextRequest(prompt=prompt, **fields))

    async def tokenize_chat(self, said: list[tuple[str, str]], **fields: object) -> tokenizer_pb2.TokenizeTextResponse:
        messages = tokenizer_pb2.ChatMessages(messages=chat_messages(said))
        return await self.tokenizer.TokenizeText(tokenizer_pb2.TokenizeTextRequest(messages=messages, **fields))

    async def detokenize(self, tokens: list[int], model: str = "") -> str:
        request = tokenizer_pb2.DetokenizeTokensRequest(model=model, tokens=tokens)
        return (await self.tokenizer.DetokenizeTokens(request)).prompt


def chat_messages(said: list[tuple[str, str]]) -> list[decoder_pb2.ChatMessage]:
    return [decoder_pb2.ChatMessage(role=role, content=content) for role, content in said]


async def refusal(call: object) -> JanusError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call  # type: ignore[misc]
    return from_rpc_error(refused.value)


async def serve(worker: DecoderWorker) -> AsyncIterator[House]:
    door, metrics = WorkerDoor(), DecoderMetrics()
    door.worker = worker
    server = await start_server(services_behind(door, metrics), host="127.0.0.1", port=0, setting="X", metrics=metrics)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", list(CHANNEL_OPTIONS)) as channel:
        yield House(
            door, decoder_pb2_grpc.DecoderServiceStub(channel), tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        )
    await server.drain(0)


@pytest.fixture(scope="module")
def smollm2() -> Iterator[DecoderWorker]:
    settings = DecoderSettings(device="cpu", num_cache_tokens=512)
    assert settings.model.is_relative_to(settings.weights_dir)
    assert settings.model.match(str(SMOLLM2))
    worker = DecoderWorker.load(settings, DecoderMetrics())
    yield worker
    worker.engine.stop()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecoderWorker]:
    """Without a chat template."""
    folder: Path = small_models.save(small_models.llama(), tmp_path_factory.mktemp("llama"))
    worker = DecoderWorker.load(DecoderSettings(model=folder, device="cpu"), DecoderMetrics())
    yield worker
    worker.engine.stop()


@pytest.fixture
async def house(smollm2: DecoderWorker) -> AsyncIterator[House]:
    async for house in serve(smollm2):
        yield house


async def test_every_text_comes_back(house: House) -> None:
    for text in [*NASTY_TEXTS, *NASTY_NUMBERS]:
        there = await house.tokenize(text)
        assert await house.detokenize(list(there.tokens)) == text


async def test_an_answer(house: House) -> None:
    answer = await house.tokenize("Hello, 안녕 😀", return_token_strs=True)
    assert answer.model == "SmolLM2-135M-Instruct"
    assert answer.count == len(answer.tokens) == len(answer.token_strs) == len(answer.offsets)
    assert answer.max_model_len == 512
    assert list(answer.token_strs)[:2] == ["Hello", ","]
    silent = await house.tokenize("Hello")
    assert (list(silent.tokens), list(silent.token_strs)) == ([answer.tokens[0]], [])


async def test_offsets_are_characters_and_leave_none_out(house: House) -> None:
    for text in NASTY_TEXTS:
        answer = await house.tokenize(text)
        reached = 0
        for offset in answer.offsets:
            assert offset.start <= reached
            assert offset.start < offset.end
            reached = max(reached, offset.end)
        assert reached == len(text)


async def test_special_tokens_are_read_and_shown(house: House) -> None:
    text = "<|im_start|>user\nhi<|im_end|>"
    answer = await house.tokenize(text, return_token_strs=True)
    assert [answer.token_strs[0], answer.token_strs[-1]] == ["<|im_start|>", "<|im_end|>"]
    assert await house.detokenize(list(answer.tokens)) == text


async def test_a_conversation_is_laid_out_as_chat_does(house: House) -> None:
    answer = await house.tokenize_chat(SAID)
    request = decoder_pb2.ChatRequest(
        messages=chat_messages(SAID),
        options=decoder_pb2.GenerationOptions(max_tokens=1, return_prompt_token_ids=True),
    )
    events = [response.event async for response in house.decoder.Chat(request)]
    assert list(answer.tokens) == list(events[0].started.prompt_token_ids)
    assert not answer.offsets
    said = await house.tokenize_chat(SAID, add_generation_prompt=False)
    opening = await house.detokenize(list(answer.tokens)[said.count :])
    assert list(answer.tokens)[: said.count] == list(said.tokens)
    assert opening == "<|im_start|>assistant\n"


async def test_nothing_is_no_token_and_back(house: House) -> None:
    assert (await house.tokenize("")).count == 0
    assert await house.detokenize([]) == ""


async def test_a_text_longer_than_the_context_is_counted(house: House) -> None:
    assert (await house.tokenize("hello " * 5000)).count > 5000


async def test_the_longest_text_has_an_answer_that_can_be_sent(house: House) -> None:
    """Characters that no merge knows are a token a byte, the most that a text can have."""
    answer = await house.tokenize("\U0010ffff" * (MAX_TEXT_BYTES // 4), return_token_strs=True)
    assert answer.count == len(answer.token_strs) == len(answer.offsets) == MAX_TEXT_BYTES
    assert answer.ByteSize() < MAX_MESSAGE_BYTES / 2


async def test_a_text_that_is_longer_is_refused_by_its_length(
    house: House, smollm2: DecoderWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*_: object, **__: object) -> None:
        raise AssertionError("it was tokenized")

    monkeypatch.setattr(type(smollm2.runner.tokenizer), "encode", encode)
    half = "é" * (MAX_TEXT_BYTES // 4)
    for call, param in (
        (house.tokenize("a" * (MAX_TEXT_BYTES + 1)), "prompt"),
        (house.tokenize(half + half + "a"), "prompt"),
        (house.tokenize_chat([("user", half), ("user", half)]), "messages"),
        (house.tokenize_chat([("user", "")] * (MAX_TEXT_BYTES // 16)), "messages"),
    ):
        error = await refusal(call)
        assert (error.code, error.param) == ("invalid_request", param)
        assert str(MAX_TEXT_BYTES) in error.message


@pytest.mark.parametrize("tokens", [[-1], [0, 49_152], [2**31 - 1]])
async def test_what_is_no_token(house: House, tokens: list[int]) -> None:
    error = await refusal(house.detokenize(tokens))
    assert (error.code, error.param) == ("invalid_request", "tokens")
    assert "49151" in error.message
    assert await house.detokenize([49_151]) != ""


async def test_refusals(house: House) -> None:
    for call in (house.tokenize("a", model="other"), house.detokenize([1], model="other")):
        error = await refusal(call)
        assert (error.code, error.param) == ("model_not_found", "model")
    for call, param in (
        (house.tokenizer.TokenizeText(tokenizer_pb2.TokenizeTextRequest()), "prompt"),
        (house.tokenize_chat([]), "messages"),
        (house.tokenize_chat([("robot", "a")]), "messages[0].role"),
    ):
        error = await refusal(call)
        assert (error.code, error.param) == ("invalid_request", param)


async def test_a_model_without_a_template_takes_no_conversation(plain: DecoderWorker) -> None:
    async for house in serve(plain):
        error = await refusal(house.tokenize_chat(SAID))
        assert (error.code, error.param) == ("task_not_supported", "model")
        assert list((await house.tokenize("w5 w9")).tokens) == [5, 9]


async def test_before_and_after_it_serves(house: House) -> None:
    worker, house.door.worker = house.door.worker, None
    assert (await refusal(house.tokenize("a"))).code == "model_loading"
    house.door.worker = worker
    house.door.is_draining = True
    assert (await refusal(house.detokenize([1]))).code == "draining"
