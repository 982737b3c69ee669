"""The encoder's tasks over REST: the envelope, the shapes of each task's results, what reaches the worker."""

import asyncio
from typing import Any

import pytest
from gateway_house import House, StartHouse, until
from pydantic import TypeAdapter

from janus.v1 import encoder_pb2, models_pb2, tokenizer_pb2
from services.common.errors import ContextLengthExceeded
from services.gateway.rest import task_answers

QUESTION = {"question": "Where?", "context": "In Berkeley"}

# Path, body, object, results.
ANSWERED: list[tuple[str, dict[str, Any], str, list[Any]]] = [
    (
        "classify",
        {"inputs": "a"},
        "classification",
        [[{"label": "positive", "score": 0.75}, {"label": "negative", "score": 0.25}]],
    ),
    (
        "zero-shot-classify",
        {"inputs": ["a", "b"], "parameters": {"candidate_labels": ["x", "y"]}},
        "zero_shot_classification",
        [[{"label": "x", "score": 0.5}, {"label": "y", "score": 0.25}]] * 2,
    ),
    (
        "token-classify",
        {"inputs": "Ada lived"},
        "token_classification",
        [[{"entity": "B-PER", "score": 0.75, "word": "Ada", "start": 0, "end": 3, "index": 1}]],
    ),
    (
        "token-classify",
        {"inputs": "Ada lived", "parameters": {"aggregation_strategy": "first"}},
        "token_classification",
        [[{"entity_group": "PER", "score": 0.75, "word": "Ada", "start": 0, "end": 3}]],
    ),
    (
        "fill-mask",
        {"inputs": ["the [MASK]", "[MASK] [MASK]"], "parameters": {"top_k": 1}},
        "fill_mask",
        [
            [{"score": 0.5, "token": 0, "token_str": "capital", "sequence": "the capital"}],
            [[{"score": 0.5, "token": 0, "token_str": "capital", "sequence": "capital [MASK]"}]] * 2,
        ],
    ),
    (
        "question-answering",
        {"inputs": QUESTION},
        "question_answering",
        [[{"score": 0.5, "start": 0, "end": 2, "answer": "In"}]],
    ),
    (
        "question-answering",
        {"inputs": [QUESTION, QUESTION], "parameters": {"top_k": 2}},
        "question_answering",
        [
            [
                {"score": 0.5, "start": 0, "end": 2, "answer": "In"},
                {"score": 0.25, "start": 3, "end": 11, "answer": "Berkeley"},
            ]
        ]
        * 2,
    ),
    (
        "rerank",
        {"query": "q", "documents": ["a", {"text": "b"}]},
        "rerank",
        [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.25}],
    ),
    (
        "rerank",
        {"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True},
        "rerank",
        [{"index": 1, "relevance_score": 0.5, "document": {"text": "b"}}],
    ),
    (
        "attention",
        {"inputs": "a cat"},
        "attention",
        [
            {
                "tokens": ["a", "cat"],
                "token_ids": [0, 1],
                "offsets": [[0, 1], [2, 5]],
                "matrices": [{"layer": 0, "head": 0, "weights": [[0.5, 0.5], [0.5, 0.5]]}],
            }
        ],
    ),
    (
        "attention",
        {"inputs": "a cat", "parameters": {"reduce": "rollout", "top_k_edges": 1}},
        "attention",
        [
            {
                "tokens": ["a", "cat"],
                "token_ids": [0, 1],
                "offsets": [[0, 1], [2, 5]],
                "matrices": [{"layer": None, "head": None, "edges": [{"source": 0, "target": 0, "weight": 0.5}]}],
            }
        ],
    ),
]
SHAPES: dict[str, Any] = {
    "classification": task_answers.Classification,
    "zero_shot_classification": task_answers.ZeroShotClassification,
    "token_classification": task_answers.TokenClassification,
    "fill_mask": task_answers.MaskFilling,
    "question_answering": task_answers.QuestionAnswering,
    "rerank": task_answers.Reranking,
    "attention": task_answers.Attention,
}


async def test_the_envelope_and_the_results(house: House):
    for number, (path, body, object_, results) in enumerate(ANSWERED):
        response = await house.http.post(f"/v1/{path}", json=body, headers={"X-Request-Id": f"r{number}"})
        answer = response.json()
        assert response.status_code == 200, (path, answer)
        assert answer["results"] == results, path
        assert list(answer) == ["id", "object", "model", "created", "results", "usage", "metrics"]
        assert answer["object"] == object_
        assert answer["id"].endswith(f"-r{number}")
        assert answer["model"] == "acme/minilm"
        assert answer["created"] > 0
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
        assert answer["usage"]["truncated"] is False
        assert answer["metrics"] == {"queue_ms": 0.5, "tokenize_ms": 0.25, "inference_ms": 2, "total_ms": 3}
        assert response.headers["server-timing"] == "queue;dur=0.50, tokenize;dur=0.25, inference;dur=2.00"
    for path in {path for path, *_ in ANSWERED}:
        count = sum(each == path for each, *_ in ANSWERED)
        await house.until_metric(count, "janus_requests_total", task=path, model="acme/minilm", code="ok")


async def test_answers_are_as_the_document_says(house: House):
    document = (await house.http.get("/openapi.json")).json()
    for path, body, object_, _ in ANSWERED:
        answer = (await house.http.post(f"/v1/{path}", json=body)).json()
        shape: TypeAdapter[Any] = TypeAdapter(SHAPES[object_])
        assert shape.dump_python(shape.validate_python(answer), mode="json") == answer
        success = document["paths"][f"/v1/{path}"]["post"]["responses"]["200"]
        assert success["content"]["application/json"]["schema"]["$ref"].endswith(f"/{SHAPES[object_].__name__}")


async def test_cutting_is_asked_for_and_told(house: House):
    for path, body in (
        ("classify", {"inputs": "a"}),
        ("zero-shot-classify", {"inputs": "a", "parameters": {"candidate_labels": ["x"]}}),
        ("token-classify", {"inputs": "a"}),
        ("fill-mask", {"inputs": "[MASK]"}),
        ("rerank", {"query": "q", "documents": ["a"]}),
        ("attention", {"inputs": "a"}),
    ):
        whole = await house.http.post(f"/v1/{path}", json=body)
        cut = await house.http.post(f"/v1/{path}", json={**body, "truncate": True})
        assert [answer.json()["usage"]["truncated"] for answer in (whole, cut)] == [False, True], path
        assert [request.truncate for request in house.encoder.requests[-2:]] == [False, True], path


async def sent(house: House, path: str, parameters: dict[str, Any], inputs: Any = "[MASK] a") -> Any:
    response = await house.http.post(f"/v1/{path}", json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    return house.encoder.requests[-1].parameters


async def test_labels_are_a_list_or_one_text(house: House):
    for labels in (["a b", "c"], "a b, c", " a b ,, c,"):
        parameters = await sent(house, "zero-shot-classify", {"candidate_labels": labels})
        assert list(parameters.candidate_labels) == ["a b", "c"]
        assert not parameters.HasField("hypothesis_template")
    more = {"candidate_labels": "a", "hypothesis_template": "So {}.", "multi_label": True}
    parameters = await sent(house, "zero-shot-classify", more)
    assert (parameters.hypothesis_template, parameters.multi_label) == ("So {}.", True)


async def test_no_ignored_label_is_not_the_default(house: House):
    assert not (await sent(house, "token-classify", {})).HasField("ignore_labels")
    assert not (await sent(house, "token-classify", {"ignore_labels": None})).HasField("ignore_labels")
    none = await sent(house, "token-classify", {"ignore_labels": []})
    assert none.HasField("ignore_labels")
    assert list(none.ignore_labels.texts) == []
    some = await sent(house, "token-classify", {"ignore_labels": ["O", "MISC"]})
    assert list(some.ignore_labels.texts) == ["O", "MISC"]


async def test_strategies_reach_the_worker(house: House):
    for strategy in ("none", "simple", "first", "average", "max"):
        parameters = await sent(house, "token-classify", {"aggregation_strategy": strategy})
        name = encoder_pb2.AggregationStrategy.Name(parameters.aggregation_strategy)
        assert name == f"AGGREGATION_STRATEGY_{strategy.upper()}"
        assert not parameters.HasField("stride")
    windows = await sent(house, "token-classify", {"aggregation_strategy": "max", "stride": 0})
    assert windows.HasField("stride")


async def test_targets_are_a_text_or_texts(house: House):
    assert list((await sent(house, "fill-mask", {"targets": "great"})).targets) == ["great"]
    both = await sent(house, "fill-mask", {"targets": ["great", "awful"], "top_k": 7})
    assert (list(both.targets), both.top_k) == (["great", "awful"], 7)
    assert not (await sent(house, "fill-mask", {})).HasField("top_k")


async def test_how_a_question_is_read_reaches_the_worker(house: House):
    lengths = {"doc_stride": 0, "max_answer_len": 5, "max_seq_len": 100, "max_question_len": 9}
    more = {**lengths, "top_k": 3, "handle_impossible_answer": True, "align_to_words": False}
    parameters = await sent(house, "question-answering", more, QUESTION)
    assert {name: getattr(parameters, name) for name in more} == more
    assert parameters.HasField("align_to_words")
    plain = await sent(house, "question-answering", {}, [QUESTION])
    assert not plain.ListFields()


async def test_which_attention_is_shown_reaches_the_worker(house: House):
    for reduce in ("none", "mean", "rollout"):
        parameters = await sent(house, "attention", {"layers": [-1, 0], "heads": [2], "reduce": reduce})
        assert (list(parameters.layers), list(parameters.heads)) == ([-1, 0], [2])
        assert encoder_pb2.AttentionReduction.Name(parameters.reduce) == f"ATTENTION_REDUCTION_{reduce.upper()}"
    answer = await house.http.post(
        "/v1/attention", json={"inputs": "a", "parameters": {"layers": [3], "heads": [1, 2]}}
    )
    matrices = answer.json()["results"][0]["matrices"]
    assert [(matrix["layer"], matrix["head"]) for matrix in matrices] == [(3, 1), (3, 2)]


async def test_more_results_than_documents_may_be_asked_for(house: House):
    body = {"query": "q", "documents": ["a"], "top_n": 9}
    assert len((await house.http.post("/v1/rerank", json=body)).json()["results"]) == 1


async def test_a_workers_refusal_is_passed_on(house: House):
    house.encoder.failure = ContextLengthExceeded("'inputs[0]' has 600 tokens, the model takes 512.", param="inputs")
    error = (await house.http.post("/v1/fill-mask", json={"inputs": "[MASK]"})).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "inputs")
    assert "600" in error["message"]


async def test_a_task_that_the_model_does_not_have(start_house: StartHouse):
    model = models_pb2.Model(id="base", tasks=["embeddings"], state=models_pb2.MODEL_STATE_READY)
    house = await start_house(encoder_models=[model])
    for body in ({"inputs": "a"}, {"inputs": "a", "model": "base"}):
        error = (await house.http.post("/v1/token-classify", json=body)).json()["error"]
        assert (error["code"], error["param"]) == ("task_not_supported", "model")


async def test_a_client_that_leaves_cancels_its_task(house: House):
    house.encoder.answer_seconds = 30
    asking = asyncio.create_task(house.http.post("/v1/attention", json={"inputs": "a"}))
    await until(lambda: len(house.encoder.requests) == 1)
    asking.cancel()
    await house.until_metric(1, "janus_cancellations_total", stage="waiting")
    await house.until_metric(0, "janus_requests_running", model="acme/minilm")
    await house.until_metric(1, "janus_requests_total", task="attention", code="cancelled")


@pytest.mark.parametrize(
    ("tasks", "asked"),
    [
        (["embeddings", "attention", "token-classify"], encoder_pb2.EmbedTextRequest),
        (["token-classify"], encoder_pb2.ClassifyTokensRequest),
        (["question-answering"], encoder_pb2.AnswerQuestionRequest),
        (["zero-shot-classify", "classify"], encoder_pb2.ClassifyTextRequest),
        (["fill-mask", "embeddings"], encoder_pb2.EmbedTextRequest),
        (["fill-mask"], tokenizer_pb2.TokenizeTextRequest),
    ],
)
async def test_readiness_asks_what_any_model_of_the_task_can_answer(start_house: StartHouse, tasks, asked):
    model = models_pb2.Model(id="base", tasks=tasks, state=models_pb2.MODEL_STATE_READY)
    house = await start_house(encoder_models=[model])
    assert [type(request) for request in house.encoder.first_requests] == [asked]
