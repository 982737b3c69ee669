"""Workers that answer by a script: real gRPC servers, no model.

`python gateway_fakes.py encoder 50061` runs one as a process of its own, for tests that kill it.
"""

import asyncio
import itertools
import math
import re
import sys
from collections.abc import AsyncIterator
from typing import Any

from gateway_encoder import TASKS, ScriptedEncoder

from janus.v1 import (
    common_pb2,
    decoder_pb2,
    decoder_pb2_grpc,
    encoder_pb2,
    encoder_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    streams_pb2,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)
from services.common.errors import JanusError
from services.common.grpc_server import GrpcServer, Service, start_server
from services.common.metrics import ServiceMetrics
from services.exchange.server import CallContext, exchange_service

ENCODER_MODEL = models_pb2.Model(
    id="acme/minilm",
    created_unix_seconds=1_700_000_000,
    tasks=TASKS,
    default_tasks=TASKS,
    labels=["negative", "positive"],
    max_input_tokens=512,
    dtype="float32",
    device="cpu",
    kernel="portable",
    digest="e" * 64,
    state=models_pb2.MODEL_STATE_READY,
)
DECODER_MODEL = models_pb2.Model(
    id="smol",
    created_unix_seconds=1_700_000_000,
    tasks=["chat", "completions"],
    default_tasks=["chat", "completions"],
    max_input_tokens=2048,
    dtype="float32",
    device="cpu",
    kernel="portable",
    digest="d" * 64,
    state=models_pb2.MODEL_STATE_READY,
    vocabulary_size=100,
    generation_defaults=models_pb2.GenerationDefaults(max_tokens=1024, temperature=0.2, top_p=0.9),
)
READINESS_PREFIX = "first-answer-"


class FakeWorker(
    ScriptedEncoder,
    decoder_pb2_grpc.DecoderServiceServicer,
    models_pb2_grpc.ModelServiceServicer,
    tokenizer_pb2_grpc.TokenizerServiceServicer,
):
    """A worker of either kind; the attributes are its script."""

    def __init__(self, kind: str, models: list[models_pb2.Model] | None = None, *, has_exchange: bool = True) -> None:
        self.kind = kind
        self.has_exchange = has_exchange
        self.models = models or [ENCODER_MODEL if kind == "encoder" else DECODER_MODEL]
        self.failure: JanusError | Exception | None = None
        self.failure_after_tokens: int | None = None
        self.words = ["Paris", " is", " lovely", "."]
        self.token_seconds = 0.0
        self.answer_seconds = 0.0
        # Requests of callers; the gateway's own first ones are counted apart.
        self.requests: list[Any] = []
        self.request_ids: list[str] = []
        self.num_exchanged = 0
        self.first_requests: list[Any] = []
        self.num_cancelled = 0
        self.num_running = 0
        self.num_sent = 0
        self.port = 0
        self._server: GrpcServer | None = None

    @property
    def num_first_answers(self) -> int:
        return len(self.first_requests)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self, *, is_serving: bool = True) -> None:
        """Opens the port it had before, or any."""
        if self.kind == "encoder":
            own = Service(
                encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"],
                encoder_pb2_grpc.add_EncoderServiceServicer_to_server,
                self,
            )
        else:
            own = Service(
                decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"],
                decoder_pb2_grpc.add_DecoderServiceServicer_to_server,
                self,
            )
        models = Service(
            models_pb2.DESCRIPTOR.services_by_name["ModelService"],
            models_pb2_grpc.add_ModelServiceServicer_to_server,
            self,
        )
        tokenizer = Service(
            tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"],
            tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server,
            self,
        )
        metrics, services = ServiceMetrics(), [own, models, tokenizer]
        if self.has_exchange:
            services.append(exchange_service(services, metrics))
        self._server = await start_server(services, host="127.0.0.1", port=self.port, setting="FAKE", metrics=metrics)
        self.port = self._server.port
        await self.set_serving(is_serving)

    async def set_serving(self, is_serving: bool = True) -> None:
        assert self._server is not None
        await self._server.set_serving(is_serving)

    async def stop(self, drain_seconds: float = 0) -> None:
        if self._server is not None:
            await self._server.drain(drain_seconds)
            self._server = None

    async def ListModels(self, request: Any, context: Any) -> models_pb2.ListModelsResponse:
        return models_pb2.ListModelsResponse(models=self.models)

    async def GetModel(self, request: Any, context: Any) -> models_pb2.GetModelResponse:
        return models_pb2.GetModelResponse(model=self.models[0])

    async def TokenizeText(self, request: Any, context: Any) -> tokenizer_pb2.TokenizeTextResponse:
        """A token a word, its length."""
        await self._begin(request, context)
        is_chat = request.WhichOneof("input") == "messages"
        text = " ".join(each.content for each in request.messages.messages) if is_chat else request.prompt
        words = list(re.finditer(r"\S+", text))
        offsets = [] if is_chat else [tokenizer_pb2.Offset(start=word.start(), end=word.end()) for word in words]
        return tokenizer_pb2.TokenizeTextResponse(
            tokens=[len(word.group()) for word in words],
            count=len(words),
            max_model_len=self.models[0].max_input_tokens,
            token_strs=[word.group() for word in words] if request.return_token_strs else [],
            offsets=offsets,
        )

    async def DetokenizeTokens(self, request: Any, context: Any) -> tokenizer_pb2.DetokenizeTokensResponse:
        await self._begin(request, context)
        return tokenizer_pb2.DetokenizeTokensResponse(prompt=" ".join("x" * token for token in request.tokens))

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[decoder_pb2.GenerateResponse]:
        async for event in self._events(request, context):
            yield decoder_pb2.GenerateResponse(event=event)

    async def Chat(self, request: Any, context: Any) -> AsyncIterator[decoder_pb2.ChatResponse]:
        async for event in self._events(request, context):
            yield decoder_pb2.ChatResponse(event=event)

    async def _events(self, request: Any, context: Any) -> AsyncIterator[streams_pb2.StreamEvent]:
        self.num_running += 1
        try:
            is_first_answer = await self._begin(request, context)
            async for event in self._script(request, is_first_answer):
                self.num_sent += 1
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1

    async def _script(self, request: Any, is_first_answer: bool) -> AsyncIterator[streams_pb2.StreamEvent]:
        options = request.options
        words = self.words[: options.max_tokens] if options.HasField("max_tokens") else self.words
        stream_id = f"s{len(self.requests)}"
        begun = common_pb2.Timings(queue_ms=0.5, tokenize_ms=0.25, prefill_ms=4)
        started = streams_pb2.StreamStarted(
            stream_id=stream_id,
            model=request.model,
            seed=options.seed,
            timings=begun,
            prompt_text=request.text if options.echo else "",
        )
        number = itertools.count()
        yield streams_pb2.StreamEvent(sequence=next(number), started=started)
        # Choice c ends with its word c from the end.
        choices = [words[: len(words) - c] for c in range(options.n or 1)]
        for index, word in enumerate(words):
            if index == self.failure_after_tokens and not is_first_answer:
                assert self.failure is not None
                raise self.failure
            if self.token_seconds:
                await asyncio.sleep(self.token_seconds)
            for choice, mine in enumerate(choices):
                if index < len(mine):
                    scores = [_scores(index, word, options.top_logprobs)] if options.logprobs else ()
                    delta = streams_pb2.StreamDelta(choice=choice, token_ids=[index], text=word, logprobs=scores)
                    yield streams_pb2.StreamEvent(sequence=next(number), delta=delta)
        reason = streams_pb2.FINISH_REASON_STOP if len(words) == len(self.words) else streams_pb2.FINISH_REASON_LENGTH
        for choice in reversed(range(len(choices))):
            finished = streams_pb2.StreamFinished(choice=choice, finish_reason=reason)
            yield streams_pb2.StreamEvent(sequence=next(number), finished=finished)
        timings = common_pb2.Timings(queue_ms=0.5, tokenize_ms=0.25, prefill_ms=4, decode_ms=8, total_ms=13)
        ended = streams_pb2.StreamEnded(usage=_usage(5, sum(map(len, choices))), timings=timings)
        yield streams_pb2.StreamEvent(sequence=next(number), ended=ended)

    async def _begin(self, request: Any, context: Any) -> bool:
        """Records a request and follows the script; whether it was the gateway's own first one."""
        request_id = dict(context.invocation_metadata()).get("x-request-id", "")
        if request_id.startswith(READINESS_PREFIX):
            self.first_requests.append(request)
            return True
        self.requests.append(request)
        self.request_ids.append(request_id)
        self.num_exchanged += isinstance(context, CallContext)
        if self.answer_seconds:
            await asyncio.sleep(self.answer_seconds)
        if self.failure is not None and self.failure_after_tokens is None:
            raise self.failure
        return False


def _scores(token_id: int, word: str, num_top: int) -> streams_pb2.TokenScores:
    """Its chance is a half for the first token, a quarter for the second, and so on; others' are less."""
    logprob = (token_id + 1) * math.log(0.5)
    texts = [word, *(f"{word}{n}" for n in range(1, num_top))][:num_top]
    told = [
        streams_pb2.TokenLogprob(token_id=token_id + n, text=text, logprob=logprob - n, text_bytes=text.encode())
        for n, text in enumerate([word, *texts[1:]])
    ]
    return streams_pb2.TokenScores(token=told[0], top=told[:num_top])


def _usage(prompt_tokens: int, completion_tokens: int, truncated: bool = False) -> common_pb2.Usage:
    return common_pb2.Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        truncated=truncated,
    )


async def _serve(kind: str, port: int, seconds: float) -> None:
    """`seconds` are those of a token, or of an answer."""
    worker = FakeWorker(kind)
    worker.port = port
    worker.words = ["token "] * 1000
    if kind == "encoder":
        worker.answer_seconds = seconds
    else:
        worker.token_seconds = seconds
    await worker.start()
    print("serving", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
