"""Mask filling over the worker's gRPC: candidates equal the reference pipeline's, in float32 to 1e-5."""

import asyncio
from pathlib import Path

import grpc
import numpy
import pytest
import real_tokenizers
import small_models
from encoder_house import worker
from nasty_texts import NASTY_TEXTS
from real_tokenizers import SENTENCES, Made
from transformers import pipeline

from janus.v1 import encoder_pb2, encoder_pb2_grpc
from services.common.rpc_status import from_rpc_error

# {} is the family's mask. Some have several, some have special tokens of their own, the last is cut.
TEXTS = [
    "{}",
    "{} is a city.",
    "  Paris   is the  {}",
    "The cat sat on the {}, the dog!",
    "un{}able",
    "({})...",
    "{} and {} live in New York.",
    "{}{}{}",
    "{}, {}; {}.",
    "안녕하세요 {} 서울에 😀",
    "שלום {} مرحبا",
    "日本語 {} 👨‍👩‍👧‍👦 zzzqx",
    "tab\t{}\nnewline \u00a0{}\u3000 {}",
    *(f"{text} {{}}" for text in NASTY_TEXTS if text and len(text) < 100 and "[PAD]" not in text and "{" not in text),
    "{} " + "Merkel in Berlin " * 200 + "{}",
]


def request(inputs: list[str], top_k: int | None = None, targets: list[str] | None = None, **more: object) -> object:
    parameters = encoder_pb2.FillMaskParameters(top_k=top_k, targets=targets)
    return encoder_pb2.FillMaskRequest(inputs=inputs, parameters=parameters, **more)


def expected(made: Made, texts: list[str], **parameters: object) -> list[list[list[dict[str, object]]]]:
    """Candidates of each mask of each text: the pipeline leaves out the list of a single mask."""
    reference = pipeline("fill-mask", model=made.model, tokenizer=made.tokenizer)
    cut = {"truncation": True}
    answers = [reference(text, tokenizer_kwargs=cut, **parameters) for text in texts]
    return [[answer] if isinstance(answer[0], dict) else answer for answer in answers]


def assert_equal(told: encoder_pb2.FilledText, wanted: list[list[dict[str, object]]]) -> None:
    for mask, others in zip(told.masks, wanted, strict=True):
        for one, other in zip(mask.candidates, others, strict=True):
            assert (one.token, one.token_str, one.sequence) == (other["token"], other["token_str"], other["sequence"])
            assert one.score == pytest.approx(other["score"], abs=1e-5)


def assert_alike(one: encoder_pb2.FilledText, other: encoder_pb2.FilledText) -> None:
    for mask, twin in zip(one.masks, other.masks, strict=True):
        for candidate, same in zip(mask.candidates, twin.candidates, strict=True):
            assert candidate.score == pytest.approx(same.score, abs=1e-6)
            same.score = candidate.score
            assert candidate == same


@pytest.mark.parametrize("family", real_tokenizers.FAMILIES)
async def test_candidates_equal_the_pipelines(family: str, tmp_path: Path) -> None:
    made = real_tokenizers.make(family, "MaskedLM", tmp_path)
    texts = [text.replace("{}", made.kind.mask) for text in TEXTS]
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        for top_k in (None, 1, 12):
            told = await stub.FillMask(request(texts, top_k, truncate=True))
            wanted = expected(made, texts, **({} if top_k is None else {"top_k": top_k}))
            for one, other in zip(told.results, wanted, strict=True):
                assert_equal(one, other)
        for text, one in zip(texts, told.results, strict=True):
            alone = await stub.FillMask(request([text], top_k, truncate=True))
            assert_alike(alone.results[0], one)
    assert told.usage.truncated
    assert [len(mask.candidates) for mask in told.results[7].masks] == [12, 12, 12]


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
async def test_targets_equal_the_pipelines(family: str, tmp_path: Path) -> None:
    """Words of the vocabulary, words that it cuts (their first part counts), the same word twice, fewer than top_k."""
    made = real_tokenizers.make(family, "MaskedLM", tmp_path)
    mask = made.kind.mask
    texts = [f"The {mask} sat.", f"{mask} and {mask}"]
    some = made.tokenizer.convert_ids_to_tokens([20, 30, 40, 50, 60])
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        for targets in (["in"], some, ["unbelievably", "Hamburg", "in", "in"], [mask, made.kind.unknown], [" in", "e"]):
            for top_k in (None, 2, 100):
                told = await stub.FillMask(request(texts, top_k, targets))
                wanted = expected(made, texts, targets=targets, **({} if top_k is None else {"top_k": top_k}))
                for one, other in zip(told.results, wanted, strict=True):
                    assert_equal(one, other)


async def test_padding_is_in_no_sequence(tmp_path: Path) -> None:
    """Neither a text's own nor a candidate, though other special tokens are where masks are several."""
    made = real_tokenizers.make("bert", "MaskedLM", tmp_path)
    texts = ["[CLS] masked [MASK] [SEP] [PAD] a", "a [PAD] [MASK] [SEP] [MASK]"]
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        told = await stub.FillMask(request(texts, targets=["[PAD]", "[SEP]", "in"]))
    wanted = expected(made, texts, targets=["[PAD]", "[SEP]", "in"])
    for one, other in zip(told.results, wanted, strict=True):
        assert_equal(one, other)
    padded = [each.sequence for each in told.results[1].masks[0].candidates if each.token_str == "[PAD]"]
    assert padded == ["[CLS] a [SEP] [MASK] [SEP]"]


async def test_the_whole_vocabulary(tmp_path: Path) -> None:
    """A top_k beyond it is all of it: every word once, best first, and the scores are a whole."""
    made = real_tokenizers.make("xlm-roberta", "MaskedLM", tmp_path)
    async with worker(models=str(tmp_path)) as channel:
        told = await encoder_pb2_grpc.EncoderServiceStub(channel).FillMask(request(["<mask>"], top_k=2**31 - 1))
    [mask] = told.results[0].masks
    scores = [candidate.score for candidate in mask.candidates]
    assert sorted(candidate.token for candidate in mask.candidates) == list(range(made.model.config.vocab_size))
    assert scores == sorted(scores, reverse=True)
    assert numpy.sum(scores) == pytest.approx(1, abs=1e-5)


async def test_a_batch_of_mixed_tasks_changes_nothing(tmp_path: Path) -> None:
    real_tokenizers.make("bert", "MaskedLM", tmp_path / "words")
    async with worker(models=str(tmp_path / "words")) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        vectors = encoder_pb2.EmbedTextRequest(input=[encoder_pb2.EmbedTextInput(text=text) for text in SENTENCES * 9])
        requests = [request([text.replace("{}", "[MASK]")]) for text in TEXTS[:-1]]
        alone = [await stub.FillMask(each) for each in requests]
        _, *together = await asyncio.gather(stub.EmbedText(vectors), *(stub.FillMask(each) for each in requests))
    for one, other in zip(together, alone, strict=True):
        assert_alike(one.results[0], other.results[0])


async def test_refusals_name_the_field(tmp_path: Path) -> None:
    real_tokenizers.make("roberta", "MaskedLM", tmp_path)
    masked = "<mask>"
    late = "word " * 200 + masked
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        for refused, code, param, message in (
            (request([]), "invalid_request", "inputs", "'inputs' needs at least one text."),
            (request([masked, ""]), "invalid_request", "inputs", "'inputs[1]' is an empty text."),
            (
                request([masked, "A [MASK]."]),
                "invalid_request",
                "inputs",
                "'inputs[1]' has no mask: <mask> stands for the word to find.",
            ),
            (request([masked, late]), "context_length_exceeded", "inputs", None),
            (
                request([masked, late], truncate=True),
                "invalid_request",
                "inputs",
                "'inputs[1]' has no mask left where it was cut: <mask> stands for the word to find.",
            ),
            (
                request(["none at all", late], truncate=True),
                "invalid_request",
                "inputs",
                "'inputs[0]' has no mask: <mask> stands for the word to find.",
            ),
            *(
                (
                    request([masked], top_k=top_k),
                    "invalid_request",
                    "parameters.top_k",
                    "'parameters.top_k' must be at least 1.",
                )
                for top_k in (0, -1)
            ),
            (
                request([masked * 100], top_k=400),
                "invalid_request",
                "parameters.top_k",
                "'parameters.top_k' asks for texts of 4080000 tokens in all, an answer has 262144.",
            ),
            (
                request([masked], targets=["in", ""]),
                "invalid_request",
                "parameters.targets",
                "'parameters.targets[1]' is an empty text.",
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.FillMask(refused)
            error = from_rpc_error(caught.value)
            assert (error.code, error.param) == (code, param)
            assert message in (None, error.message)


async def test_a_vocabulary_without_a_mask(tmp_path: Path) -> None:
    small_models.save(small_models.bert("BertForMaskedLM"), tmp_path)
    async with worker(models=str(tmp_path)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await encoder_pb2_grpc.EncoderServiceStub(channel).FillMask(request(["w1 [MASK]"]))
    assert from_rpc_error(caught.value).code == "task_not_supported"


async def test_a_target_that_nobody_knows(tmp_path: Path) -> None:
    """The pipeline would score the unknown token in its place."""
    real_tokenizers.make("bert", "MaskedLM", tmp_path)
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        for target in ("\U0001f9ff", "\u200b", "   "):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.FillMask(request(["[MASK]"], targets=["in", target]))
            error = from_rpc_error(caught.value)
            assert (error.code, error.param) == ("invalid_request", "parameters.targets")
            assert error.message == "'parameters.targets[1]' is no word of the vocabulary."
        told = await stub.FillMask(request(["[MASK]"], targets=["[UNK]"]))
    assert told.results[0].masks[0].candidates[0].token == 100
