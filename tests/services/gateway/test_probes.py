"""Probes, readiness and its reasons, metrics, the OpenAPI document, the log."""

import asyncio
import json
import logging

import pytest
import structlog
from gateway_fakes import FakeWorker
from gateway_house import StartHouse, until, until_ready

from services.common.errors import Internal
from services.common.logging import configure_logging
from services.common.settings import GatewaySettings
from services.gateway.rest import probes

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


async def test_ready_means_that_every_kind_has_answered(start_house: StartHouse):
    house = await start_house(is_ready=False)
    assert (await house.http.get("/livez")).json() == {"status": "alive"}
    assert (await house.http.get("/startupz")).status_code == 503
    for _ in range(100):
        report = (await house.http.get("/readyz")).json()
        if [worker["state"] for worker in report["workers"]] == ["loading", "loading"]:
            break
        await asyncio.sleep(0.01)
    assert report == {
        "status": "not ready",
        "workers": [
            {
                "kind": "encoder",
                "target": house.encoder.target,
                "state": "loading",
                "reason": "loading its model",
            },
            {
                "kind": "decoder",
                "target": house.decoder.target,
                "state": "loading",
                "reason": "loading its model",
            },
        ],
    }
    await house.encoder.set_serving()
    await until(lambda: house.encoder.num_first_answers == 1)
    ready = await house.http.get("/readyz")
    assert ready.status_code == 503
    await house.decoder.set_serving()
    await until_ready(house.http)
    assert house.decoder.num_first_answers == 1
    assert (await house.http.get("/health")).json()["status"] == "ready"
    await house.decoder.stop()
    await until(lambda: house.gateway.router.workers[1].state != "ready")
    assert (await house.http.get("/readyz")).status_code == 503
    assert (await house.http.get("/startupz")).status_code == 200
    assert (await house.http.get("/livez")).status_code == 200


class NeverAnswers(FakeWorker):
    """Says SERVING, and fails what it is asked."""

    async def _begin(self, request, context):
        raise Internal("broken")


async def test_a_worker_that_says_serving_but_fails_is_not_ready(start_house: StartHouse):
    broken = NeverAnswers("decoder")
    await broken.start()
    house = await start_house(is_ready=False, decoder_targets=broken.target)
    await house.encoder.set_serving()
    worker = house.gateway.router.workers[1]
    await until(lambda: worker.state == "loading")
    report = (await house.http.get("/readyz")).json()
    assert report["workers"][1]["reason"] == "serves, but its first answer failed: internal"
    await broken.stop()


async def test_the_supervisors_reason_is_told(start_house: StartHouse, tmp_path):
    state = tmp_path / "state.json"
    house = await start_house(is_ready=False, decoder_targets="127.0.0.1:1", supervisor_state=state)
    assert "reason" in (await house.http.get("/readyz")).json()["workers"][1]
    state.write_text(json.dumps({"decoder": {"state": "failed", "restarts": 3, "reason": "no such file: model.gguf"}}))
    worker = (await house.http.get("/readyz")).json()["workers"][1]
    assert worker["reason"] == "no such file: model.gguf"
    assert worker["restarts"] == 3
    state.write_text("{half a fi")
    assert (await house.http.get("/readyz")).status_code == 503


async def test_version_and_metrics(house):
    assert set((await house.http.get("/version")).json()) == {"name", "version"}
    response = await house.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert await house.metric("janus_worker_up", worker_kind="encoder", worker=house.encoder.target) == 1
    assert await house.metric("janus_worker_state", worker_kind="decoder", state="ready") == 1
    assert await house.metric("janus_build_info") == 1
    assert await house.metric("janus_requests_total") == 0, "probes and first answers are nobody's requests"


@pytest.mark.parametrize("path", sorted(probes.PATHS))
async def test_head_is_answered_as_get_is_without_a_body(house, path):
    asked, told = await house.http.head(path), await house.http.get(path)
    assert (asked.status_code, asked.content) == (told.status_code, b"") == (200, b"")
    assert asked.headers["content-type"] == told.headers["content-type"]
    assert await house.metric("janus_requests_total") == 0


async def test_head_tells_that_it_is_not_ready(start_house: StartHouse):
    house = await start_house(is_ready=False)
    assert [(await house.http.head(path)).status_code for path in ("/livez", "/readyz", "/startupz")] == [200, 503, 503]
    assert "head" not in (await house.http.get("/openapi.json")).json()["paths"]["/livez"]


async def test_requests_are_counted_by_outcome(house):
    await house.http.post("/v1/chat/completions", json=CHAT)
    await house.http.post("/v1/chat/completions", json={**CHAT, "n": 0})
    await house.http.post("/v1/chat/completions", json={**CHAT, "model": "made-up"})
    await house.http.post("/v1/classify", json={"inputs": "a"})
    await house.http.get("/v1/nowhere")
    total = "janus_requests_total"
    await house.until_metric(1, total, task="chat", model="smol", code="ok", transport="rest")
    await house.until_metric(1, total, task="chat", model="", code="invalid_request", transport="rest")
    await house.until_metric(1, total, task="chat", model="", code="model_not_found", transport="rest")
    await house.until_metric(1, total, task="classify", model="acme/minilm", code="ok", transport="rest")
    await house.until_metric(1, total, task="", code="route_not_found", transport="rest")
    await house.until_metric(1, "janus_request_duration_seconds_count", task="chat", model="smol")
    assert "made-up" not in (await house.http.get("/metrics")).text


async def test_request_ids_travel(house):
    response = await house.http.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "my-id-7"})
    assert response.headers["x-request-id"] == "my-id-7"
    assert house.decoder.request_ids == ["my-id-7"]
    refused = await house.http.post("/v1/chat/completions", json={}, headers={"X-Request-Id": "my-id-8"})
    assert refused.headers["x-request-id"] == refused.json()["request_id"] == "my-id-8"
    made = (await house.http.get("/livez")).headers["x-request-id"]
    assert len(made) == 32
    for unfit in ("x" * 129, "caf\xe9", "a\tb"):
        response = await house.http.get("/v1/models", headers={"X-Request-Id": unfit.encode("latin-1")})
        assert len(response.headers["x-request-id"]) == 32


async def test_server_timing(house):
    whole = await house.http.post("/v1/chat/completions", json=CHAT)
    assert whole.headers["server-timing"] == "queue;dur=0.50, tokenize;dur=0.25, prefill;dur=4.00, decode;dur=8.00"
    encoder = await house.http.post("/v1/classify", json={"inputs": "a"})
    assert encoder.headers["server-timing"] == "queue;dur=0.50, tokenize;dur=0.25, inference;dur=2.00"
    stream = await house.http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert stream.headers["server-timing"] == "queue;dur=0.50, tokenize;dur=0.25, prefill;dur=4.00"


async def test_errors_of_the_framework_have_our_shape(house):
    nowhere = await house.http.get("/v1/nowhere")
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "route_not_found")
    wrong = await house.http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert nowhere.headers["content-type"] == "application/problem+json"
    problem = nowhere.json()
    assert problem == {
        "type": "urn:janus:error:route_not_found",
        "title": "Route not found",
        "status": 404,
        "detail": problem["error"]["message"],
        "instance": f"urn:janus:request:{problem['request_id']}",
        "error": {**problem["error"], "param": None, "type": "invalid_request_error"},
        "request_id": nowhere.headers["x-request-id"],
        "retry_after_ms": None,
    }


async def test_our_own_mistake_is_a_500_that_says_nothing(house, monkeypatch):
    def mistake():
        raise ValueError("secret cause")

    monkeypatch.setattr(house.gateway.router, "models", mistake)
    response = await house.http.get("/v1/models")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal"
    assert response.headers["x-should-retry"] == "true"
    assert "secret" not in response.text


async def test_the_openapi_document(house):
    document = (await house.http.get("/openapi.json")).json()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]) == {"200", "400", "404", "413", "415", "429", "500", "503", "504"}
    assert "text/event-stream" in chat["responses"]["200"]["content"]
    assert "application/problem+json" in chat["responses"]["400"]["content"]
    assert chat["requestBody"]["content"]["application/json"]["examples"]["chat"]["value"]["messages"]
    fields = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert fields["temperature"]["maximum"] == 2
    assert document["components"]["schemas"]["FillMaskParameters"]["properties"]["top_k"]["minimum"] == 1
    assert (fields["n"]["minimum"], fields["n"]["maximum"]) == (1, 128)
    assert fields["tool_choice"]["enum"] == ["none"]
    assert "ignored" in fields["user"]["description"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
    assert (await house.http.get("/docs")).status_code == 200


async def test_the_documents_examples_are_served(house):
    document = (await house.http.get("/openapi.json")).json()
    num_examples = 0
    for path, operations in document["paths"].items():
        if "requestBody" not in operations.get("post", {}) or "{" in path:
            # A path with a model in it is for each kind of model: test_huggingface_client sends those.
            continue
        examples = operations["post"]["requestBody"]["content"]["application/json"]["examples"]
        assert examples, path
        num_examples += len(examples)
        for example in examples.values():
            value = {name: field for name, field in example["value"].items() if name != "model"}
            response = await house.http.post(path, json=value)
            assert response.status_code == 200, (path, value, response.text)
    assert num_examples >= 20


@pytest.fixture
def restored_log():
    """Leaves the log as it was, whatever a test makes of it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("restored_log")
async def test_the_log_has_one_line_a_request_and_no_prompt(start_house: StartHouse, capsys):
    configure_logging(GatewaySettings(log_format="json"))
    house = await start_house()
    secret = "a-prompt-that-nobody-logs"
    chat = {"messages": [{"role": "user", "content": secret}]}
    await house.http.post("/v1/chat/completions", json=chat, headers={"X-Request-Id": "logged"})
    await house.http.post("/v1/chat/completions", json={**chat, "n": 0})
    house.decoder.failure, house.decoder.failure_after_tokens = ValueError("mistake"), 1
    await house.http.post("/v1/chat/completions", json={**chat, "stream": True})
    await house.http.post("/v1/classify", json={"inputs": secret})
    await house.http.get("/readyz")
    await house.until_metric(1, "janus_requests_total", task="classify")
    logged = capsys.readouterr().err
    assert secret not in logged
    assert "Paris" not in logged
    lines = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["code"] for line in requests] == ["ok", "invalid_request", "internal", "ok"]
    first = requests[0]
    assert (first["request_id"], first["route"], first["model"]) == ("logged", "/v1/chat/completions", "smol")
    assert (first["prompt_tokens"], first["completion_tokens"], first["finish_reason"]) == (5, 4, "stop")
    assert first["duration_ms"] > 0
