"""Every task of the encoder at once: one worker hosts a model for each, and the official clients ask for all of them.

Answers of the Hugging Face client equal the reference pipeline's; what a question's answer has to be is proven where
the worker is tested.
"""

from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
import real_tokenizers
from huggingface_hub import InferenceClient
from openai import OpenAI
from real_tokenizers import Made
from running_janus import Stack, start, stop
from transformers import pipeline

from janus.v1 import encoder_pb2, encoder_pb2_grpc

ENTAILMENT = {0: "contradiction", 1: "neutral", 2: "entailment"}
LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
TEXT = "Angela Merkel was born in Hamburg and lived in Berlin."
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "moods": ("roberta", "SequenceClassification", {"num_labels": 3}),
    "nli": ("deberta-v2", "SequenceClassification", {"id2label": ENTAILMENT, "label2id": {"entailment": 2}}),
    "ranks": ("bert", "SequenceClassification", {"num_labels": 1}),
    "names": ("electra", "TokenClassification", {"id2label": LABELS}),
    "masks": ("distilbert", "MaskedLM", {}),
    "reader": ("mpnet", "QuestionAnswering", {}),
    "vectors": ("modernbert", "", {}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: real_tokenizers.make(family, task, folder / name, **changes)
        for name, (family, task, changes) in MODELS.items()
    }


@pytest.fixture(scope="module")
def house(made: dict[str, Made], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    models = ",".join(["all-MiniLM-L6-v2", *(f"acme/{name}={each.folder}" for name, each in made.items())])
    running = start(tmp_path_factory.mktemp("janus"), ENCODER_MODELS=models, ENCODER_DTYPE="float32")
    try:
        running.wait_ready()
        yield running
    finally:
        stop(running)


def client(house: Stack, name: str) -> InferenceClient:
    return InferenceClient(model=f"{house.url}/models/{name}", token="none")


def reference(made: dict[str, Made], name: str, task: str) -> Any:
    return pipeline(task, model=made[name].model, tokenizer=made[name].tokenizer)


def test_text_classification(house: Stack, made: dict[str, Made]) -> None:
    told = client(house, "acme/moods").text_classification(TEXT)
    expected = reference(made, "moods", "text-classification")(TEXT, top_k=None)
    assert [(one.label, one.score) for one in told] == [
        (one["label"], pytest.approx(one["score"], abs=1e-5)) for one in expected
    ]
    assert client(house, "sentiment").text_classification("A wonderful film!")[0].label == "positive"


def test_zero_shot_classification(house: Stack, made: dict[str, Made]) -> None:
    labels = ["politics", "sport", "music"]
    told = client(house, "acme/nli").zero_shot_classification(TEXT, labels)
    expected = reference(made, "nli", "zero-shot-classification")(TEXT, labels)
    assert [one.label for one in told] == expected["labels"]
    assert [one.score for one in told] == pytest.approx(expected["scores"], abs=1e-5)


def test_token_classification(house: Stack, made: dict[str, Made]) -> None:
    told = client(house, "acme/names").token_classification(TEXT, aggregation_strategy="first")
    expected = reference(made, "names", "token-classification")(TEXT, aggregation_strategy="first")
    assert [(one.entity_group, one.word, one.start, one.end) for one in told] == [
        (one["entity_group"], one["word"], one["start"], one["end"]) for one in expected
    ]
    assert [one.score for one in told] == pytest.approx([one["score"] for one in expected], abs=1e-5)


def test_fill_mask(house: Stack, made: dict[str, Made]) -> None:
    told = client(house, "acme/masks").fill_mask("The [MASK] sat on the mat.", top_k=3)
    expected = reference(made, "masks", "fill-mask")("The [MASK] sat on the mat.", top_k=3)
    assert [(one.token, one.token_str, one.sequence) for one in told] == [
        (one["token"], one["token_str"], one["sequence"]) for one in expected
    ]
    assert [one.score for one in told] == pytest.approx([one["score"] for one in expected], abs=1e-5)


def test_question_answering(house: Stack) -> None:
    told = client(house, "acme/reader").question_answering(question="Where was she born?", context=TEXT)
    assert TEXT[told.start : told.end] == told.answer
    request = encoder_pb2.AnswerQuestionRequest(
        model="acme/reader",
        inputs=[encoder_pb2.QuestionInContext(question="Where was she born?", context=TEXT)],
    )
    with grpc.insecure_channel(house.grpc) as channel:
        [result] = encoder_pb2_grpc.EncoderServiceStub(channel).AnswerQuestion(request, timeout=30).results
    [answer] = result.answers
    assert (answer.answer, answer.start, answer.end) == (told.answer, told.start, told.end)
    assert answer.score == pytest.approx(told.score, abs=1e-6)


def test_feature_extraction_and_the_openai_client(house: Stack) -> None:
    vector = client(house, "acme/vectors").feature_extraction(TEXT)
    with OpenAI(base_url=f"{house.url}/v1", api_key="none") as openai:
        packed = openai.embeddings.create(model="acme/vectors", input=TEXT)
        floats = openai.embeddings.create(model="acme/vectors", input=TEXT, encoding_format="float")
    assert vector.reshape(-1).tolist() == pytest.approx(packed.data[0].embedding, abs=1e-6)
    assert floats.data[0].embedding == pytest.approx(packed.data[0].embedding, abs=1e-6)


def test_rerank_and_attention(house: Stack) -> None:
    documents = ["Berlin is a city.", "A cat sat.", "Hamburg has a harbour."]
    body = {"model": "acme/ranks", "query": "Which city?", "documents": documents, "top_n": 2}
    ranked = httpx.post(f"{house.url}/v1/rerank", json=body, timeout=30).json()["results"]
    assert len(ranked) == 2
    assert ranked[0]["relevance_score"] >= ranked[1]["relevance_score"]
    question = {"inputs": "Deep learning is fun.", "parameters": {"reduce": "mean", "top_k_edges": 4}}
    [seen] = httpx.post(f"{house.url}/v1/attention", json=question, timeout=30).json()["results"]
    edges = [(seen["tokens"][e["source"]], seen["tokens"][e["target"]]) for e in seen["matrices"][0]["edges"]]
    assert ("deep", "learning") in edges


def test_the_list_says_who_does_what(house: Stack) -> None:
    listed = {model["id"]: model for model in httpx.get(f"{house.url}/v1/models", timeout=30).json()["data"]}
    tasks = {name: set(model["tasks"]) - {"embeddings", "attention"} for name, model in listed.items()}
    assert {name: tasks[f"acme/{name}"] for name in MODELS} == {
        "moods": {"classify"},
        "nli": {"classify", "zero-shot-classify"},
        "ranks": {"classify", "rerank"},
        "names": {"token-classify"},
        "masks": {"fill-mask"},
        "reader": {"question-answering"},
        "vectors": set(),
    }
    assert listed["acme/names"]["labels"] == list(LABELS.values())
    assert "embeddings" in listed["all-MiniLM-L6-v2"]["default_tasks"]
