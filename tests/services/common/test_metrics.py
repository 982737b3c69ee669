"""The names are an interface; each side exports its own."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.common.metrics import (
    DecoderMetrics,
    EncoderMetrics,
    GatewayMetrics,
    ServiceMetrics,
)

SERVICE = {
    "requests_total": "task model code transport",
    "request_duration_seconds": "task model transport",
    "requests_running": "model",
    "rejections_total": "reason",
    "cancellations_total": "stage",
    "build_info": "version device kernel dtype",
}
GATEWAY = SERVICE | {
    "worker_up": "worker_kind worker",
    "worker_state": "worker_kind worker state",
    "retries_total": "worker_kind cause",
}
WORKER = SERVICE | {
    "queue_duration_seconds": "task model",
    "tokenize_duration_seconds": "task model",
    "prompt_tokens_total": "model",
    "requests_waiting": "model",
    "waiting_tokens": "model",
    "batch_size": "model",
    "batch_tokens": "model",
    "startup_phase_seconds": "phase",
    "model_info": "model digest dtype",
}
ENCODER = WORKER | {"inference_duration_seconds": "task model"}
DECODER = WORKER | {
    "time_to_first_token_seconds": "model",
    "inter_token_latency_seconds": "model",
    "time_per_output_token_seconds": "model",
    "prefill_duration_seconds": "model",
    "decode_duration_seconds": "model",
    "generated_tokens_total": "model",
    "prompt_cached_tokens_total": "model",
    "prefix_cache_queries_total": "model",
    "prefix_cache_hits_total": "model",
    "preemptions_total": "model",
    "kv_cache_usage_ratio": "model",
    "kv_cache_blocks": "model state",
}
SIDES = [(GatewayMetrics, GATEWAY), (EncoderMetrics, ENCODER), (DecoderMetrics, DECODER)]


def declared(metrics: ServiceMetrics) -> dict[str, str]:
    """Name to labels of what a side declares, whether it was fed or not."""
    found = {}
    for metric in {id(each): each for each in metrics.registry._names_to_collectors.values()}.values():
        suffix = "_total" if metric._type == "counter" else ""
        found[metric._name.removeprefix("janus_") + suffix] = " ".join(metric._labelnames)
    return found


@pytest.mark.parametrize(("side", "names"), SIDES)
def test_the_names_and_labels_of_each_side_are_frozen(side: type[ServiceMetrics], names: dict[str, str]) -> None:
    assert declared(side()) == names


@pytest.mark.parametrize(("side", "names"), SIDES)
def test_every_metric_has_the_prefix_and_a_help_text(side: type[ServiceMetrics], names: dict[str, str]) -> None:
    families = list(text_string_to_metric_families(side().exposition().decode()))
    assert len(families) == len(names)
    for family in families:
        assert family.name.startswith("janus_")
        assert family.documentation


@pytest.mark.parametrize(("side", "names"), SIDES)
def test_an_idle_side_has_no_samples(side: type[ServiceMetrics], names: dict[str, str]) -> None:
    assert all(not family.samples for family in text_string_to_metric_families(side().exposition().decode()))


def test_two_processes_of_one_kind_share_nothing() -> None:
    first, second = DecoderMetrics(), DecoderMetrics()
    first.generated_tokens_total.labels("m").inc()
    assert b'generated_tokens_total{model="m"} 1.0' in first.exposition()
    assert b'{model="m"}' not in second.exposition()


@pytest.mark.parametrize(("code", "rejections"), [("queue_full", 1.0), ("worker_lost", None), ("ok", None)])
def test_only_what_was_refused_before_any_work_is_a_rejection(code: str, rejections: float | None) -> None:
    metrics = ServiceMetrics()
    metrics.observe_request(task="chat", model="m", code=code, transport="rest", seconds=0.1)
    assert metrics.registry.get_sample_value("janus_rejections_total", {"reason": code}) == rejections
    labels = {"task": "chat", "model": "m", "code": code, "transport": "rest"}
    assert metrics.registry.get_sample_value("janus_requests_total", labels) == 1


def test_a_worker_is_in_one_state_and_up_only_when_ready() -> None:
    metrics = GatewayMetrics()
    for state, is_up in [("loading", 0.0), ("ready", 1.0), ("lost", 0.0)]:
        metrics.set_worker_state("decoder", "127.0.0.1:1", state)
        labels = {"worker_kind": "decoder", "worker": "127.0.0.1:1"}
        value = metrics.registry.get_sample_value
        assert value("janus_worker_up", labels) == is_up
        assert [
            each
            for each in ("connecting", "loading", "ready", "draining", "lost")
            if value("janus_worker_state", labels | {"state": each})
        ] == [state]


def test_build_info_names_the_version() -> None:
    metrics = DecoderMetrics()
    metrics.set_build(device="cpu", kernel="portable", dtype="float32")
    assert b'janus_build_info{device="cpu",dtype="float32",kernel="portable",version="' in metrics.exposition()
