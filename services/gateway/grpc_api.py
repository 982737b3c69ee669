"""gRPC: the same operations under the protos' names.

Errors need no word here: the server's interceptor renders, counts and logs them. gRPC's flow control holds a stream
back while its reader is slow; one that takes nothing for too long loses it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from structlog.contextvars import get_contextvars

from janus.v1 import (
    decoder_pb2,
    decoder_pb2_grpc,
    encoder_pb2,
    encoder_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)
from services.common.bulk import BulkRequest, answer_stream
from services.common.errors import Cancelled
from services.common.grpc_server import Service
from services.common.metrics import GatewayMetrics
from services.common.settings import GatewaySettings
from services.gateway.methods import StreamRequest, TaskRequest
from services.gateway.operations import Operations
from services.gateway.request_context import RequestContext

_Context = grpc.aio.ServicerContext[Any, Any]
_Response = TypeVar("_Response", bound=Message)


def grpc_services(settings: GatewaySettings, operations: Operations, metrics: GatewayMetrics) -> list[Service]:
    """What the gateway's gRPC port serves."""
    servicer = GatewayServicer(settings, operations, metrics)
    encoder = encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"]
    decoder = decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"]
    models = models_pb2.DESCRIPTOR.services_by_name["ModelService"]
    tokenizer = tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"]
    return [
        Service(encoder, encoder_pb2_grpc.add_EncoderServiceServicer_to_server, servicer),
        Service(decoder, decoder_pb2_grpc.add_DecoderServiceServicer_to_server, servicer),
        Service(models, models_pb2_grpc.add_ModelServiceServicer_to_server, servicer),
        Service(tokenizer, tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, servicer),
    ]


class GatewayServicer(
    encoder_pb2_grpc.EncoderServiceServicer,
    decoder_pb2_grpc.DecoderServiceServicer,
    models_pb2_grpc.ModelServiceServicer,
    tokenizer_pb2_grpc.TokenizerServiceServicer,
):
    """All services in one."""

    def __init__(self, settings: GatewaySettings, operations: Operations, metrics: GatewayMetrics) -> None:
        self._settings = settings
        self._operations = operations
        self._metrics = metrics

    async def ClassifyText(
        self, request: encoder_pb2.ClassifyTextRequest, context: _Context
    ) -> encoder_pb2.ClassifyTextResponse:
        return await self._unary(request, context, encoder_pb2.ClassifyTextResponse)

    async def ClassifyZeroShot(
        self, request: encoder_pb2.ClassifyZeroShotRequest, context: _Context
    ) -> encoder_pb2.ClassifyZeroShotResponse:
        return await self._unary(request, context, encoder_pb2.ClassifyZeroShotResponse)

    async def ClassifyTokens(
        self, request: encoder_pb2.ClassifyTokensRequest, context: _Context
    ) -> encoder_pb2.ClassifyTokensResponse:
        return await self._unary(request, context, encoder_pb2.ClassifyTokensResponse)

    async def FillMask(self, request: encoder_pb2.FillMaskRequest, context: _Context) -> encoder_pb2.FillMaskResponse:
        return await self._unary(request, context, encoder_pb2.FillMaskResponse)

    async def AnswerQuestion(
        self, request: encoder_pb2.AnswerQuestionRequest, context: _Context
    ) -> encoder_pb2.AnswerQuestionResponse:
        return await self._unary(request, context, encoder_pb2.AnswerQuestionResponse)

    async def EmbedText(
        self, request: encoder_pb2.EmbedTextRequest, context: _Context
    ) -> encoder_pb2.EmbedTextResponse:
        return await self._unary(request, context, encoder_pb2.EmbedTextResponse)

    async def RerankTexts(
        self, request: encoder_pb2.RerankTextsRequest, context: _Context
    ) -> encoder_pb2.RerankTextsResponse:
        return await self._unary(request, context, encoder_pb2.RerankTextsResponse)

    async def InspectAttention(
        self, request: encoder_pb2.InspectAttentionRequest, context: _Context
    ) -> encoder_pb2.InspectAttentionResponse:
        return await self._unary(request, context, encoder_pb2.InspectAttentionResponse)

    def ClassifyTextStream(
        self, request_iterator: AsyncIterator[encoder_pb2.ClassifyTextStreamRequest], context: _Context
    ) -> AsyncIterator[encoder_pb2.ClassifyTextStreamResponse]:
        return self._bulk(request_iterator, context, encoder_pb2.ClassifyTextStreamResponse, "classify")

    def EmbedTextStream(
        self, request_iterator: AsyncIterator[encoder_pb2.EmbedTextStreamRequest], context: _Context
    ) -> AsyncIterator[encoder_pb2.EmbedTextStreamResponse]:
        return self._bulk(request_iterator, context, encoder_pb2.EmbedTextStreamResponse, "embeddings")

    def Generate(
        self, request: decoder_pb2.GenerateRequest, context: _Context
    ) -> AsyncIterator[decoder_pb2.GenerateResponse]:
        return self._stream(request, context)

    def Chat(self, request: decoder_pb2.ChatRequest, context: _Context) -> AsyncIterator[decoder_pb2.ChatResponse]:
        return self._stream(request, context)

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: _Context
    ) -> models_pb2.ListModelsResponse:
        return self._operations.list_models()

    async def GetModel(self, request: models_pb2.GetModelRequest, context: _Context) -> models_pb2.GetModelResponse:
        return self._operations.get_model(request.model)

    async def TokenizeText(
        self, request: tokenizer_pb2.TokenizeTextRequest, context: _Context
    ) -> tokenizer_pb2.TokenizeTextResponse:
        response = await self._operations.tokenize(request, self._request_context(context))
        assert isinstance(response, tokenizer_pb2.TokenizeTextResponse)
        return response

    async def DetokenizeTokens(
        self, request: tokenizer_pb2.DetokenizeTokensRequest, context: _Context
    ) -> tokenizer_pb2.DetokenizeTokensResponse:
        response = await self._operations.tokenize(request, self._request_context(context))
        assert isinstance(response, tokenizer_pb2.DetokenizeTokensResponse)
        return response

    async def _unary(self, request: TaskRequest, context: _Context, answer: type[_Response]) -> _Response:
        response = await self._operations.unary(request, self._request_context(context))
        assert isinstance(response, answer)
        return response

    async def _bulk(
        self,
        requests: AsyncIterator[BulkRequest[TaskRequest]],
        context: _Context,
        response: Callable[..., _Response],
        task: str,
    ) -> AsyncIterator[_Response]:
        """Each request on its own: it may go to another worker than the one before, and has a deadline of its own."""

        def begin(request: TaskRequest, number: int) -> Callable[[], Awaitable[Message]]:
            # Made here, since a request that waits for a full queue has one deadline and not one for each try.
            request_context = self._request_context(context, number)
            return lambda: self._operations.unary(request, request_context)

        closing: list[asyncio.Task[None]] = []
        answers = answer_stream(requests, begin, response, task=task, metrics=self._metrics)
        reader = self._reader(lambda: closing.append(asyncio.create_task(answers.aclose())))
        try:
            async for answer in answers:
                with reader:
                    yield answer
        finally:
            reader.forget()
            await (closing[0] if closing else answers.aclose())

    async def _stream(self, request: StreamRequest, context: _Context) -> AsyncIterator[Any]:
        stream = await self._operations.stream(request, self._request_context(context))
        reader = self._reader(stream.close)
        try:
            while (response := await stream.read()) is not None:
                with reader:
                    yield response
        finally:
            reader.forget()
            stream.close()

    def _reader(self, close: Callable[[], None]) -> "_Reader":
        return _Reader(close, self._settings.stream_stall_seconds, self._metrics)

    def _request_context(self, context: _Context, number: int | None = None) -> RequestContext:
        """`number` tells apart the requests of one stream."""
        now = time.monotonic()
        patience = self._settings.request_timeout_seconds
        remaining = context.time_remaining()
        request_id = get_contextvars()["request_id"]
        return RequestContext(
            request_id=request_id if number is None else f"{request_id}-{number}",
            deadline=now + (patience if remaining is None else min(patience, remaining)),
            started_at=now,
        )


class _Reader:
    """Closes a stream whose reader takes nothing; the worker is free even while the rpc still hangs.

    Each response is passed on inside of `with`, which raises Cancelled once the stream was closed.
    """

    def __init__(self, close: Callable[[], object], stall_seconds: float, metrics: GatewayMetrics) -> None:
        self._waiting_since: float | None = None
        self._has_stalled = False
        self._close = close
        self._stall_seconds = stall_seconds
        self._metrics = metrics
        self._look_again()

    def __enter__(self) -> None:
        self._waiting_since = time.monotonic()

    def __exit__(self, error: object, *_: object) -> None:
        self._waiting_since = None
        if self._has_stalled and error is None:
            self._metrics.cancellations_total.labels("stalled").inc()
            raise Cancelled("The stream was not read.")

    def forget(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if self._waiting_since is not None and time.monotonic() - self._waiting_since >= self._stall_seconds:
            self._has_stalled = True
            self._close()
        else:
            self._look_again()

    def _look_again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._stall_seconds / 2, self._look)
