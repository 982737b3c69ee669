"""The official Hugging Face client, unchanged, against the gateway; and the bare bodies that it never sends."""

import asyncio
from typing import Any

import numpy
import pytest
from gateway_house import House, StartHouse
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from janus.v1 import encoder_pb2, models_pb2
from services.common.errors import ContextLengthExceeded

# As the worker lists them: every encoder's vectors first, then what the checkpoint was trained for.
MODELS = {
    "acme/sentiment": ["embeddings", "classify", "attention"],
    "nli": ["embeddings", "classify", "zero-shot-classify"],
    "tagger": ["embeddings", "token-classify"],
    "masks": ["embeddings", "fill-mask"],
    "reader": ["embeddings", "question-answering"],
    "vectors": ["embeddings"],
    "ranks": ["rerank"],
}
# Which model each example of the document is for.
MODEL_OF_EXAMPLE = {
    "text-classification": "acme/sentiment",
    "zero-shot-classification": "nli",
    "token-classification": "tagger",
    "fill-mask": "masks",
    "question-answering": "reader",
    "feature-extraction": "vectors",
}


@pytest.fixture
async def house(start_house: StartHouse) -> House:
    models = [
        models_pb2.Model(id=name, tasks=tasks, state=models_pb2.MODEL_STATE_READY) for name, tasks in MODELS.items()
    ]
    return await start_house(encoder_models=models)


async def call(house: House, model: str, task: str, *texts: Any, **options: Any) -> Any:
    """The client waits for its socket, and the gateway runs in this loop."""
    client = InferenceClient(model=f"{house.url}/models/{model}", token="none")
    return await asyncio.to_thread(getattr(client, task), *texts, **options)


async def test_text_classification(house):
    answer = await call(house, "acme/sentiment", "text_classification", "I loved it.")
    assert [(each.label, each.score) for each in answer] == [("positive", 0.75), ("negative", 0.25)]
    best = await call(house, "acme/sentiment", "text_classification", "a", top_k=1, function_to_apply="sigmoid")
    assert [each.label for each in best] == ["positive"]
    sent = house.encoder.requests[-1]
    assert sent.model == "acme/sentiment"
    assert sent.parameters.function_to_apply == encoder_pb2.FUNCTION_TO_APPLY_SIGMOID


async def test_zero_shot_classification(house):
    answer = await call(house, "nli", "zero_shot_classification", "A rocket.", ["space", "sea"])
    assert [(each.label, each.score) for each in answer] == [("space", 0.5), ("sea", 0.25)]
    assert not house.encoder.requests[-1].parameters.multi_label
    options = {"multi_label": True, "hypothesis_template": "So {}."}
    await call(house, "nli", "zero_shot_classification", "A rocket.", ["space"], **options)
    sent = house.encoder.requests[-1].parameters
    assert (sent.multi_label, sent.hypothesis_template) == (True, "So {}.")


async def test_token_classification(house):
    (entity,) = await call(house, "tagger", "token_classification", "Ada lived.")
    assert (entity.entity, entity.entity_group, entity.word, entity.start, entity.end) == ("B-PER", None, "Ada", 0, 3)
    (group,) = await call(
        house, "tagger", "token_classification", "Ada lived.", aggregation_strategy="simple", ignore_labels=[], stride=2
    )
    assert (group.entity, group.entity_group, group.score) == (None, "PER", 0.75)
    assert house.encoder.requests[-1].parameters.HasField("ignore_labels")


async def test_fill_mask(house):
    answer = await call(house, "masks", "fill_mask", "Paris is the [MASK].")
    assert [(each.token_str, each.score) for each in answer] == [("capital", 0.5), ("heart", 0.25)]
    assert (answer[0].sequence, answer[0].token) == ("Paris is the capital.", 0)
    (best,) = await call(house, "masks", "fill_mask", "[MASK]", targets=["great", "awful"], top_k=1)
    assert best.token_str == "great"


async def test_question_answering(house):
    answer = await call(house, "reader", "question_answering", "Where?", "In Berkeley")
    assert (answer.answer, answer.score, answer.start, answer.end) == ("In", 0.5, 0, 2)
    one = await call(house, "reader", "question_answering", "Where?", "In Berkeley", top_k=1, max_seq_len=50)
    assert one.answer == "In"
    answers = await call(house, "reader", "question_answering", "Where?", "In Berkeley", top_k=2)
    assert [each.answer for each in answers] == ["In", "Berkeley"]


async def test_feature_extraction(house):
    one = await call(house, "vectors", "feature_extraction", "abc")
    assert one.dtype == numpy.float32
    numpy.testing.assert_allclose(one, [[0.5, -0.25, 0.1, 3]])
    several = await call(house, "vectors", "feature_extraction", ["a", "bc"], truncate=True, dimensions=3)
    assert several.shape == (2, 3)
    assert house.encoder.requests[-1].truncate
    # Its fields alone tell that vectors are meant, of a model that would fill masks too.
    normal = await call(house, "masks", "feature_extraction", ["a", "abc"], normalize=True)
    numpy.testing.assert_allclose(numpy.linalg.norm(normal, axis=1), [1, 1], rtol=1e-6)
    numpy.testing.assert_allclose(normal[1] / normal[1, 0], one[0] / one[0, 0], rtol=1e-6)
    neutral = {"truncation_direction": "right", "encoding_format": "float"}
    numpy.testing.assert_array_equal(await call(house, "vectors", "feature_extraction", "abc", **neutral), one)
    for changing in ({"normalize": False}, {"prompt_name": "query"}, {"truncation_direction": "left"}):
        with pytest.raises(HfHubHTTPError) as error:
            await call(house, "vectors", "feature_extraction", "abc", **changing)
        assert error.value.response.status_code == 400
        assert error.value.response.json()["error"]["param"] == next(iter(changing))


async def test_errors_reach_the_client(house):
    with pytest.raises(HfHubHTTPError) as error:
        await call(house, "nobody", "text_classification", "a")
    assert error.value.response.status_code == 404
    with pytest.raises(HfHubHTTPError) as error:
        await call(house, "vectors", "fill_mask", "[MASK]", top_k=2)
    assert (error.value.response.status_code, error.value.response.json()["error"]["param"]) == (400, "parameters")


async def bare(house: House, model: str, body: Any, status: int = 200) -> Any:
    response = await house.http.post(f"/models/{model}", json=body)
    assert response.status_code == status, response.text
    return response.json()


async def test_several_inputs_are_answered_one_by_one(house):
    labels = [{"label": "positive", "score": 0.75}]
    assert await bare(house, "acme/sentiment", {"inputs": "a", "parameters": {"top_k": 1}}) == [labels]
    assert await bare(house, "acme/sentiment", {"inputs": ["a", "b"], "parameters": {"top_k": 1}}) == [labels, labels]
    chosen = {"candidate_labels": "x"}
    answer = [{"label": "x", "score": 0.5}]
    assert await bare(house, "nli", {"inputs": "a", "parameters": chosen}) == answer
    assert await bare(house, "nli", {"inputs": ["a", "b"], "parameters": chosen}) == [answer, answer]
    masks = await bare(house, "masks", {"inputs": ["[MASK]", "[MASK] [MASK]"], "parameters": {"top_k": 1}})
    assert [each["token_str"] for each in masks[0]] == ["capital"]
    assert [[each["token_str"] for each in mask] for mask in masks[1]] == [["capital"], ["capital"]]
    entities = await bare(house, "tagger", {"inputs": ["Ada lived"]})
    assert [[each["word"] for each in text] for text in entities] == [["Ada"]]
    question = {"question": "Where?", "context": "In Berkeley"}
    assert (await bare(house, "reader", {"inputs": [question]}))[0]["answer"] == "In"
    two = await bare(house, "reader", {"inputs": [question, question], "parameters": {"top_k": 2}})
    assert [[each["answer"] for each in answers] for answers in two] == [["In", "Berkeley"]] * 2


async def test_a_text_without_an_answer_is_answered_by_nothing(house, monkeypatch):
    monkeypatch.setattr("gateway_encoder._answered", lambda context, top_k: encoder_pb2.QuestionAnswers())
    assert await bare(house, "reader", {"inputs": {"question": "a", "context": "b"}}) == []


async def test_what_the_body_says_without_a_parameter(house):
    await bare(house, "vectors", {"inputs": "a", "parameters": {}, "options": {"wait_for_model": True}})
    await bare(house, "acme/sentiment", {"inputs": "a", "parameters": None, "truncate": True})
    kinds = [type(request) for request in house.encoder.requests]
    assert kinds == [encoder_pb2.EmbedTextRequest, encoder_pb2.ClassifyTextRequest]
    assert house.encoder.requests[1].truncate


async def test_what_is_wrong_is_named(house):
    cases: list[tuple[str, Any, str | None, str]] = [
        ("vectors", [], None, "invalid_request"),
        ("vectors", "a", None, "invalid_request"),
        ("vectors", {}, "inputs", "invalid_request"),
        ("vectors", {"inputs": ""}, "inputs", "invalid_request"),
        ("vectors", {"inputs": []}, "inputs", "invalid_request"),
        ("vectors", {"inputs": [1]}, "inputs", "invalid_request"),
        ("vectors", {"inputs": "a", "dimensions": 0}, "dimensions", "invalid_request"),
        ("vectors", {"inputs": "a", "novel": 1}, "novel", "invalid_request"),
        ("vectors", {"inputs": "a", "model": "nli"}, "model", "invalid_request"),
        ("acme/sentiment", {"inputs": {"text": "a"}}, "inputs", "invalid_request"),
        ("acme/sentiment", {"inputs": "a", "parameters": {"top_k": 0}}, "parameters.top_k", "invalid_request"),
        ("acme/sentiment", {"inputs": "a", "parameters": 1}, "parameters", "invalid_request"),
        ("acme/sentiment", {"inputs": {"question": "a", "context": "b"}}, "model", "task_not_supported"),
        ("reader", {"inputs": "a"}, "inputs", "invalid_request"),
        ("reader", {"inputs": {"question": "a"}}, "inputs.context", "invalid_request"),
        ("reader", {"inputs": [{"question": "a", "context": ""}]}, "inputs", "invalid_request"),
        ("tagger", {"inputs": "a", "parameters": {"candidate_labels": "x"}}, "model", "task_not_supported"),
        ("ranks", {"inputs": "a"}, "model", "task_not_supported"),
        ("smol", {"inputs": "a"}, "model", "task_not_supported"),
    ]
    for model, body, param, code in cases:
        error = (await bare(house, model, body, 400))["error"]
        assert (error["param"], error["code"]) == (param, code), (model, body, error)
    assert not house.encoder.requests
    assert (await bare(house, "nobody", {"inputs": "a"}, 404))["error"]["code"] == "model_not_found"


async def test_a_refusal_names_the_field_as_it_was_sent(house):
    message = "'{}[0]' has 600 tokens of input, the model takes 512: cut '{}'."
    house.encoder.failure = ContextLengthExceeded(message.format("input", "input"), param="input")
    error = (await bare(house, "vectors", {"inputs": "a"}, 400))["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "inputs")
    assert error["message"] == message.format("inputs", "inputs")
    house.encoder.failure = None
    assert (await bare(house, "vectors", {"inputs": ""}, 400))["error"]["message"].startswith("'inputs' holds")


async def test_timing_and_counts(house):
    response = await house.http.post("/models/acme/sentiment", json={"inputs": "a"})
    assert response.headers["server-timing"] == "queue;dur=0.50, tokenize;dur=0.25, inference;dur=2.00"
    assert len(response.headers["x-request-id"]) == 32
    await house.until_metric(1, "janus_requests_total", task="classify", model="acme/sentiment", code="ok")


async def test_the_documents_examples_are_served(house):
    document = (await house.http.get("/openapi.json")).json()
    body = document["paths"]["/models/{model}"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["required"] == ["inputs"]
    assert set(body["examples"]) == set(MODEL_OF_EXAMPLE)
    for name, example in body["examples"].items():
        await bare(house, MODEL_OF_EXAMPLE[name], example["value"])
