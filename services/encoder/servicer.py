"""The worker's gRPC: inputs become items here, and results become answers."""

import time
from collections.abc import Sequence
from typing import Any

import grpc

from janus.v1 import common_pb2, encoder_pb2, encoder_pb2_grpc, models_pb2, models_pb2_grpc
from services.common.errors import Draining, InvalidRequest, ModelLoading
from services.common.logging import describe_request, request_id
from services.common.metrics import EncoderMetrics
from services.encoder.batcher import Result
from services.encoder.runner import ServedModel
from services.encoder.tasks.classify import Function, check_top_k, scored
from services.encoder.tasks.embed import check_dimensions, given_tokens, shortened
from services.encoder.tasks.inputs import EncodedInputs, encode_texts, fit
from services.encoder.worker import EncoderWorker

Context = grpc.aio.ServicerContext[Any, Any]
_FUNCTIONS: dict[int, Function] = {
    encoder_pb2.FUNCTION_TO_APPLY_NONE: "none",
    encoder_pb2.FUNCTION_TO_APPLY_SIGMOID: "sigmoid",
    encoder_pb2.FUNCTION_TO_APPLY_SOFTMAX: "softmax",
}


class WorkerDoor:
    """The worker once it is loaded. Raises: ModelLoading before, Draining at the end."""

    def __init__(self) -> None:
        self.worker: EncoderWorker | None = None
        self.is_draining = False

    def open(self) -> EncoderWorker:
        if self.is_draining:
            raise Draining("the worker is draining")
        if self.worker is None:
            raise ModelLoading("the model is loading")
        return self.worker


class EncoderServicer(encoder_pb2_grpc.EncoderServiceServicer):
    """Each method: choose the model, encode, compute, decode."""

    def __init__(self, door: WorkerDoor, metrics: EncoderMetrics) -> None:
        self._door = door
        self._metrics = metrics

    async def ClassifyText(
        self, request: encoder_pb2.ClassifyTextRequest, context: Context
    ) -> encoder_pb2.ClassifyTextResponse:
        worker, job = self._begin(request.model, "classify", context)
        parameters = request.parameters
        top_k = parameters.top_k if parameters.HasField("top_k") else None
        check_top_k(top_k)
        inputs = await encode_texts(
            worker.runner, request.inputs, job.model, param="inputs", may_truncate=request.truncate
        )
        results = await job.compute(inputs)
        labels = job.model.labels
        assert labels is not None
        function = _FUNCTIONS.get(parameters.function_to_apply)
        return encoder_pb2.ClassifyTextResponse(
            id=request_id(),
            model=job.model.model_id,
            created_unix_seconds=int(time.time()),
            results=[
                encoder_pb2.TextClassification(
                    labels=[
                        encoder_pb2.LabelScore(label=label, score=score)
                        for label, score in scored(result.output, labels, function=function, top_k=top_k)
                    ]
                )
                for result in results
            ],
            usage=job.usage(inputs),
            metrics=job.timings(results),
        )

    async def EmbedText(self, request: encoder_pb2.EmbedTextRequest, context: Context) -> encoder_pb2.EmbedTextResponse:
        worker, job = self._begin(request.model, "embeddings", context)
        dimensions = request.dimensions if request.HasField("dimensions") else None
        check_dimensions(dimensions, worker.runner.width)
        inputs = await _embed_inputs(worker, request, job.model)
        results = await job.compute(inputs)
        return encoder_pb2.EmbedTextResponse(
            id=request_id(),
            model=job.model.model_id,
            created_unix_seconds=int(time.time()),
            embeddings=[encoder_pb2.Embedding(values=shortened(result.output, dimensions)) for result in results],
            usage=job.usage(inputs),
            metrics=job.timings(results),
        )

    def _begin(self, model_name: str, task: str, context: Context) -> "tuple[EncoderWorker, _Job]":
        worker = self._door.open()
        model = worker.model_for(model_name, task)
        describe_request(model=model.model_id)
        return worker, _Job(worker, model, task, self._metrics, context)


class _Job:
    """One request's way through the batcher, and its clock."""

    def __init__(
        self, worker: EncoderWorker, model: ServedModel, task: str, metrics: EncoderMetrics, context: Context
    ) -> None:
        self.model = model
        self._worker = worker
        self._labels = (task, model.model_id)
        self._metrics = metrics
        self._context = context
        self._started = time.perf_counter()
        self._encoded = self._started

    async def compute(self, inputs: EncodedInputs) -> list[Result]:
        """Raises: what the batcher raises."""
        self._encoded = time.perf_counter()
        remaining: float | None = self._context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        return await self._worker.compute(inputs.items, deadline)

    def usage(self, inputs: EncodedInputs) -> common_pb2.Usage:
        self._metrics.prompt_tokens_total.labels(self.model.model_id).inc(inputs.num_tokens)
        return common_pb2.Usage(
            prompt_tokens=inputs.num_tokens, total_tokens=inputs.num_tokens, truncated=inputs.is_truncated
        )

    def timings(self, results: Sequence[Result]) -> common_pb2.Timings:
        """Of several inputs, the longest wait and the longest pass."""
        queue_seconds = max(result.queue_seconds for result in results)
        inference_seconds = max(result.inference_seconds for result in results)
        tokenize_seconds = self._encoded - self._started
        self._metrics.queue_duration_seconds.labels(*self._labels).observe(queue_seconds)
        self._metrics.tokenize_duration_seconds.labels(*self._labels).observe(tokenize_seconds)
        self._metrics.inference_duration_seconds.labels(*self._labels).observe(inference_seconds)
        return common_pb2.Timings(
            queue_ms=queue_seconds * 1000,
            tokenize_ms=tokenize_seconds * 1000,
            inference_ms=inference_seconds * 1000,
            total_ms=(time.perf_counter() - self._started) * 1000,
        )


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """What this worker serves: nothing while it loads."""

    def __init__(self, door: WorkerDoor) -> None:
        self._door = door

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        return models_pb2.ListModelsResponse(models=self._described())

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Context) -> models_pb2.GetModelResponse:
        worker = self._door.open()
        described = {model.id: model for model in self._described()}
        if request.model not in described:
            worker.model_for(request.model, "")
        return models_pb2.GetModelResponse(model=described[request.model])

    def _described(self) -> list[models_pb2.Model]:
        worker = self._door.worker
        if worker is None:
            return []
        return [worker.describe(model, is_draining=self._door.is_draining) for model in worker.runner.models]


async def _embed_inputs(
    worker: EncoderWorker, request: encoder_pb2.EmbedTextRequest, model: ServedModel
) -> EncodedInputs:
    """Texts or token ids, not both in one request."""
    kinds = {one.WhichOneof("content") for one in request.input}
    if kinds <= {"text"}:
        texts = [one.text for one in request.input]
        return await encode_texts(worker.runner, texts, model, param="input", may_truncate=request.truncate)
    if kinds != {"tokens"}:
        raise InvalidRequest("input has both texts and tokens", param="input")
    size = worker.runner.vocabulary_size
    tokens = [given_tokens(one.tokens.ids, index, size) for index, one in enumerate(request.input)]
    return fit(worker.runner, tokens, model, param="input", may_truncate=request.truncate)
