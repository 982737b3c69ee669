"""The tokenizer service of the encoder worker, with all-MiniLM-L6-v2: equal to the reference's tokenizer."""

from collections.abc import AsyncIterator

import grpc
import pytest
from encoder_house import MINILM, worker
from nasty_texts import NASTY_NUMBERS, NASTY_TEXTS
from transformers import PreTrainedTokenizerFast

from janus.v1 import decoder_pb2, tokenizer_pb2, tokenizer_pb2_grpc
from services.common.errors import JanusError
from services.common.rpc_status import from_rpc_error
from services.common.tokenization import MAX_TEXT_BYTES


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(MINILM / "tokenizer.json"))


class House:
    """A served worker and its stub."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.tokenizer = tokenizer_pb2_grpc.TokenizerServiceStub(channel)

    async def tokenize(self, **fields: object) -> tokenizer_pb2.TokenizeTextResponse:
        return await self.tokenizer.TokenizeText(tokenizer_pb2.TokenizeTextRequest(**fields))

    async def detokenize(self, tokens: list[int], model: str = "") -> tokenizer_pb2.DetokenizeTokensResponse:
        return await self.tokenizer.DetokenizeTokens(tokenizer_pb2.DetokenizeTokensRequest(model=model, tokens=tokens))


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with worker() as channel:
        yield House(channel)


async def refusal(call: object) -> JanusError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call  # type: ignore[misc]
    return from_rpc_error(refused.value)


async def test_it_equals_the_reference_both_ways(house: House, reference: PreTrainedTokenizerFast) -> None:
    for text in [*NASTY_TEXTS, *NASTY_NUMBERS]:
        for add_special_tokens in (True, False):
            expected = reference(
                text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, truncation=False
            )
            answer = await house.tokenize(prompt=text, add_special_tokens=add_special_tokens, return_token_strs=True)
            assert list(answer.tokens) == expected["input_ids"]
            assert [(each.start, each.end) for each in answer.offsets] == expected["offset_mapping"]
            assert list(answer.token_strs) == reference.convert_ids_to_tokens(expected["input_ids"])
            back = await house.detokenize(list(answer.tokens))
            assert back.prompt == reference.decode(expected["input_ids"])


async def test_an_answer(house: House) -> None:
    answer = await house.tokenize(prompt="Hello, world!")
    assert (answer.model, answer.count, answer.max_model_len) == ("all-MiniLM-L6-v2", 6, 512)
    assert [answer.tokens[0], answer.tokens[-1]] == [101, 102]
    assert not answer.token_strs
    assert (await house.detokenize(list(answer.tokens))).prompt == "[CLS] hello, world! [SEP]"
    adapter = await house.tokenize(prompt="Hello, world!", model="sentiment")
    assert (adapter.model, list(adapter.tokens)) == ("sentiment", list(answer.tokens))


async def test_nothing_and_too_much(house: House) -> None:
    assert (await house.tokenize(prompt="", add_special_tokens=False)).count == 0
    assert (await house.tokenize(prompt="")).count == 2
    assert (await house.tokenize(prompt="hello " * 2000)).count == 2002
    assert (await house.detokenize([])).prompt == ""


async def test_refusals(house: House) -> None:
    messages = tokenizer_pb2.ChatMessages(messages=[decoder_pb2.ChatMessage(role="user", content="a")])
    for call, code, param in (
        (house.tokenize(prompt="a", model="nobody"), "model_not_found", "model"),
        (house.detokenize([1], model="nobody"), "model_not_found", "model"),
        (house.tokenize(), "invalid_request", "prompt"),
        (house.tokenize(messages=messages), "task_not_supported", "model"),
        (house.tokenize(prompt="a" * (MAX_TEXT_BYTES + 1)), "invalid_request", "prompt"),
        (house.detokenize([30_522]), "invalid_request", "tokens"),
        (house.detokenize([-1]), "invalid_request", "tokens"),
    ):
        error = await refusal(call)
        assert (error.code, error.param) == (code, param)
