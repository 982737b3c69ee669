"""Sentiment and embeddings over both transports, from real weights."""

import base64
import struct

import grpc
import httpx
import pytest
from openai import OpenAI
from running_janus import Stack

from janus.v1 import encoder_pb2, encoder_pb2_grpc

REVIEWS = {
    "A wonderful film: warm, funny and beautifully acted from start to finish.": "positive",
    "The battery died after two days and customer service never answered. Awful.": "negative",
    "I was bored to tears; the plot makes no sense and the jokes are terrible.": "negative",
    "Best headphones I have ever owned, the sound is amazing!": "positive",
    "What a disappointing, ugly and overpriced piece of junk.": "negative",
}


def test_five_reviews_over_http(stack: Stack) -> None:
    answer = httpx.post(f"{stack.url}/v1/classify", json={"inputs": list(REVIEWS)}, timeout=30)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert [labels[0]["label"] for labels in body["results"]] == list(REVIEWS.values())
    assert all(labels[0]["score"] > 0.7 for labels in body["results"])
    assert body["usage"]["prompt_tokens"] > 50
    assert body["model"] == "sentiment"


def test_grpc_gives_the_same_answer(stack: Stack) -> None:
    over_http = httpx.post(f"{stack.url}/v1/classify", json={"inputs": list(REVIEWS)}, timeout=30).json()
    with grpc.insecure_channel(stack.grpc) as channel:
        request = encoder_pb2.ClassifyTextRequest(inputs=list(REVIEWS))
        over_grpc = encoder_pb2_grpc.EncoderServiceStub(channel).ClassifyText(request, timeout=30)
    told = [[(x.label, x.score) for x in result.labels] for result in over_grpc.results]
    for labels, expected in zip(told, over_http["results"], strict=True):
        assert [label for label, _ in labels] == [x["label"] for x in expected]
        assert [score for _, score in labels] == pytest.approx([x["score"] for x in expected], abs=1e-2)


def test_similar_texts_have_similar_vectors(stack: Stack) -> None:
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The stock market fell sharply."]
    with OpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:
        vectors = [item.embedding for item in client.embeddings.create(model="all-MiniLM-L6-v2", input=texts).data]
    assert [len(vector) for vector in vectors] == [384] * 3

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert cosine(vectors[0], vectors[1]) > 0.6 > 0.3 > cosine(vectors[0], vectors[2])


def test_base64_and_floats_agree(stack: Stack) -> None:
    body = {"model": "all-MiniLM-L6-v2", "input": "One text."}
    floats = httpx.post(f"{stack.url}/v1/embeddings", json=body, timeout=30).json()["data"][0]["embedding"]
    encoded = httpx.post(f"{stack.url}/v1/embeddings", json={**body, "encoding_format": "base64"}, timeout=30).json()
    raw = base64.b64decode(encoded["data"][0]["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(floats, abs=1e-3)
