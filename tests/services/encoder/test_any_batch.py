"""The same input gives the same answer, to 1e-6, alone and in any batch, beside whatever other tasks on its encoder."""

import asyncio
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import real_tokenizers
from encoder_house import MINILM, runner, worker
from google.protobuf.json_format import MessageToDict
from nasty_texts import NASTY_NUMBERS, NASTY_TEXTS

from janus.v1 import encoder_pb2, encoder_pb2_grpc
from services.encoder.tasks.classify import ClassifyText
from services.encoder.tasks.embed import EmbedText
from services.encoder.tasks.rerank import RerankTexts
from services.encoder.tasks.zero_shot import ClassifyZeroShot

TEXTS = [text for text in NASTY_TEXTS + NASTY_NUMBERS if text] + real_tokenizers.SENTENCES
FEW = TEXTS[::5]
REQUESTS = {
    "classify": (ClassifyText(), encoder_pb2.ClassifyTextRequest(inputs=TEXTS, truncate=True)),
    "embeddings": (
        EmbedText(),
        encoder_pb2.EmbedTextRequest(input=[encoder_pb2.EmbedTextInput(text=text) for text in TEXTS], truncate=True),
    ),
    "rerank": (RerankTexts(), encoder_pb2.RerankTextsRequest(query="a cat", documents=TEXTS, truncate=True)),
    "zero-shot-classify": (
        ClassifyZeroShot(),
        encoder_pb2.ClassifyZeroShotRequest(
            inputs=FEW,
            parameters=encoder_pb2.ClassifyZeroShotParameters(candidate_labels=["animals", "a city"]),
            truncate=True,
        ),
    ),
}
# Each with the heads that can be had on one encoder together.
LABELS = {
    "ranks": {"num_labels": 1},
    "judges": {
        "id2label": {0: "contradiction", 1: "neutral", 2: "entailment"},
        "label2id": {"contradiction": 0, "neutral": 1, "entailment": 2},
    },
}


def numbers(answer: Any) -> list[float]:
    """All scores and components of an answer, in an order that close scores don't change."""
    match answer:
        case encoder_pb2.EmbedTextResponse():
            return [x for one in answer.embeddings for x in one.values]
        case encoder_pb2.RerankTextsResponse():
            return [one.relevance_score for one in sorted(answer.results, key=lambda one: one.index)]
    rows = [sorted(one.labels, key=lambda label: label.label) for one in answer.results]
    return [label.score for row in rows for label in row]


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("family", real_tokenizers.FAMILIES)
async def test_items_of_several_tasks(family: str, labels: str, tmp_path: Path) -> None:
    """Batches that mix three tasks, item by item and in any order."""
    real_tokenizers.make(family, "SequenceClassification", tmp_path, **LABELS[labels])
    made = runner(models=str(tmp_path))
    heads = made.models[0].heads
    tasks = [(heads[name], *REQUESTS[name]) for name in REQUESTS if name in heads]
    assert len(tasks) == 3
    encoded = [await task.encode(request, head, made) for head, task, request in tasks]
    items = [item for one in encoded for row in one.items for item in row]

    def answers(outputs: Iterable[Any]) -> list[float]:
        left = iter(outputs)
        return [
            number
            for (head, task, request), one in zip(tasks, encoded, strict=True)
            for number in numbers(task.decode(request, head, [[next(left) for _ in row] for row in one.items]))
        ]

    alone = answers(made.execute([item])[0] for item in items)
    assert answers(made.execute(items)) == pytest.approx(alone, abs=1e-6)
    order = random.Random(3).sample(range(len(items)), len(items))
    for size in (2, 9, 50):
        outputs: dict[int, Any] = {}
        for start in range(0, len(items), size):
            batch = order[start : start + size]
            outputs |= zip(batch, made.execute([items[i] for i in batch]), strict=True)
        assert answers(outputs[i] for i in range(len(items))) == pytest.approx(alone, abs=1e-6)


async def test_answers_of_several_tasks() -> None:
    """The real MiniLM and its sentiment, all at once over gRPC: batches as they come."""
    async with worker(models=str(MINILM)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)

        async def ask(text: str, task: str) -> dict[str, Any]:
            if task == "classify":
                answer = await stub.ClassifyText(encoder_pb2.ClassifyTextRequest(inputs=[text], truncate=True))
                return MessageToDict(answer)["results"][0]["labels"]
            given = encoder_pb2.EmbedTextInput(text=text)
            answer = await stub.EmbedText(encoder_pb2.EmbedTextRequest(input=[given], truncate=True))
            return MessageToDict(answer)["embeddings"][0]["values"]

        asked = [(text, task) for text in TEXTS for task in ("classify", "embeddings")]
        alone = [await ask(*one) for one in asked]
        together = await asyncio.gather(*(ask(*one) for one in asked))
    for one, other in zip(together, alone, strict=True):
        if isinstance(one[0], dict):
            assert [x["label"] for x in one] == [x["label"] for x in other]
            one, other = [x["score"] for x in one], [x["score"] for x in other]
        assert one == pytest.approx(other, abs=1e-6)
