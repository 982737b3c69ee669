"""Every metric, declared once: prefix `janus_`, base units, `_total` for counters, `_ratio` for 0..1.

A class holds what one side exports, over a registry of that process; the gateway knows no engine metric.
Labels are bounded: never a request id, a prompt or a model's name that a client made up.

    ServiceMetrics              requests as this side sees them
    ├── GatewayMetrics          its workers
    └── WorkerMetrics           queue, batches, tokens
        ├── EncoderMetrics      forward passes
        └── DecoderMetrics      streams and the KV cache
"""

import importlib.metadata
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest

from services.common.errors import TABLE

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each one, which no query needs

PREFIX = "janus"
VERSION = importlib.metadata.version("janus-serving")

REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
COMPUTE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5)
BATCH_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
BATCH_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

REJECTIONS = frozenset(code for code, row in TABLE.items() if row.is_retryable) - {"worker_lost"}
"""Codes of requests that were refused before any work."""

WORKER_STATES = ("connecting", "loading", "ready", "draining", "lost")


class ServiceMetrics:
    """What every service exports."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests_total = self._counter(
            "requests_total", "Requests that ended, by the word of the error table or ok", "task model code transport"
        )
        self.request_duration_seconds = self._histogram(
            "request_duration_seconds", "From a request's arrival to its end", REQUEST_SECONDS, "task model transport"
        )
        self.requests_running = self._gauge(
            "requests_running", "Gateway: requests admitted and not ended. Worker: requests in the running set", "model"
        )
        self.rejections_total = self._counter(
            "rejections_total", "Requests refused before any work, by the word of the error table", "reason"
        )
        self.cancellations_total = self._counter(
            "cancellations_total", "Requests whose client went away, by how far they had come", "stage"
        )
        self.build_info = self._gauge(
            "build_info", "Always 1; what serves, in the labels", "version device kernel dtype"
        )

    def observe_request(self, *, task: str, model: str, code: str, transport: str, seconds: float) -> None:
        """Count a request that ended; `code` is a word of the error table, or ok."""
        self.requests_total.labels(task, model, code, transport).inc()
        self.request_duration_seconds.labels(task, model, transport).observe(seconds)
        if code in REJECTIONS:
            self.rejections_total.labels(code).inc()

    def set_build(self, *, device: str = "", kernel: str = "", dtype: str = "") -> None:
        """Say what serves; a side without a model leaves all but the version empty."""
        self.build_info.labels(VERSION, device, kernel, dtype).set(1)

    def exposition(self) -> bytes:
        """The registry in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, labels: str = "") -> Counter:
        return Counter(f"{PREFIX}_{name}", help_text, labels.split(), registry=self.registry)

    def _gauge(self, name: str, help_text: str, labels: str = "") -> Gauge:
        return Gauge(f"{PREFIX}_{name}", help_text, labels.split(), registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: Sequence[float], labels: str = "") -> Histogram:
        return Histogram(f"{PREFIX}_{name}", help_text, labels.split(), buckets=buckets, registry=self.registry)


class GatewayMetrics(ServiceMetrics):
    """What the gateway alone knows: its workers."""

    def __init__(self) -> None:
        super().__init__()
        self.worker_up = self._gauge("worker_up", "1 while the worker serves", "worker_kind worker")
        self.worker_state = self._gauge(
            "worker_state", f"1 for the worker's state of {', '.join(WORKER_STATES)}", "worker_kind worker state"
        )
        self.retries_total = self._counter("retries_total", "Attempts after the first one", "worker_kind cause")

    def set_worker_state(self, worker_kind: str, worker: str, state: str) -> None:
        """Say in which of WORKER_STATES a worker is; it is up only when ready."""
        for each in WORKER_STATES:
            self.worker_state.labels(worker_kind, worker, each).set(each == state)
        self.worker_up.labels(worker_kind, worker).set(state == "ready")


class WorkerMetrics(ServiceMetrics):
    """What both kinds of worker measure."""

    def __init__(self) -> None:
        super().__init__()
        self.queue_duration_seconds = self._histogram(
            "queue_duration_seconds", "From admission to the first batch or step", COMPUTE_SECONDS, "task model"
        )
        self.tokenize_duration_seconds = self._histogram(
            "tokenize_duration_seconds", "Template and tokenizer of one request", COMPUTE_SECONDS, "task model"
        )
        self.prompt_tokens_total = self._counter("prompt_tokens_total", "Tokens of inputs", "model")
        self.requests_waiting = self._gauge("requests_waiting", "Requests in the queue", "model")
        self.waiting_tokens = self._gauge("waiting_tokens", "Tokens of the requests in the queue", "model")
        self.batch_size = self._histogram("batch_size", "Sequences of one batch or step", BATCH_SEQUENCES, "model")
        self.batch_tokens = self._histogram("batch_tokens", "Tokens of one batch or step", BATCH_TOKENS, "model")
        self.startup_phase_seconds = self._gauge(
            "startup_phase_seconds", "Time that a phase of the start took", "phase"
        )
        self.model_info = self._gauge("model_info", "Always 1; the weights, in the labels", "model digest dtype")


class EncoderMetrics(WorkerMetrics):
    """Forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.inference_duration_seconds = self._histogram(
            "inference_duration_seconds", "Forward pass and head of a request's batch", COMPUTE_SECONDS, "task model"
        )


class DecoderMetrics(WorkerMetrics):
    """Streams and the KV cache."""

    def __init__(self) -> None:
        super().__init__()
        self.time_to_first_token_seconds = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token", REQUEST_SECONDS, "model"
        )
        self.inter_token_latency_seconds = self._histogram(
            "inter_token_latency_seconds", "From one token of a sequence to its next", TOKEN_SECONDS, "model"
        )
        self.time_per_output_token_seconds = self._histogram(
            "time_per_output_token_seconds", "A sequence's mean time a token after the first", TOKEN_SECONDS, "model"
        )
        self.prefill_duration_seconds = self._histogram(
            "prefill_duration_seconds", "From a sequence's first step to its first token", REQUEST_SECONDS, "model"
        )
        self.decode_duration_seconds = self._histogram(
            "decode_duration_seconds", "From a sequence's first token to its last", REQUEST_SECONDS, "model"
        )
        self.generated_tokens_total = self._counter("generated_tokens_total", "Tokens sampled", "model")
        self.prompt_cached_tokens_total = self._counter(
            "prompt_cached_tokens_total", "Tokens of inputs that were in the KV cache already", "model"
        )
        self.prefix_cache_queries_total = self._counter(
            "prefix_cache_queries_total", "Tokens that the KV cache was searched for", "model"
        )
        self.prefix_cache_hits_total = self._counter(
            "prefix_cache_hits_total", "Tokens that were found in the KV cache", "model"
        )
        self.preemptions_total = self._counter(
            "preemptions_total", "Sequences that made room in the KV cache, to be computed again", "model"
        )
        self.kv_cache_usage_ratio = self._gauge("kv_cache_usage_ratio", "Share of the blocks in use", "model")
        self.kv_cache_blocks = self._gauge("kv_cache_blocks", "Blocks of the KV cache, by state", "model state")
