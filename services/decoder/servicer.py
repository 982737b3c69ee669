"""The worker's gRPC: a request is laid out, tokenized and checked here, and its events become messages."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import grpc

from janus.v1 import common_pb2, decoder_pb2, decoder_pb2_grpc, models_pb2, models_pb2_grpc, streams_pb2
from services.common.call_metadata import CACHE_NAMESPACE, PRIORITY, said_of_call
from services.common.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound
from services.common.logging import describe_request, request_id
from services.common.metrics import DecoderMetrics
from services.common.tokenization import max_characters
from services.common.worker_server import Door
from services.decoder.events import Delta, Ended, Event, Finished, Started
from services.decoder.options import COMPLETION_MAX_TOKENS, Defaults, check_vocabulary, plan
from services.decoder.sequence import MAX_PRIORITY, FinishReason
from services.decoder.spelling import Spelling
from services.decoder.worker import DecoderWorker

Context = grpc.aio.ServicerContext[Any, Any]
_REASONS = {
    FinishReason.STOP: streams_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: streams_pb2.FINISH_REASON_LENGTH,
}


class WorkerDoor(Door[DecoderWorker]):
    """Where requests for this worker come in."""

    def named(self, model: str) -> DecoderWorker:
        """Raises: ModelNotFound for another name, and what `open` raises."""
        worker = self.open()
        if model and model != worker.model_id:
            raise ModelNotFound("This worker has no such model.", param="model")
        describe_request(model=worker.model_id)
        return worker


class DecoderServicer(decoder_pb2_grpc.DecoderServiceServicer):
    """Generate and Chat: two ways to a prompt, one way on."""

    def __init__(self, door: WorkerDoor, metrics: DecoderMetrics) -> None:
        self._door = door
        self._metrics = metrics

    async def Generate(
        self, request: decoder_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[decoder_pb2.GenerateResponse]:
        worker = self._door.named(request.model)
        started = time.perf_counter()
        kind = request.WhichOneof("prompt")
        if kind == "text":
            prompt_ids = await asyncio.to_thread(_tokenized, worker, request.text, "prompt", add_special_tokens=True)
        else:
            prompt_ids = list(request.token_ids.ids)
            check_vocabulary(prompt_ids, "prompt", worker.capacity)
        if not prompt_ids:
            raise InvalidRequest("'prompt' has no tokens.", param="prompt")
        defaults = worker.defaults
        defaults = Defaults(COMPLETION_MAX_TOKENS, defaults.temperature, defaults.top_p, defaults.top_k)
        stream = _Stream(self._metrics, worker, "completions", "prompt", defaults, time.perf_counter() - started)
        if request.options.echo:
            if request.options.logprobs:
                raise InvalidRequest("'logprobs' of an echoed prompt are not supported.", param="logprobs")
            stream.prompt_text = request.text if kind == "text" else worker.runner.decode(prompt_ids)
        async with aclosing(stream.events(prompt_ids, request.options, context)) as events:
            async for event in events:
                yield decoder_pb2.GenerateResponse(event=event)

    async def Chat(self, request: decoder_pb2.ChatRequest, context: Context) -> AsyncIterator[decoder_pb2.ChatResponse]:
        worker = self._door.named(request.model)
        started = time.perf_counter()
        if request.options.echo:
            raise InvalidRequest("'echo' is only for completions.", param="echo")
        prompt_ids = await asyncio.to_thread(_lay_out, worker, request)
        stream = _Stream(self._metrics, worker, "chat", "messages", worker.defaults, time.perf_counter() - started)
        async with aclosing(stream.events(prompt_ids, request.options, context)) as events:
            async for event in events:
                yield decoder_pb2.ChatResponse(event=event)


class _Stream:
    """One request's way through the engine, as numbered events."""

    def __init__(
        self,
        metrics: DecoderMetrics,
        worker: DecoderWorker,
        task: str,
        prompt_param: str,
        defaults: Defaults,
        tokenize_seconds: float,
    ) -> None:
        self._metrics = metrics
        self._worker = worker
        self._task = task
        self._prompt_param = prompt_param
        self._defaults = defaults
        self._tokenize_seconds = tokenize_seconds
        self._started = time.perf_counter() - tokenize_seconds
        self._spelling = Spelling(worker.runner)
        self.prompt_text = ""

    async def events(
        self, prompt_ids: list[int], options: decoder_pb2.GenerationOptions, context: Context
    ) -> AsyncGenerator[streams_pb2.StreamEvent, None]:
        """Raises: JanusError; a reader that goes away cancels the request in the engine."""
        worker = self._worker
        planned = plan(
            options,
            num_prompt_tokens=len(prompt_ids),
            prompt_param=self._prompt_param,
            capacity=worker.capacity,
            defaults=self._defaults,
            end_ids=worker.runner.stop_ids,
        )
        remaining: float | None = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        generation = worker.submit(
            prompt_ids,
            planned,
            deadline,
            cache_namespace=said_of_call(context, CACHE_NAMESPACE),
            priority=_priority(said_of_call(context, PRIORITY)),
        )
        head = streams_pb2.StreamStarted(
            stream_id=request_id() or uuid4().hex,
            model=worker.model_id,
            created_unix_seconds=int(time.time()),
            seed=planned.seed,
            prompt_token_ids=prompt_ids if options.return_prompt_token_ids else (),
            prompt_text=self.prompt_text,
        )
        try:
            sequence = 0
            async for event in generation.events():
                if isinstance(event, Started):
                    self._observe_start(event, len(prompt_ids))
                yield self._message(sequence, event, head)
                sequence += 1
        finally:
            worker.engine.cancel(generation)

    def _message(self, sequence: int, event: Event, head: streams_pb2.StreamStarted) -> streams_pb2.StreamEvent:
        match event:
            case Started(_, queue_seconds, prefill_seconds):
                head.timings.CopyFrom(
                    common_pb2.Timings(
                        queue_ms=queue_seconds * 1000,
                        tokenize_ms=self._tokenize_seconds * 1000,
                        prefill_ms=prefill_seconds * 1000,
                    )
                )
                return streams_pb2.StreamEvent(sequence=sequence, started=head)
            case Delta(token_ids, text, choice, scores):
                logprobs = [self._spelling.scores(each) for each in scores]
                delta = streams_pb2.StreamDelta(choice=choice, token_ids=token_ids, text=text, logprobs=logprobs)
                return streams_pb2.StreamEvent(sequence=sequence, delta=delta)
            case Finished(reason, choice):
                finished = streams_pb2.StreamFinished(choice=choice, finish_reason=_REASONS[reason])
                return streams_pb2.StreamEvent(sequence=sequence, finished=finished)
            case Ended():
                return streams_pb2.StreamEvent(sequence=sequence, ended=self._ended(event))
        raise AssertionError(event)

    def _observe_start(self, event: Started, num_prompt_tokens: int) -> None:
        """Counted now: the prompt is computed or was found, whether or not the reader stays to the end."""
        labels = (self._task, self._worker.model_id)
        self._metrics.queue_duration_seconds.labels(*labels).observe(event.queue_seconds)
        self._metrics.tokenize_duration_seconds.labels(*labels).observe(self._tokenize_seconds)
        self._metrics.prompt_tokens_total.labels(self._worker.model_id).inc(num_prompt_tokens)
        self._metrics.prompt_cached_tokens_total.labels(self._worker.model_id).inc(event.num_cached_tokens)

    def _ended(self, event: Ended) -> streams_pb2.StreamEnded:
        return streams_pb2.StreamEnded(
            usage=common_pb2.Usage(
                prompt_tokens=event.num_prompt_tokens,
                completion_tokens=event.num_output_tokens,
                total_tokens=event.num_prompt_tokens + event.num_output_tokens,
                cached_tokens=event.num_cached_tokens,
            ),
            timings=common_pb2.Timings(
                queue_ms=event.queue_seconds * 1000,
                tokenize_ms=self._tokenize_seconds * 1000,
                prefill_ms=event.prefill_seconds * 1000,
                decode_ms=event.decode_seconds * 1000,
                total_ms=(time.perf_counter() - self._started) * 1000,
            ),
        )


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """What this worker serves: nothing while it loads."""

    def __init__(self, door: WorkerDoor) -> None:
        self._door = door

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        worker = self._door.worker
        models = [] if worker is None else [worker.describe(is_draining=self._door.is_draining)]
        return models_pb2.ListModelsResponse(models=models)

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Context) -> models_pb2.GetModelResponse:
        worker = self._door.named(request.model)
        return models_pb2.GetModelResponse(model=worker.describe(is_draining=self._door.is_draining))


def _priority(said: str) -> int:
    """Raises: InvalidRequest."""
    try:
        priority = int(said or "0")
    except ValueError:
        priority = MAX_PRIORITY + 1
    if abs(priority) > MAX_PRIORITY:
        most = f"a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}"
        raise InvalidRequest(f"'priority' must be {most}.", param="priority")
    return priority


def _lay_out(worker: DecoderWorker, request: decoder_pb2.ChatRequest) -> list[int]:
    """Template, then tokens: the template writes the special tokens itself."""
    goes_on = request.continue_final_message
    is_opened = request.add_generation_prompt if request.HasField("add_generation_prompt") else not goes_on
    prompt = worker.template.render(
        [(message.role, message.content) for message in request.messages],
        add_generation_prompt=is_opened,
        continue_final_message=goes_on,
    )
    return _tokenized(worker, prompt, "messages", add_special_tokens=False)


def _tokenized(worker: DecoderWorker, text: str, param: str, *, add_special_tokens: bool) -> list[int]:
    """Raises: ContextLengthExceeded for a text that is refused by its length alone."""
    max_tokens = worker.capacity.max_total_tokens
    most = max_characters(max_tokens)
    if len(text) > most:
        raise ContextLengthExceeded(
            f"The prompt has {len(text)} characters, of a text for {max_tokens} tokens at most {most} are read.",
            param=param,
        )
    return worker.runner.encode(text, add_special_tokens=add_special_tokens)
