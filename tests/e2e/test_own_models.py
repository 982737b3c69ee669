"""Models of one's own, as the README names them: a folder for each half, and what is inside says the rest."""

from pathlib import Path

import httpx
import small_models
from running_janus import start, stop


def test_two_folders(tmp_path: Path) -> None:
    llama, bert = tmp_path / "my-llama", tmp_path / "my-bert"
    small_models.save(small_models.llama(), llama)
    small_models.save(small_models.bert("BertForSequenceClassification"), bert)
    stack = start(tmp_path, DECODER_MODEL=str(llama), ENCODER_MODELS=str(bert))
    try:
        stack.wait_ready()
        with httpx.Client(base_url=stack.url, timeout=30) as client:
            served = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
            assert set(served) == {"my-llama", "my-bert"}
            assert served["my-llama"]["tasks"] == ["completions"]  # there is no template to chat by
            assert "classify" in served["my-bert"]["tasks"]
            (labels,) = client.post("/v1/classify", json={"inputs": "w3 w4"}).json()["results"]
            assert {each["label"] for each in labels} == set(served["my-bert"]["labels"])
            written = client.post("/v1/completions", json={"prompt": "w3 w4", "max_tokens": 5}).json()
            assert written["usage"]["completion_tokens"] == 5
            assert written["model"] == "my-llama"
            refused = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "w3"}]})
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "task_not_supported")
    finally:
        stop(stack)
