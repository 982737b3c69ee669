"""Zero-shot classification over gRPC equals transformers' zero-shot-classification pipeline to 1e-5 in float32."""

import json
import time
from pathlib import Path
from typing import Any

import grpc
import numpy
import pytest
import real_tokenizers
from encoder_house import worker
from nasty_texts import NASTY_NUMBERS, NASTY_TEXTS
from transformers import pipeline

from janus.v1 import encoder_pb2, encoder_pb2_grpc, models_pb2, models_pb2_grpc
from services.common.errors import InvalidRequest
from services.common.rpc_status import from_rpc_error
from services.encoder.tasks.labels import Labels
from services.encoder.tasks.task import Head
from services.encoder.tasks.zero_shot import ClassifyZeroShot

TEXTS = [text for text in NASTY_TEXTS + NASTY_NUMBERS if text] + real_tokenizers.SENTENCES
FEW = ["The cat sat on the mat.", "New York is a city", "안녕하세요"]
LABELS = ["animals", "a city", "greeting", "politics and the law"]
NLI = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}


def checkpoint(folder: Path, family: str = "bert", names: tuple[str, ...] = tuple(NLI["id2label"].values())) -> Any:
    """A random model whose labels have these names, and the reference that reads it."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    made = real_tokenizers.make(family, "SequenceClassification", folder, num_labels=len(names), **labels)
    return pipeline("zero-shot-classification", model=made.model, tokenizer=made.tokenizer)


def request(inputs: list[str], labels: list[str], **parameters: object) -> encoder_pb2.ClassifyZeroShotRequest:
    chosen = encoder_pb2.ClassifyZeroShotParameters(candidate_labels=labels, **parameters)
    return encoder_pb2.ClassifyZeroShotRequest(inputs=inputs, parameters=chosen, truncate=True)


async def classify(folder: Path, *requests: encoder_pb2.ClassifyZeroShotRequest) -> list[Any]:
    """The results of each, label and score in order."""
    async with worker(models=str(folder)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        answers = [await stub.ClassifyZeroShot(one) for one in requests]
    return [[[(x.label, x.score) for x in one.labels] for one in answer.results] for answer in answers]


def wanted(reference: Any, texts: list[str], labels: list[str], **options: object) -> list[Any]:
    answers = reference(texts, candidate_labels=labels, **options)
    return [
        [(label, pytest.approx(score, abs=1e-5)) for label, score in zip(one["labels"], one["scores"], strict=True)]
        for one in answers
    ]


@pytest.mark.parametrize("family", real_tokenizers.FAMILIES)
async def test_families(family: str, tmp_path: Path) -> None:
    """On texts that tokenizers get wrong, those that are too long cut and their hypothesis whole."""
    reference = checkpoint(tmp_path, family)
    [one, each] = await classify(tmp_path, request(TEXTS, LABELS), request(TEXTS, LABELS, multi_label=True))
    assert one == wanted(reference, TEXTS, LABELS)
    assert each == wanted(reference, TEXTS, LABELS, multi_label=True)


@pytest.mark.parametrize(
    "names",
    [
        ("entailment", "neutral", "contradiction"),
        ("contradiction", "neutral", "entailment"),
        ("CONTRADICTION", "Entailment"),
        ("entailment", "not_entailment"),
        ("not_entailment", "entails"),
        ("neutral", "ENTAILED", "contradiction"),
    ],
)
async def test_wherever_the_model_says_entailment(names: tuple[str, ...], tmp_path: Path) -> None:
    """And contradiction is the other end."""
    reference = checkpoint(tmp_path, names=names)
    requests = (
        request(FEW, LABELS),
        request(FEW, LABELS, multi_label=True),
        request(FEW, LABELS[:1]),
        request(FEW, LABELS[:1], multi_label=True),
    )
    assert await classify(tmp_path, *requests) == [
        wanted(reference, FEW, LABELS),
        wanted(reference, FEW, LABELS, multi_label=True),
        wanted(reference, FEW, LABELS[:1]),
        wanted(reference, FEW, LABELS[:1], multi_label=True),
    ]


@pytest.mark.parametrize(
    "numbers",
    [
        {"entail more": 2, "entail": 1, "other": 0},
        {"other": 0, "entail": 1, "entail more": 2},
    ],
)
async def test_the_first_in_the_order_of_label2id(numbers: dict[str, int], tmp_path: Path) -> None:
    tokenizer = checkpoint(tmp_path, names=("other", "entail", "entail more")).tokenizer
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "label2id": numbers}))
    reference = pipeline("zero-shot-classification", model=str(tmp_path), tokenizer=tokenizer)
    assert await classify(tmp_path, request(FEW, LABELS)) == [wanted(reference, FEW, LABELS)]


@pytest.mark.parametrize(
    ("numbers", "entailment"),
    [
        (None, 1),
        ({}, 1),
        ({"b": 0, "a": 1}, 1),
        ({"entailing": 0, "entail": 1}, 0),
        ({"entailing": 2}, 1),
        ({"entailing": "0"}, 1),
        (["entailing"], 1),
    ],
)
def test_entailment_of_files_that_nobody_checked(numbers: object, entailment: int) -> None:
    """A number that is none of the labels' isn't believed."""
    config = {"id2label": {"0": "other", "1": "entail"}, "label2id": numbers}
    assert Labels.of_checkpoint(config, 2).entailment == entailment


@pytest.mark.parametrize(
    "template", ["This example is {}.", "{}", "It is about {}, isn't it?", "Il s'agit de « {} »", "{} and nothing more"]
)
async def test_templates(template: str, tmp_path: Path) -> None:
    """A label goes in as it is, whatever braces it has."""
    reference = checkpoint(tmp_path)
    labels = [*LABELS, "{}", "{0}", "{label.__class__}", "a { b", "} {"]
    told = await classify(tmp_path, request(FEW, labels, hypothesis_template=template))
    assert told == [wanted(reference, FEW, labels, hypothesis_template=template)]


async def test_equal_scores_come_in_the_references_order(tmp_path: Path) -> None:
    """The last of them first; these labels are one to a tokenizer that reads lower case."""
    reference = checkpoint(tmp_path)
    labels = ["Cat", "city", "cat", "CAT"]
    [told] = await classify(tmp_path, request(FEW, labels))
    assert told == wanted(reference, FEW, labels)
    head = Head(None, labels=Labels(("entailment", "other"), "softmax", entailment=0))
    logits = [numpy.array([x, 0.0]) for x in (1.0, 2.0, 1.0, 2.0)]
    [result] = ClassifyZeroShot().decode(request(["x"], list("abcd")), head, [logits]).results
    assert [one.label for one in result.labels] == ["d", "b", "c", "a"]


async def test_only_the_text_is_cut(tmp_path: Path) -> None:
    """Down to its last token; the hypothesis with its three special tokens has 4 tokens more than its label."""
    reference = checkpoint(tmp_path)
    for num_words in (119, 120):
        labels = ["cat " * num_words, "city"]
        told = await classify(tmp_path, request(["The mat " * 80], labels))
        assert told == [wanted(reference, ["The mat " * 80], labels)]
    too_long = {"inputs[1]": ["cat " * 121], "inputs[0]": ["cat " * 122, "cat"]}
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        for name, labels in too_long.items():
            texts = ["The mat " * 80] if name == "inputs[0]" else [" ", "The mat " * 80]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ClassifyZeroShot(request(texts, labels))
            error = from_rpc_error(refused.value)
            assert (error.code, error.param) == ("context_length_exceeded", "inputs")
            assert name in error.message


async def test_refusals(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        uncut = request(["a", "cat " * 130], LABELS)
        uncut.truncate = False
        for given, code, param in (
            (request([], LABELS), "invalid_request", "inputs"),
            (request(["a", ""], LABELS), "invalid_request", "inputs"),
            (request(["a"], []), "invalid_request", "parameters.candidate_labels"),
            (request(["a"], ["a", ""]), "invalid_request", "parameters.candidate_labels"),
            (request(["a"], LABELS, hypothesis_template="none"), "invalid_request", "parameters.hypothesis_template"),
            (request(["a"], LABELS, hypothesis_template=""), "invalid_request", "parameters.hypothesis_template"),
            (request(["a"], LABELS, hypothesis_template="{} {}"), "invalid_request", "parameters.hypothesis_template"),
            (uncut, "context_length_exceeded", "inputs"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ClassifyZeroShot(given)
            error = from_rpc_error(refused.value)
            assert (error.code, error.param) == (code, param)
        assert "'inputs[1]' has " in error.message


async def test_pairs_are_counted_before_any_is_made() -> None:
    """Without an encoder: the refusal asks none, and 16 million pairs would take seconds."""
    head = Head(None, labels=Labels(("entailment", "other"), "softmax", entailment=0))
    for num_inputs, num_labels in ((4096, 4096), (1, 4097), (4097, 1)):
        started = time.perf_counter()
        with pytest.raises(InvalidRequest, match=f"^{num_inputs} inputs with {num_labels} labels are more") as refused:
            await ClassifyZeroShot().encode(request(["a"] * num_inputs, ["b"] * num_labels), head, None)
        assert refused.value.param == "inputs"
        assert time.perf_counter() - started < 0.1


@pytest.mark.parametrize("names", [("negative", "positive"), ("entailment",)])
async def test_models_that_judge_nothing(names: tuple[str, ...], tmp_path: Path) -> None:
    checkpoint(tmp_path, names=names)
    async with worker(models=str(tmp_path)) as channel:
        [model] = (await models_pb2_grpc.ModelServiceStub(channel).ListModels(models_pb2.ListModelsRequest())).models
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await encoder_pb2_grpc.EncoderServiceStub(channel).ClassifyZeroShot(request(FEW, LABELS))
    assert "zero-shot-classify" not in model.tasks
    assert from_rpc_error(refused.value).code == "task_not_supported"
