"""A generation's events as OpenAI's objects: chunks while they come, or one object at the end.

The role comes in a first chunk of its own, `finish_reason` in a last one, usage in a chunk without choices. The last
chunk of a stream also says where the time went: headers were sent long before.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from janus.v1 import common_pb2, streams_pb2
from services.common.errors import WorkerLost
from services.gateway.event_stream import FINISH_REASONS, EventStream
from services.gateway.rest.answers import (
    ChatCompletionChunk,
    ChatDelta,
    Completion,
    StageTimings,
    TokenUsage,
    to_json,
)
from services.gateway.rest.logprobs import CompletionScores, Scores, chat_logprobs

_Item = TypeVar("_Item")


def token_usage(usage: common_pb2.Usage) -> TokenUsage:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def stage_timings(timings: common_pb2.Timings) -> StageTimings:
    return {
        "queue_ms": timings.queue_ms,
        "tokenize_ms": timings.tokenize_ms,
        "prefill_ms": timings.prefill_ms,
        "decode_ms": timings.decode_ms,
    }


class ChatChunks:
    """Chunks of one choice of a chat."""

    def __init__(self, shape: "ChatShape", index: int) -> None:
        self._shape = shape
        self._index = index

    def opening(self, _prompt_text: str) -> ChatCompletionChunk | None:
        return self._chunk({"role": "assistant", "content": ""})

    def text(self, text: str, scores: Scores) -> ChatCompletionChunk:
        return self._chunk({"content": text}, scores)

    def closing(self, finish_reason: str, scores: Scores) -> ChatCompletionChunk:
        return self._chunk({}, scores, finish_reason)

    def _chunk(self, delta: ChatDelta, scores: Scores = (), finish_reason: str | None = None) -> ChatCompletionChunk:
        logprobs = chat_logprobs(scores) if scores else None
        chunk = self._shape.empty()
        chunk["choices"] = [
            {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        ]
        return chunk


class CompletionChunks:
    """Chunks of one choice of a completion, which may begin with its prompt."""

    def __init__(self, shape: "CompletionShape", index: int) -> None:
        self._shape = shape
        self._index = index
        self._scores = CompletionScores()

    def opening(self, prompt_text: str) -> Completion | None:
        self._scores = CompletionScores(len(prompt_text))
        return self._chunk(prompt_text) if prompt_text else None

    def text(self, text: str, scores: Scores) -> Completion:
        return self._chunk(text, scores)

    def closing(self, finish_reason: str, scores: Scores) -> Completion:
        return self._chunk("", scores, finish_reason)

    def _chunk(self, text: str, scores: Scores = (), finish_reason: str | None = None) -> Completion:
        logprobs = self._scores.logprobs(scores) if scores else None
        chunk = self._shape.empty()
        chunk["choices"] = [{"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}]
        return chunk


@dataclass(frozen=True, slots=True)
class ChatShape:
    """What all chunks of a chat have."""

    id: str
    created: int
    model: str
    num_choices: int
    is_usage_wanted: bool

    def choice(self, index: int) -> ChatChunks:
        return ChatChunks(self, index)

    def empty(self) -> ChatCompletionChunk:
        chunk: ChatCompletionChunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [],
        }
        if self.is_usage_wanted:
            chunk["usage"] = None
        return chunk


@dataclass(frozen=True, slots=True)
class CompletionShape:
    """What all chunks of completions have; each prompt has `num_choices`, numbered on from those of the one before."""

    id: str
    created: int
    model: str
    num_choices: int
    is_usage_wanted: bool

    def choice(self, index: int) -> CompletionChunks:
        return CompletionChunks(self, index)

    def empty(self) -> Completion:
        chunk: Completion = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [],
        }
        if self.is_usage_wanted:
            chunk["usage"] = None
        return chunk


Shape = ChatShape | CompletionShape


async def chunks_of(streams: Sequence[EventStream], shape: Shape, usage: common_pb2.Usage) -> AsyncIterator[str]:
    """The chunks of all streams as JSON texts; `usage` is complete when they have ended."""
    each = [_chunks_of_one(stream, number, shape) for number, stream in enumerate(streams)]
    # Nothing to merge is the common case, and a task and a queue a token dearer.
    merged = each[0] if len(each) == 1 else _merge(each)
    timings: StageTimings | None = None
    async for chunk, timings in merged:  # noqa: B007
        yield chunk
    if shape.is_usage_wanted:
        total = shape.empty()
        total["usage"] = token_usage(usage)
        if timings is not None:
            total["timings"] = timings
        yield to_json(total)


async def _chunks_of_one(
    stream: EventStream, number: int, shape: Shape
) -> AsyncIterator[tuple[str, StageTimings | None]]:
    choices = [shape.choice(number * shape.num_choices + index) for index in range(shape.num_choices)]
    for choice in choices:
        if (opening := choice.opening(stream.started.prompt_text)) is not None:
            yield to_json(opening), None
    # Of tokens whose text has not come; a stream that asks for none has none.
    scores: list[list[streams_pb2.TokenScores]] = [[] for _ in choices]
    num_open = len(choices)
    closing: Any = None
    while (response := await stream.read()) is not None:
        event = response.event
        match event.WhichOneof("event"):
            case "delta":
                index = event.delta.choice
                scores[index] += event.delta.logprobs
                # Empty while a character is incomplete.
                if event.delta.text:
                    yield to_json(choices[index].text(event.delta.text, scores[index])), None
                    scores[index] = []
            case "finished":
                index = event.finished.choice
                reason = FINISH_REASONS.get(event.finished.finish_reason, "stop")
                closing = choices[index].closing(reason, scores[index])
                num_open -= 1
                if num_open:
                    yield to_json(closing), None
            case "ended" if closing is not None:
                timings = stage_timings(event.ended.timings)
                if not shape.is_usage_wanted:
                    closing["timings"] = timings
                yield to_json(closing), timings


async def _merge(iterators: Sequence[AsyncIterator[_Item]]) -> AsyncIterator[_Item]:
    """Items in the order in which they come; the first failure is raised and ends the others."""
    items: asyncio.Queue[_Item | _End] = asyncio.Queue(maxsize=len(iterators))

    async def pour(iterator: AsyncIterator[_Item]) -> None:
        error: BaseException | None = None
        try:
            async for item in iterator:
                await items.put(item)
        except Exception as failure:
            error = failure
        await items.put(_End(error))

    tasks = [asyncio.create_task(pour(iterator)) for iterator in iterators]
    num_running = len(tasks)
    try:
        while num_running:
            item = await items.get()
            if not isinstance(item, _End):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                num_running -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


@dataclass(slots=True)
class WholeChoice:
    """A whole answer."""

    text: str = ""
    finish_reason: str = ""
    scores: list[streams_pb2.TokenScores] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole generation: its choices in order, and the prompt's text where that was asked for."""

    choices: list[WholeChoice]
    prompt_text: str
    timings: common_pb2.Timings


async def whole(stream: EventStream, num_choices: int) -> Generation:
    """Reads a stream to its end.

    Raises JanusError.
    """
    choices = [WholeChoice() for _ in range(num_choices)]
    texts: list[list[str]] = [[] for _ in choices]
    timings = common_pb2.Timings()
    while (response := await stream.read()) is not None:
        event = response.event
        match event.WhichOneof("event"):
            case "delta":
                texts[event.delta.choice].append(event.delta.text)
                choices[event.delta.choice].scores += event.delta.logprobs
            case "finished":
                reason = FINISH_REASONS.get(event.finished.finish_reason, "stop")
                choices[event.finished.choice].finish_reason = reason
            case "ended":
                timings = event.ended.timings
    if not all(choice.finish_reason for choice in choices):
        raise WorkerLost("The worker left the stream before its end.")
    for choice, pieces in zip(choices, texts, strict=True):
        choice.text = "".join(pieces)
    return Generation(choices, stream.started.prompt_text, timings)
