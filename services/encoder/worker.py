"""Loaded encoders as the servicers see them: models by name, and a batcher that feeds each encoder's runner."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from janus.v1 import models_pb2
from services.common.errors import ModelNotFound, TaskNotSupported
from services.common.logging import get_logger
from services.common.metrics import EncoderMetrics
from services.common.settings import ConfigurationError, EncoderSettings, setting_of
from services.encoder.batcher import Batcher, Item
from services.encoder.runner import Runner, ServedModel

# A queue in tokens: what the waiting requests may hold together, in batches.
_QUEUE_BATCHES = 256
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Host:
    """One encoder: its runner, and the batcher that all of its models share."""

    runner: Runner
    batcher: Batcher


@dataclass(frozen=True)
class EncoderWorker:
    """The encoders of one device. One thread runs them all, a batch at a time."""

    hosts: tuple[Host, ...]
    thread: ThreadPoolExecutor
    created_unix_seconds: int

    @classmethod
    async def start(cls, settings: EncoderSettings, metrics: EncoderMetrics) -> "EncoderWorker":
        """Loads the models, off the event loop; takes seconds. Raises: ConfigurationError."""
        return cls.make(await asyncio.to_thread(load_runners, settings), settings, metrics)

    @classmethod
    def make(cls, runners: list[Runner], settings: EncoderSettings, metrics: EncoderMetrics) -> "EncoderWorker":
        """A worker around loaded runners."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="runner")
        turn = asyncio.Lock()
        hosts = tuple(_host(runner, thread, turn, settings, metrics) for runner in runners)
        first = runners[0]
        metrics.set_build(device=first.device, kernel=first.kernel, dtype=first.dtype)
        metrics.startup_phase_seconds.labels("load").set(sum(runner.load_seconds for runner in runners))
        metrics.startup_phase_seconds.labels("warm_up").set(sum(runner.warm_up_seconds for runner in runners))
        return cls(hosts, thread, int(time.time()))

    def summary(self) -> dict[str, object]:
        runners = [host.runner for host in self.hosts]
        return {
            "models": [model.model_id for runner in runners for model in runner.models],
            "device": runners[0].device,
            "dtype": runners[0].dtype,
            "load_seconds": round(sum(runner.load_seconds for runner in runners), 2),
        }

    async def run(self) -> None:
        await asyncio.gather(*(host.batcher.run() for host in self.hosts))

    def drain(self) -> None:
        """The door refuses new requests, and the batchers go on until they are empty."""

    async def close(self) -> None:
        self.thread.shutdown()

    def models(self) -> Iterator[tuple[Host, ServedModel]]:
        for host in self.hosts:
            for model in host.runner.models:
                yield host, model

    def model_for(self, name: str, task: str) -> tuple[Host, ServedModel]:
        """The model of a request; without a name the task's default.

        Raises: ModelNotFound, TaskNotSupported.
        """
        known = [(host, model) for host, model in self.models() if not name or model.model_id == name]
        if not known:
            raise ModelNotFound("This worker has no such model.", param="model")
        able = [(host, model) for host, model in known if task in model.heads]
        if not able:
            raise TaskNotSupported(f"This model does not serve the task '{task}'.", param="model")
        return able[0]

    def describe(self, host: Host, model: ServedModel, *, is_draining: bool) -> models_pb2.Model:
        """What the model list says of it."""
        runner = host.runner
        tasks = list(model.heads)
        labels = [head.labels.names for head in model.heads.values() if head.labels is not None]
        return models_pb2.Model(
            id=model.model_id,
            parent=model.parent,
            created_unix_seconds=self.created_unix_seconds,
            tasks=tasks,
            default_tasks=[task for task in tasks if self.model_for("", task)[1] is model],
            labels=labels[0] if labels else (),
            max_input_tokens=runner.max_input_tokens,
            dtype=runner.dtype,
            device=runner.device,
            kernel=runner.kernel,
            digest=runner.digest,
            state=models_pb2.MODEL_STATE_DRAINING if is_draining else models_pb2.MODEL_STATE_READY,
            vocabulary_size=runner.vocabulary_size,
        )


def load_runners(settings: EncoderSettings) -> list[Runner]:
    """Raises: ConfigurationError."""
    runners = [Runner(source, settings) for source in settings.sources]
    names = [model.model_id for runner in runners for model in runner.models]
    if twice := sorted(name for name in set(names) if names.count(name) > 1):
        raise ConfigurationError(f"{setting_of(settings, 'models')}: two models have the name {twice[0]}")
    return runners


def _host(
    runner: Runner, thread: ThreadPoolExecutor, turn: asyncio.Lock, settings: EncoderSettings, metrics: EncoderMetrics
) -> Host:
    base_id = runner.models[0].model_id

    async def execute(items: list[Item]) -> list[Any]:
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, runner.execute, items)
        except Exception:
            _log.exception("a pass failed", model=base_id, num_items=len(items))
            raise

    def observe(items: list[Item]) -> None:
        metrics.batch_size.labels(base_id).observe(len(items))
        metrics.batch_tokens.labels(base_id).observe(sum(item.num_tokens for item in items))

    batcher = Batcher(
        execute,
        max_batch_tokens=settings.max_batch_tokens,
        max_waiting_requests=settings.max_queue_requests,
        max_waiting_tokens=_QUEUE_BATCHES * settings.max_batch_tokens,
        observe=observe,
        turn=turn,
    )
    metrics.requests_waiting.labels(base_id).set_function(lambda: batcher.num_waiting_requests)
    metrics.waiting_tokens.labels(base_id).set_function(lambda: batcher.num_waiting_tokens)
    metrics.requests_running.labels(base_id).set_function(lambda: batcher.num_running_requests)
    for model in runner.models:
        metrics.model_info.labels(model.model_id, runner.digest, runner.dtype).set(1)
    return Host(runner, batcher)
