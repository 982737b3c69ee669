"""A loaded encoder as the servicers see it: its models by name, and the batcher that feeds its runner."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from janus.v1 import models_pb2
from services.common.errors import ModelNotFound, TaskNotSupported
from services.common.logging import get_logger
from services.common.metrics import EncoderMetrics
from services.common.settings import EncoderSettings
from services.encoder.batcher import Batcher, Item
from services.encoder.runner import Runner, ServedModel

# A queue in tokens: what the waiting requests may hold together, in batches.
_QUEUE_BATCHES = 256
_log = get_logger(__name__)


@dataclass(frozen=True)
class EncoderWorker:
    """One runner, one thread for it, one batcher."""

    runner: Runner
    batcher: Batcher
    thread: ThreadPoolExecutor
    created_unix_seconds: int

    @classmethod
    async def start(cls, settings: EncoderSettings, metrics: EncoderMetrics) -> "EncoderWorker":
        """Loads the model, off the event loop; takes seconds. Raises: ConfigurationError."""
        return cls.make(await asyncio.to_thread(Runner, settings), settings, metrics)

    @classmethod
    def make(cls, runner: Runner, settings: EncoderSettings, metrics: EncoderMetrics) -> "EncoderWorker":
        """A worker around a loaded runner."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="runner")
        base_id = settings.model_id

        async def execute(items: list[Item]) -> list[list[float]]:
            try:
                return await asyncio.get_running_loop().run_in_executor(thread, runner.execute, items)
            except Exception:
                _log.exception("a pass failed", num_items=len(items))
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
        )
        metrics.requests_waiting.labels(base_id).set_function(lambda: batcher.num_waiting_requests)
        metrics.waiting_tokens.labels(base_id).set_function(lambda: batcher.num_waiting_tokens)
        metrics.requests_running.labels(base_id).set_function(lambda: batcher.num_running_requests)
        metrics.set_build(device=runner.device, kernel=runner.kernel, dtype=runner.dtype)
        metrics.startup_phase_seconds.labels("load").set(runner.load_seconds)
        metrics.startup_phase_seconds.labels("warm_up").set(runner.warm_up_seconds)
        for model in runner.models:
            metrics.model_info.labels(model.model_id, runner.digest, runner.dtype).set(1)
        return cls(runner, batcher, thread, int(time.time()))

    def summary(self) -> dict[str, object]:
        return {
            "models": [model.model_id for model in self.runner.models],
            "device": self.runner.device,
            "dtype": self.runner.dtype,
            "load_seconds": round(self.runner.load_seconds, 2),
        }

    async def run(self) -> None:
        await self.batcher.run()

    def drain(self) -> None:
        """The door refuses new requests, and the batcher goes on until it is empty."""

    async def close(self) -> None:
        self.thread.shutdown()

    def model_for(self, name: str, task: str) -> ServedModel:
        """The model of a request; without a name the task's default.

        Raises: ModelNotFound, TaskNotSupported.
        """
        known = [model for model in self.runner.models if not name or model.model_id == name]
        if not known:
            raise ModelNotFound("This worker has no such model.", param="model")
        able = [model for model in known if task in model.heads]
        if not able:
            raise TaskNotSupported(f"This model does not serve the task '{task}'.", param="model")
        return able[0]

    def describe(self, model: ServedModel, *, is_draining: bool) -> models_pb2.Model:
        """What the model list says of it."""
        tasks = list(model.heads)
        labels = [head.labels.names for head in model.heads.values() if head.labels is not None]
        return models_pb2.Model(
            id=model.model_id,
            parent=model.parent,
            created_unix_seconds=self.created_unix_seconds,
            tasks=tasks,
            default_tasks=[task for task in tasks if self.model_for("", task) is model],
            labels=labels[0] if labels else (),
            max_input_tokens=self.runner.max_input_tokens,
            dtype=self.runner.dtype,
            device=self.runner.device,
            kernel=self.runner.kernel,
            digest=self.runner.digest,
            state=models_pb2.MODEL_STATE_DRAINING if is_draining else models_pb2.MODEL_STATE_READY,
            vocabulary_size=self.runner.vocabulary_size,
        )
