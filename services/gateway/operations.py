"""The functions behind every route: `unary` for a task, `tokenize` for tokens or their text, `stream` for events.

REST and gRPC both call them with the same messages, so both give equal answers and equal errors. A worker that is
lost before the caller was told anything is replaced once: encoder tasks have no effects, and a stream of which no
event was passed on may start again.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from janus.v1 import models_pb2
from services.common.call_metadata import CACHE_NAMESPACE
from services.common.errors import Draining, ModelLoading, WorkerLost
from services.common.metrics import GatewayMetrics
from services.gateway.event_stream import EventStream
from services.gateway.methods import (
    METHODS,
    StreamRequest,
    TaskRequest,
    TaskResponse,
    TokenizerRequest,
    TokenizerResponse,
)
from services.gateway.request_context import RequestContext
from services.gateway.router import Router
from services.gateway.validation import validate
from services.gateway.worker_client import WorkerClient

# Callers are not told apart, so all share one cache.
_NAMESPACE: Final = "everyone"
# How long a request waits for another worker when its own was lost.
REPLACEMENT_SECONDS: Final = 1.0

_Answer = TypeVar("_Answer")


class Operations:
    """What the gateway does, whatever the transport."""

    def __init__(self, router: Router, metrics: GatewayMetrics) -> None:
        self.router = router
        self._metrics = metrics

    async def unary(self, request: TaskRequest, context: RequestContext) -> TaskResponse:
        """One request, one answer.

        Raises JanusError.
        """
        response: TaskResponse = await self._unary(request, context)
        response.id = f"{METHODS[type(request)].id_prefix}-{context.request_id}"
        response.created_unix_seconds = response.created_unix_seconds or int(time.time())
        context.consumed(response.usage)
        return response

    async def tokenize(self, request: TokenizerRequest, context: RequestContext) -> TokenizerResponse:
        """A text to its tokens, or tokens to their text.

        Raises JanusError.
        """
        response: TokenizerResponse = await self._unary(request, context)
        return response

    async def stream(self, request: StreamRequest, context: RequestContext) -> EventStream:
        """One request, a stream that has begun; close it.

        Raises JanusError.
        """
        method = METHODS[type(request)]

        async def ask(worker: WorkerClient) -> EventStream:
            call = worker.stream(method, request, **_call_options(context))
            stream = EventStream(call, context, self._admit(worker, request.model))
            try:
                await stream.open()
            except BaseException:
                stream.close()
                raise
            return stream

        return await self._ask(request, context, ask)

    def list_models(self) -> models_pb2.ListModelsResponse:
        return models_pb2.ListModelsResponse(models=self.router.models())

    def get_model(self, model_id: str) -> models_pb2.GetModelResponse:
        """Raises ModelNotFound."""
        return models_pb2.GetModelResponse(model=self.router.model(model_id))

    async def _unary(self, request: TaskRequest | TokenizerRequest, context: RequestContext) -> Any:
        method = METHODS[type(request)]

        async def ask(worker: WorkerClient) -> Any:
            release = self._admit(worker, request.model)
            try:
                return await worker.ask(method, request, **_call_options(context))
            finally:
                release()

        response = await self._ask(request, context, ask)
        response.model = context.model
        return response

    async def _ask(
        self,
        request: TaskRequest | TokenizerRequest | StreamRequest,
        context: RequestContext,
        ask: Callable[[WorkerClient], Awaitable[_Answer]],
    ) -> _Answer:
        method = METHODS[type(request)]
        context.task = method.task
        validate(request)
        worker, request.model = self.router.choose(method, request.model)
        context.routed(request.model, worker.target)
        generation = worker.generation
        try:
            return await ask(worker)
        except (WorkerLost, Draining, ModelLoading) as error:
            replacement = await self.router.choose_again(
                request.model, lost=worker, generation=generation, within_seconds=REPLACEMENT_SECONDS
            )
            if replacement is None:
                raise
            self._metrics.retries_total.labels(worker.kind, error.code).inc()
        context.routed(request.model, replacement.target)
        return await ask(replacement)

    def _admit(self, worker: WorkerClient, model: str) -> Callable[[], None]:
        """Counts a request as running; what is returned ends that."""
        running = self._metrics.requests_running.labels(model)
        worker.num_running += 1
        running.inc()

        def release() -> None:
            worker.num_running -= 1
            running.dec()

        return release


def _call_options(context: RequestContext) -> dict[str, Any]:
    metadata = (("x-request-id", context.request_id), (CACHE_NAMESPACE, _NAMESPACE))
    return {"timeout_seconds": context.remaining_seconds, "metadata": metadata}
