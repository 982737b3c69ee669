"""The worker's gRPC: inputs become items here, and results become answers."""

import time
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import grpc

from janus.v1 import common_pb2, encoder_pb2, encoder_pb2_grpc, models_pb2, models_pb2_grpc
from services.common.errors import ModelNotFound
from services.common.logging import describe_request, request_id
from services.common.metrics import EncoderMetrics
from services.common.worker_server import Door
from services.encoder.batcher import Result
from services.encoder.tasks.classify import ClassifyText
from services.encoder.tasks.embed import EmbedText
from services.encoder.tasks.inputs import EncodedInputs
from services.encoder.tasks.task import Task
from services.encoder.worker import EncoderWorker

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request", encoder_pb2.ClassifyTextRequest, encoder_pb2.EmbedTextRequest)
AnyResponse: TypeAlias = encoder_pb2.ClassifyTextResponse | encoder_pb2.EmbedTextResponse
Response = TypeVar("Response", bound=AnyResponse)
_CLASSIFY = ClassifyText()
_EMBED = EmbedText()


class WorkerDoor(Door[EncoderWorker]):
    """Where requests for this worker come in."""


class EncoderServicer(encoder_pb2_grpc.EncoderServiceServicer):
    """Each method is a task."""

    def __init__(self, door: WorkerDoor, metrics: EncoderMetrics) -> None:
        self._door = door
        self._metrics = metrics

    async def ClassifyText(
        self, request: encoder_pb2.ClassifyTextRequest, context: Context
    ) -> encoder_pb2.ClassifyTextResponse:
        return await self._answer(_CLASSIFY, request, context)

    async def EmbedText(self, request: encoder_pb2.EmbedTextRequest, context: Context) -> encoder_pb2.EmbedTextResponse:
        return await self._answer(_EMBED, request, context)

    async def _answer(self, task: Task[Request, Response], request: Request, context: Context) -> Response:
        """Choose the model, encode, compute, decode."""
        started = time.perf_counter()
        worker = self._door.open()
        model = worker.model_for(request.model, task.name)
        describe_request(model=model.model_id)
        head = model.heads[task.name]
        inputs = await task.encode(request, head, worker.runner)
        tokenize_seconds = time.perf_counter() - started
        results = await worker.batcher.submit(inputs.items, deadline=_deadline(context))
        response = task.decode(request, head, [result.output for result in results])
        response.id = request_id()
        response.model = model.model_id
        response.created_unix_seconds = int(time.time())
        response.usage.CopyFrom(_usage(inputs))
        response.metrics.CopyFrom(_timings(results, tokenize_seconds, time.perf_counter() - started))
        self._observe(task.name, model.model_id, response)
        return response

    def _observe(self, task: str, model_id: str, response: AnyResponse) -> None:
        timings = response.metrics
        self._metrics.queue_duration_seconds.labels(task, model_id).observe(timings.queue_ms / 1000)
        self._metrics.tokenize_duration_seconds.labels(task, model_id).observe(timings.tokenize_ms / 1000)
        self._metrics.inference_duration_seconds.labels(task, model_id).observe(timings.inference_ms / 1000)
        self._metrics.prompt_tokens_total.labels(model_id).inc(response.usage.prompt_tokens)


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """What this worker serves: nothing while it loads."""

    def __init__(self, door: WorkerDoor) -> None:
        self._door = door

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        return models_pb2.ListModelsResponse(models=self._described())

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Context) -> models_pb2.GetModelResponse:
        self._door.open()
        for model in self._described():
            if model.id == request.model:
                return models_pb2.GetModelResponse(model=model)
        raise ModelNotFound("This worker has no such model.", param="model")

    def _described(self) -> list[models_pb2.Model]:
        worker = self._door.worker
        if worker is None:
            return []
        return [worker.describe(model, is_draining=self._door.is_draining) for model in worker.runner.models]


def _deadline(context: Context) -> float | None:
    """When the caller stops waiting, in monotonic seconds."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def _usage(inputs: EncodedInputs) -> common_pb2.Usage:
    return common_pb2.Usage(
        prompt_tokens=inputs.num_tokens, total_tokens=inputs.num_tokens, truncated=inputs.is_truncated
    )


def _timings(results: Sequence[Result], tokenize_seconds: float, total_seconds: float) -> common_pb2.Timings:
    """Of several inputs, the longest wait and the longest pass."""
    return common_pb2.Timings(
        queue_ms=1000 * max(result.queue_seconds for result in results),
        tokenize_ms=1000 * tokenize_seconds,
        inference_ms=1000 * max(result.inference_seconds for result in results),
        total_ms=1000 * total_seconds,
    )
