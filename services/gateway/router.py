"""Chooses a worker: the one that serves the model and has the fewest requests running.

When none can be chosen the error says why, and that is most of the work: no such model, no such task, still loading,
draining, or nobody there.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence

from janus.v1 import models_pb2
from services.common.errors import Draining, JanusError, ModelLoading, ModelNotFound, NoWorker, TaskNotSupported
from services.common.logging import get_logger
from services.common.metrics import GatewayMetrics
from services.gateway.methods import WORKER_KINDS, Method, WorkerKind
from services.gateway.worker_client import WorkerClient, WorkerState

_log = get_logger(__name__)


class Router:
    """Knows every worker and what it serves."""

    def __init__(self, workers: Sequence[WorkerClient], metrics: GatewayMetrics) -> None:
        self.workers = tuple(workers)
        self._metrics = metrics
        self._changed = asyncio.Event()

    def start(self) -> None:
        """Begins to watch every worker."""
        for worker in self.workers:
            self._worker_changed(worker)
            worker.start(self._worker_changed)

    async def close(self) -> None:
        await asyncio.gather(*(worker.close() for worker in self.workers))

    def choose(self, method: Method, model_id: str) -> tuple[WorkerClient, str]:
        """The worker and the model's id; an empty `model_id` is the task's default model.

        Raises ModelNotFound, TaskNotSupported, ModelLoading, Draining or NoWorker.
        """
        model = self._model(method, model_id)
        workers = [worker for worker in self.workers if model.id in (worker.models or {})]
        serving = [worker for worker in workers if worker.serves(model.id)]
        if not serving:
            raise _unavailable(workers)
        return min(serving, key=lambda worker: worker.num_running), model.id

    async def choose_again(
        self, model_id: str, *, lost: WorkerClient, generation: int, within_seconds: float
    ) -> WorkerClient | None:
        """Another worker, or the lost one when it has come back; None when there is none in time."""
        until = time.monotonic() + within_seconds
        while True:
            candidates = [
                worker
                for worker in self.workers
                if worker.serves(model_id) and (worker is not lost or worker.generation > generation)
            ]
            if candidates:
                return min(candidates, key=lambda worker: worker.num_running)
            try:
                await asyncio.wait_for(self._changed.wait(), until - time.monotonic())
            except TimeoutError:
                return None

    def models(self) -> list[models_pb2.Model]:
        """Every model that any worker ever listed, in the state that it is in for callers."""
        states = {model.id: model for worker in self.workers for model in _models_as_seen(worker)}
        for worker in self.workers:
            for model in _models_as_seen(worker):
                if model.state == models_pb2.MODEL_STATE_READY:
                    states[model.id] = model
        return list(states.values())

    def model(self, model_id: str) -> models_pb2.Model:
        """Raises ModelNotFound, or ModelLoading and NoWorker while a worker that might have it isn't known yet."""
        for model in self.models():
            if model.id == model_id:
                return model
        unknown = [worker for worker in self.workers if worker.models is None]
        raise _unavailable(unknown) if unknown else _not_found()

    def unready_kinds(self) -> list[WorkerKind]:
        """Kinds of which no worker is ready; the gateway is ready when there are none."""
        ready = {worker.kind for worker in self.workers if worker.state is WorkerState.READY}
        return [kind for kind in WORKER_KINDS if kind not in ready]

    def _worker_changed(self, worker: WorkerClient) -> None:
        """Shows the worker's state, and wakes whoever waits for a worker."""
        self._metrics.set_worker_state(worker.kind, worker.target, worker.state)
        _log.info("worker", kind=worker.kind, target=worker.target, state=worker.state, reason=worker.reason)
        self._changed.set()
        self._changed = asyncio.Event()

    def _model(self, method: Method, model_id: str) -> models_pb2.Model:
        known = list(self._known())
        if model_id:
            found = [model for model in known if model.id == model_id]
            able = [model for model in found if method.is_served_by(model)]
        else:
            found = known
            able = [model for task in method.default_tasks for model in known if task in model.default_tasks]
            able += [model for task in method.default_tasks for model in known if task in model.tasks]
        if able:
            return able[0]
        kinds = WORKER_KINDS if method.worker_kind is None else (method.worker_kind,)
        unknown = [worker for worker in self.workers if worker.kind in kinds and worker.models is None]
        if unknown and not (model_id and found):
            raise _unavailable(unknown)
        if model_id and not found:
            raise _not_found()
        raise TaskNotSupported(f"This model does not serve the task '{method.task}'.", param="model")

    def _known(self) -> Iterator[models_pb2.Model]:
        for worker in self.workers:
            yield from (worker.models or {}).values()


def _models_as_seen(worker: WorkerClient) -> Iterator[models_pb2.Model]:
    """A worker's models; one that can't be asked now is in the worker's state, unspecified when it is lost."""
    state = {
        WorkerState.LOST: models_pb2.MODEL_STATE_UNSPECIFIED,
        WorkerState.LOADING: models_pb2.MODEL_STATE_LOADING,
        WorkerState.DRAINING: models_pb2.MODEL_STATE_DRAINING,
    }.get(worker.state)
    for model in (worker.models or {}).values():
        seen = models_pb2.Model()
        seen.CopyFrom(model)
        if state is not None:
            seen.state = state
        yield seen


def _not_found() -> ModelNotFound:
    return ModelNotFound("There is no such model; GET /v1/models lists those that are served.", param="model")


def _unavailable(workers: Sequence[WorkerClient]) -> JanusError:
    states = {worker.state for worker in workers}
    if WorkerState.LOADING in states or WorkerState.READY in states:
        return ModelLoading("The model is still loading.")
    if WorkerState.DRAINING in states:
        return Draining("The worker of this model is going away.")
    return NoWorker("No worker for this model is up.")
