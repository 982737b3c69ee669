"""One worker as the gateway sees it: a channel, what it serves, and whether it really answers.

    connecting ──► loading ──► ready ──► draining        ready: health says SERVING, models are listed,
                      ▲          │          │            and each model answered one tiny request
                      └── lost ◄─┴──────────┘

Health is watched, not polled. A worker that says SERVING is believed only after it answered once; a new watch asks
again, since behind the same target there may be another process. Reconnecting backs off to one second at most: gRPC's
own two minutes would outlast any restart.

Requests with one answer go over the exchange, but for large ones and for a worker that has none; generations have an
rpc each.
"""

import asyncio
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from janus.v1 import decoder_pb2, encoder_pb2, models_pb2, models_pb2_grpc, tokenizer_pb2
from services.common.errors import Cancelled, JanusError, WorkerLost
from services.common.grpc_server import CHANNEL_OPTIONS
from services.common.logging import get_logger
from services.common.rpc_status import from_rpc_error
from services.exchange.client import Exchange, NotExchanged
from services.gateway.methods import METHODS, SERVICE_OF_KIND, Method, WorkerKind

_CHANNEL_OPTIONS = [
    *CHANNEL_OPTIONS,
    # A dead node resets nothing: only pings find out, and a watch is silent for hours.
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
]
_WATCH_AGAIN_SECONDS = 0.2
_ASK_AGAIN_SECONDS = 1.0
_FIRST_ANSWER_SECONDS = 30.0
# A larger request would hold up those that come after it.
_MOST_EXCHANGED_BYTES = 64 * 1024
_log = get_logger(__name__)


Metadata = tuple[tuple[str, str], ...]
RPC_FAILURES = (grpc.aio.AioRpcError, asyncio.CancelledError)


def rpc_failure(error: BaseException) -> BaseException:
    """What one of RPC_FAILURES means, to be raised instead.

    A worker that cancels what nobody asked it to cancel is lost. grpc.aio tells of it as an error or as a
    CancelledError; that one is passed on only in a task that was itself asked to stop.
    """
    if isinstance(error, grpc.aio.AioRpcError):
        told = from_rpc_error(error)
        return WorkerLost("The worker went away.") if isinstance(told, Cancelled) else told
    task = asyncio.current_task()
    return error if task is not None and task.cancelling() else WorkerLost("The worker went away.")


class _FirstAnswerFailed(Exception):
    """A worker that says SERVING does not answer."""


class WorkerState(StrEnum):
    CONNECTING = "connecting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"


class WorkerClient:
    """A worker at `target`."""

    def __init__(self, kind: WorkerKind, target: str) -> None:
        self.kind = kind
        self.target = target
        self.state = WorkerState.CONNECTING
        self.reason = "not reached yet"
        # None until it listed them; kept while it is down, to tell an unknown model from an absent worker.
        self.models: dict[str, models_pb2.Model] | None = None
        self.num_running = 0
        # Counts the times it became ready.
        self.generation = 0
        self._channel = grpc.aio.insecure_channel(target, _CHANNEL_OPTIONS)
        self._callables: dict[Method, Any] = {}
        self._exchange = Exchange(self._channel)
        self._has_exchange = True
        self._on_change: Callable[[WorkerClient], None] | None = None
        self._watching: asyncio.Task[None] | None = None

    def start(self, on_change: Callable[["WorkerClient"], None]) -> None:
        """Begins to watch; `on_change` is called whenever the state or its reason changed."""
        self._on_change = on_change
        self._watching = asyncio.create_task(self._watch(), name=f"watch {self.target}")

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._exchange.close()
        await self._channel.close()

    async def ask(self, method: Method, request: Message, *, timeout_seconds: float, metadata: Metadata) -> Any:
        """The answer to a request that has one.

        Raises: JanusError, what the worker answered, or WorkerLost when it is gone.
        """
        message = request.SerializeToString()
        if self._has_exchange and len(message) <= _MOST_EXCHANGED_BYTES:
            try:
                answer = await self._exchange.ask(
                    method.path, message, timeout_seconds=timeout_seconds, metadata=dict(metadata)
                )
                return method.response.FromString(answer)
            except NotExchanged:
                self._has_exchange = False
        ask = self._callable(method, self._channel.unary_unary)
        try:
            return await ask(message, timeout=timeout_seconds, metadata=metadata)
        except RPC_FAILURES as error:
            raise rpc_failure(error) from None

    def stream(
        self, method: Method, request: Message, *, timeout_seconds: float, metadata: Metadata
    ) -> grpc.aio.UnaryStreamCall[Any, Any]:
        """The events of a generation, which begins."""
        ask = self._callable(method, self._channel.unary_stream)
        call: grpc.aio.UnaryStreamCall[Any, Any] = ask(
            request.SerializeToString(), timeout=timeout_seconds, metadata=metadata
        )
        return call

    def _callable(self, method: Method, make: Callable[..., Any]) -> Any:
        """Made once: a channel registers each of them. Requests are given as bytes."""
        if method not in self._callables:
            self._callables[method] = make(method.path, response_deserializer=method.response.FromString)
        return self._callables[method]

    def serves(self, model_id: str) -> bool:
        """Whether a request for this model can go here now."""
        model = (self.models or {}).get(model_id)
        return self.state is WorkerState.READY and model is not None and model.state == models_pb2.MODEL_STATE_READY

    async def _watch(self) -> None:
        while True:
            try:
                await self._follow_health()
            except _FirstAnswerFailed as failure:
                self._become(WorkerState.LOADING, str(failure))
                await asyncio.sleep(_ASK_AGAIN_SECONDS)
            except RPC_FAILURES as error:
                if isinstance(rpc_failure(error), asyncio.CancelledError):
                    raise
                self._become(self._state_without_answer(), f"no answer at {self.target}")
            except Exception:
                _log.exception("watching a worker failed", target=self.target)
            await asyncio.sleep(_WATCH_AGAIN_SECONDS)

    async def _follow_health(self) -> None:
        watch = self._channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )(health_pb2.HealthCheckRequest(service=SERVICE_OF_KIND[self.kind]))
        has_served = False
        try:
            while isinstance(health := await watch.read(), health_pb2.HealthCheckResponse):
                if health.status == health_pb2.HealthCheckResponse.SERVING:
                    await self._answer_once()
                    has_served = True
                elif has_served:
                    self._become(WorkerState.DRAINING, "draining")
                    # A watch is a running rpc too: it would hold the worker's drain up.
                    return
                else:
                    self._become(WorkerState.LOADING, "loading its model")
        finally:
            watch.cancel()

    async def _answer_once(self) -> None:
        """Raises _FirstAnswerFailed when the worker can't list its models or answer the smallest request."""
        self._has_exchange = True  # it may be another process than the one that had none
        try:
            listed = await models_pb2_grpc.ModelServiceStub(self._channel).ListModels(
                models_pb2.ListModelsRequest(), timeout=_FIRST_ANSWER_SECONDS
            )
            self.models = {model.id: model for model in listed.models}
            for model in listed.models:
                await self._ask_something_small(model)
        except (*RPC_FAILURES, JanusError) as error:
            failure = error if isinstance(error, JanusError) else rpc_failure(error)
            if not isinstance(failure, JanusError):
                raise
            raise _FirstAnswerFailed(f"serves, but its first answer failed: {failure.code}") from None
        self.generation += 1
        self._become(WorkerState.READY, "")

    async def _ask_something_small(self, model: models_pb2.Model) -> None:
        request = _smallest_request(model)
        method = METHODS[type(request)]
        metadata = (("x-request-id", f"first-answer-{self.generation + 1}"),)
        if method.worker_kind != "decoder":
            await self.ask(method, request, timeout_seconds=_FIRST_ANSWER_SECONDS, metadata=metadata)
            return
        call = self.stream(method, request, timeout_seconds=_FIRST_ANSWER_SECONDS, metadata=metadata)
        while await call.read() is not grpc.aio.EOF:
            pass

    def _state_without_answer(self) -> WorkerState:
        match self.state:
            case WorkerState.CONNECTING:
                return WorkerState.CONNECTING
            case WorkerState.DRAINING if self.num_running:
                # It takes no new connections, but still answers what it has.
                return WorkerState.DRAINING
            case _:
                return WorkerState.LOST

    def _become(self, state: WorkerState, reason: str) -> None:
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason = state, reason
            if self._on_change is not None:
                self._on_change(self)


def _smallest_request(model: models_pb2.Model) -> Message:
    """One word to read, or one token to write, for the first task of this model that one word is enough for.

    Where none is, as for an adapter that fills masks, whose mask only its tokenizer can spell, the tokens of the word.
    """
    for task in model.tasks:
        match task:
            case "classify":
                return encoder_pb2.ClassifyTextRequest(model=model.id, inputs=["ready"])
            case "embeddings":
                return encoder_pb2.EmbedTextRequest(model=model.id, input=[encoder_pb2.EmbedTextInput(text="ready")])
            case "token-classify":
                return encoder_pb2.ClassifyTokensRequest(model=model.id, inputs=["ready"])
            case "question-answering":
                question = encoder_pb2.QuestionInContext(question="ready", context="ready")
                return encoder_pb2.AnswerQuestionRequest(model=model.id, inputs=[question])
            case "completions" | "chat":
                options = decoder_pb2.GenerationOptions(max_tokens=1, temperature=0)
                return decoder_pb2.GenerateRequest(model=model.id, text="ready", options=options)
    return tokenizer_pb2.TokenizeTextRequest(model=model.id, prompt="ready")
