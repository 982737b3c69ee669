"""The worker's gRPC: inputs become items here, and results become answers."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import grpc

from janus.v1 import common_pb2, encoder_pb2, encoder_pb2_grpc, models_pb2, models_pb2_grpc
from services.common.bulk import BulkRequest, answer_stream
from services.common.errors import ModelNotFound
from services.common.logging import describe_request, request_id
from services.common.metrics import EncoderMetrics
from services.common.worker_server import Door
from services.encoder.batcher import Result
from services.encoder.tasks.attention import InspectAttention
from services.encoder.tasks.classify import ClassifyText
from services.encoder.tasks.embed import EmbedText
from services.encoder.tasks.fill_mask import FillMask
from services.encoder.tasks.inputs import EncodedInputs
from services.encoder.tasks.question import AnswerQuestion
from services.encoder.tasks.rerank import RerankTexts
from services.encoder.tasks.task import Task
from services.encoder.tasks.tokens import ClassifyTokens
from services.encoder.tasks.zero_shot import ClassifyZeroShot
from services.encoder.worker import EncoderWorker

Context = grpc.aio.ServicerContext[Any, Any]
_ANSWER = AnswerQuestion()
_CLASSIFY = ClassifyText()
_CLASSIFY_TOKENS = ClassifyTokens()
_CLASSIFY_ZERO_SHOT = ClassifyZeroShot()
_EMBED = EmbedText()
_FILL_MASK = FillMask()
_RERANK = RerankTexts()
_INSPECT = InspectAttention()


class EncoderRequest(Protocol):
    """What all requests to an encoder have."""

    model: str


class EncoderResponse(Protocol):
    """What all answers of an encoder have."""

    id: str
    model: str
    created_unix_seconds: int

    @property
    def usage(self) -> common_pb2.Usage: ...

    @property
    def metrics(self) -> common_pb2.Timings: ...


_Request = TypeVar("_Request", bound=EncoderRequest)
_Response = TypeVar("_Response", bound=EncoderResponse)
_StreamResponse = TypeVar("_StreamResponse")


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

    async def ClassifyZeroShot(
        self, request: encoder_pb2.ClassifyZeroShotRequest, context: Context
    ) -> encoder_pb2.ClassifyZeroShotResponse:
        return await self._answer(_CLASSIFY_ZERO_SHOT, request, context)

    async def ClassifyTokens(
        self, request: encoder_pb2.ClassifyTokensRequest, context: Context
    ) -> encoder_pb2.ClassifyTokensResponse:
        return await self._answer(_CLASSIFY_TOKENS, request, context)

    async def FillMask(self, request: encoder_pb2.FillMaskRequest, context: Context) -> encoder_pb2.FillMaskResponse:
        return await self._answer(_FILL_MASK, request, context)

    async def AnswerQuestion(
        self, request: encoder_pb2.AnswerQuestionRequest, context: Context
    ) -> encoder_pb2.AnswerQuestionResponse:
        return await self._answer(_ANSWER, request, context)

    async def EmbedText(self, request: encoder_pb2.EmbedTextRequest, context: Context) -> encoder_pb2.EmbedTextResponse:
        return await self._answer(_EMBED, request, context)

    async def RerankTexts(
        self, request: encoder_pb2.RerankTextsRequest, context: Context
    ) -> encoder_pb2.RerankTextsResponse:
        return await self._answer(_RERANK, request, context)

    async def InspectAttention(
        self, request: encoder_pb2.InspectAttentionRequest, context: Context
    ) -> encoder_pb2.InspectAttentionResponse:
        return await self._answer(_INSPECT, request, context)

    def ClassifyTextStream(
        self, request_iterator: AsyncIterator[encoder_pb2.ClassifyTextStreamRequest], context: Context
    ) -> AsyncIterator[encoder_pb2.ClassifyTextStreamResponse]:
        return self._answer_stream(_CLASSIFY, request_iterator, context, encoder_pb2.ClassifyTextStreamResponse)

    def EmbedTextStream(
        self, request_iterator: AsyncIterator[encoder_pb2.EmbedTextStreamRequest], context: Context
    ) -> AsyncIterator[encoder_pb2.EmbedTextStreamResponse]:
        return self._answer_stream(_EMBED, request_iterator, context, encoder_pb2.EmbedTextStreamResponse)

    def _answer_stream(
        self,
        task: Task[_Request, _Response],
        requests: AsyncIterator[BulkRequest[_Request]],
        context: Context,
        response: Callable[..., _StreamResponse],
    ) -> AsyncIterator[_StreamResponse]:
        def begin(request: _Request, number: int) -> Callable[[], Awaitable[_Response]]:
            return lambda: self._answer(task, request, context, number)

        return answer_stream(requests, begin, response, task=task.name, metrics=self._metrics)

    async def _answer(
        self, task: Task[_Request, _Response], request: _Request, context: Context, number: int | None = None
    ) -> _Response:
        """Choose the model, encode, compute, decode; `number` tells apart the requests of one stream."""
        started = time.perf_counter()
        host, model = self._door.open().model_for(request.model, task.name)
        describe_request(model=model.model_id)
        head = model.heads[task.name]
        host.batcher.require_room()  # before any text is tokenized for nothing
        inputs = await task.encode(request, head, host.runner)
        tokenize_seconds = time.perf_counter() - started
        items = [item for row in inputs.items for item in row]
        results = await host.batcher.submit(items, deadline=_deadline(context))
        outputs = iter(result.output for result in results)
        response = task.decode(request, head, [[next(outputs) for _ in row] for row in inputs.items])
        response.id = request_id() if number is None else f"{request_id()}-{number}"
        response.model = model.model_id
        response.created_unix_seconds = int(time.time())
        response.usage.CopyFrom(_usage(inputs))
        response.metrics.CopyFrom(_timings(results, tokenize_seconds, time.perf_counter() - started))
        self._observe(task.name, model.model_id, response)
        return response

    def _observe(self, task: str, model_id: str, response: EncoderResponse) -> None:
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
        return [worker.describe(host, model, is_draining=self._door.is_draining) for host, model in worker.models()]


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
