"""Text classification over gRPC equals transformers' pipeline to 1e-5 in float32, whatever the text."""

from pathlib import Path
from typing import Any

import grpc
import pytest
import real_tokenizers
from encoder_house import worker
from nasty_texts import NASTY_NUMBERS, NASTY_TEXTS
from transformers import pipeline

from janus.v1 import encoder_pb2, encoder_pb2_grpc
from services.common.rpc_status import from_rpc_error

TEXTS = [text for text in NASTY_TEXTS + NASTY_NUMBERS if text] + real_tokenizers.SENTENCES
FEW = ["The cat sat on the mat.", "  ", "안녕하세요 😀", "[MASK] [SEP] <s> </s> <mask>"]
FUNCTIONS = {
    "none": encoder_pb2.FUNCTION_TO_APPLY_NONE,
    "sigmoid": encoder_pb2.FUNCTION_TO_APPLY_SIGMOID,
    "softmax": encoder_pb2.FUNCTION_TO_APPLY_SOFTMAX,
}


def checkpoint(folder: Path, family: str = "bert", **changes: object) -> Any:
    """A random classifier, and the reference that reads it."""
    made = real_tokenizers.make(family, "SequenceClassification", folder, **{"num_labels": 3, **changes})
    return pipeline("text-classification", model=made.model, tokenizer=made.tokenizer)


async def classify(folder: Path, texts: list[str], *parameters: dict[str, object]) -> list[Any]:
    """Label and score in order, for each text under each of the parameters."""
    async with worker(models=str(folder)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        answers = []
        for given in parameters:
            chosen = encoder_pb2.ClassifyTextParameters(**given)
            request = encoder_pb2.ClassifyTextRequest(inputs=texts, parameters=chosen, truncate=True)
            answers.append(await stub.ClassifyText(request))
    return [[[(x.label, x.score) for x in one.labels] for one in answer.results] for answer in answers]


def wanted(reference: Any, texts: list[str], **options: object) -> list[list[tuple[str, Any]]]:
    """Scores without a function are as large as they like: to 1e-5 of the largest."""
    answers = reference(texts, batch_size=1, truncation=True, **{"top_k": None, **options})
    return [
        [(x["label"], pytest.approx(x["score"], abs=1e-5 * max(1.0, *(abs(x["score"]) for x in one)))) for x in one]
        for one in answers
    ]


@pytest.mark.parametrize("family", real_tokenizers.FAMILIES)
async def test_families(family: str, tmp_path: Path) -> None:
    reference = checkpoint(tmp_path, family)
    assert await classify(tmp_path, TEXTS, {}) == [wanted(reference, TEXTS)]


KINDS = {
    "single": {"num_labels": 4},
    "named": {"id2label": {0: "sad", 1: "so-so", 2: "glad"}, "label2id": {"sad": 0, "so-so": 1, "glad": 2}},
    "multi": {"problem_type": "multi_label_classification"},
    "one": {"num_labels": 1},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "regressions": {"num_labels": 2, "problem_type": "regression"},
}


@pytest.mark.parametrize("kind", KINDS)
async def test_what_the_scores_are(kind: str, tmp_path: Path) -> None:
    """As the checkpoint's problem_type and number of labels say, or as the request does."""
    reference = checkpoint(tmp_path, **KINDS[kind])
    [plain, *chosen] = await classify(tmp_path, FEW, {}, *({"function_to_apply": one} for one in FUNCTIONS.values()))
    assert plain == wanted(reference, FEW)
    assert chosen == [wanted(reference, FEW, function_to_apply=name) for name in FUNCTIONS]


async def test_the_best(tmp_path: Path) -> None:
    reference = checkpoint(tmp_path)
    counts = (1, 2, 3, 9)
    told = await classify(tmp_path, FEW, *({"top_k": count} for count in counts))
    assert told == [wanted(reference, FEW, top_k=count) for count in counts]


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
async def test_texts_of_every_length(family: str, tmp_path: Path) -> None:
    """Up to the last position whole, from there on refused, or cut where the reference cuts."""
    reference = checkpoint(tmp_path, family)
    fits = next(n for n in range(128, 0, -1) if len(reference.tokenizer("city " * n)["input_ids"]) <= 128)
    texts = ["city " * n for n in (1, fits - 1, fits, fits + 1, 3 * fits)]
    assert await classify(tmp_path, texts, {}) == [wanted(reference, texts)]
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        whole = await stub.ClassifyText(encoder_pb2.ClassifyTextRequest(inputs=texts[:3]))
        assert not whole.usage.truncated
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ClassifyText(encoder_pb2.ClassifyTextRequest(inputs=texts[:4]))
    error = from_rpc_error(refused.value)
    count = len(reference.tokenizer(texts[3])["input_ids"])
    assert (error.code, error.param) == ("context_length_exceeded", "inputs")
    assert f"'inputs[3]' has {count} tokens, the model takes 128" in error.message


async def test_an_empty_text_is_refused(tmp_path: Path) -> None:
    """The reference has an answer for it, which says nothing of a text; blanks are a text."""
    checkpoint(tmp_path)
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ClassifyText(encoder_pb2.ClassifyTextRequest(inputs=["fine", ""]))
    error = from_rpc_error(refused.value)
    assert (error.code, error.param) == ("invalid_request", "inputs")
    assert "'inputs[1]' is an empty text" in error.message
