"""OpenAI's routes, unchanged: chat completions, completions, embeddings. Source: the OpenAI API reference."""

import asyncio
import base64
import sys
from array import array
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from janus.v1 import encoder_pb2
from services.common.errors import JanusError
from services.gateway.event_stream import EventStream
from services.gateway.methods import StreamRequest
from services.gateway.operations import Operations
from services.gateway.request_context import RequestContext
from services.gateway.rest.answers import (
    ChatCompletion,
    Completion,
    CompletionLogprobs,
    EmbeddingList,
    json_answer,
    json_response,
)
from services.gateway.rest.body import JsonRoute
from services.gateway.rest.chunks import (
    ChatShape,
    CompletionShape,
    Generation,
    Shape,
    WholeChoice,
    chunks_of,
    token_usage,
    whole,
)
from services.gateway.rest.errors import respell
from services.gateway.rest.logprobs import CompletionScores, chat_logprobs
from services.gateway.rest.openapi import CHAT_EXAMPLES, COMPLETION_EXAMPLES, EMBEDDING_EXAMPLES, answers
from services.gateway.rest.operations_of import operations_of
from services.gateway.rest.schemas import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from services.gateway.rest.server_timing import decoder_timing, encoder_timing
from services.gateway.rest.sse import EventStreamResponse
from services.gateway.rest.until_answered import until_answered

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post("/v1/chat/completions", name="chat", responses=answers(ChatCompletion, has_stream=True))
async def create_chat_completion(
    request: Request, body: Annotated[ChatCompletionRequest, Body(openapi_examples=CHAT_EXAMPLES)]
) -> Response:
    """Answer a conversation, whole or as a stream of chunks."""
    context = RequestContext.of(request.scope)
    opening = open_streams(operations_of(request), [body.request()], context)
    try:
        (stream,) = streams = await until_answered(request, opening)
    except JanusError as error:
        respell(error, body.spelled(error.param))
        raise
    started = stream.started
    identity = (f"chatcmpl-{started.stream_id}", started.created_unix_seconds, context.model)
    if body.stream:
        return _event_stream(request, streams, ChatShape(*identity, body.num_choices, body.is_usage_wanted))
    (generation,) = await until_answered(request, read_whole(streams, body.num_choices))
    answer: ChatCompletion = {
        "id": identity[0],
        "object": "chat.completion",
        "created": identity[1],
        "model": identity[2],
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": chat_logprobs(choice.scores) if body.logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(generation.choices)
        ],
        "usage": token_usage(context.usage),
    }
    return json_response(answer, decoder_timing(generation.timings))


@router.post("/v1/completions", name="completions", responses=answers(Completion, has_stream=True))
async def create_completion(
    request: Request, body: Annotated[CompletionRequest, Body(openapi_examples=COMPLETION_EXAMPLES)]
) -> Response:
    """Continue one prompt or several, each a choice with the prompt's index."""
    context = RequestContext.of(request.scope)
    try:
        streams = await until_answered(request, open_streams(operations_of(request), body.requests(), context))
    except JanusError as error:
        respell(error, body.spelled(error.param))
        raise
    started = streams[0].started
    identity = (f"cmpl-{started.stream_id}", started.created_unix_seconds, context.model)
    if body.stream:
        return _event_stream(request, streams, CompletionShape(*identity, body.num_choices, body.is_usage_wanted))
    generations = await until_answered(request, read_whole(streams, body.num_choices))
    answer: Completion = {
        "id": identity[0],
        "object": "text_completion",
        "created": identity[1],
        "model": identity[2],
        "choices": [
            {
                "index": number * body.num_choices + index,
                "text": each.prompt_text + choice.text,
                "logprobs": _completion_logprobs(each, choice) if body.logprobs is not None else None,
                "finish_reason": choice.finish_reason,
            }
            for number, each in enumerate(generations)
            for index, choice in enumerate(each.choices)
        ],
        "usage": token_usage(context.usage),
    }
    return json_response(answer, decoder_timing(generations[0].timings))


@router.post("/v1/embeddings", name="embeddings", responses=answers(EmbeddingList))
async def create_embeddings(
    request: Request, body: Annotated[EmbeddingRequest, Body(openapi_examples=EMBEDDING_EXAMPLES)]
) -> Response:
    """One vector for each input."""
    context = RequestContext.of(request.scope)
    response = await until_answered(request, operations_of(request).unary(body.request(), context))
    assert isinstance(response, encoder_pb2.EmbedTextResponse)
    return await json_answer(response, lambda: _embedding_list(body, response), encoder_timing(response.metrics))


async def open_streams(
    operations: Operations, requests: Sequence[StreamRequest], context: RequestContext
) -> list[EventStream]:
    """Opens a stream for each request, or none.

    Raises JanusError.
    """
    opening = [asyncio.create_task(operations.stream(request, context)) for request in requests]
    try:
        return await asyncio.gather(*opening)
    except BaseException:
        for task in opening:
            task.cancel()
        for stream in await asyncio.gather(*opening, return_exceptions=True):
            if isinstance(stream, EventStream):
                stream.close()
        raise


async def read_whole(streams: Sequence[EventStream], num_choices: int) -> list[Generation]:
    """Reads every stream to its end and closes it.

    Raises JanusError.
    """
    try:
        return await asyncio.gather(*(whole(stream, num_choices) for stream in streams))
    finally:
        for stream in streams:
            stream.close()


def _event_stream(request: Request, streams: Sequence[EventStream], shape: Shape) -> EventStreamResponse:
    def close() -> None:
        for stream in streams:
            stream.close()

    context = RequestContext.of(request.scope)
    first = streams[0]
    return EventStreamResponse(
        first.started.stream_id,
        chunks_of(streams, shape, context.usage),
        close,
        context,
        request.app.state.stream_limits,
        decoder_timing(first.started.timings),
    )


def _completion_logprobs(generation: Generation, choice: WholeChoice) -> CompletionLogprobs:
    return CompletionScores(len(generation.prompt_text)).logprobs(choice.scores)


def _embedding_list(body: EmbeddingRequest, response: encoder_pb2.EmbedTextResponse) -> EmbeddingList:
    encode = _base64 if body.encoding_format == "base64" else _floats
    answer: EmbeddingList = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(embedding.values)}
            for index, embedding in enumerate(response.embeddings)
        ],
        "model": response.model,
        "usage": {"prompt_tokens": response.usage.prompt_tokens, "total_tokens": response.usage.total_tokens},
    }
    if body.truncate:
        answer["usage"]["truncated"] = response.usage.truncated
    return answer


def _floats(values: Sequence[float]) -> list[float] | str:
    return list(values)


def _base64(values: Sequence[float]) -> list[float] | str:
    packed = array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()
