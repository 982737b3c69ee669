"""A generation's events as OpenAI's objects: chunks while they come, or one object at the end.

The role comes in a first chunk of its own, `finish_reason` in a last one, usage in a chunk without choices. The last
chunk of a stream also says where the time went: headers were sent long before.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from janus.v1 import common_pb2
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


@dataclass(frozen=True, slots=True)
class ChatChunks:
    """Chunks of a chat."""

    id: str
    created: int
    model: str
    is_usage_wanted: bool

    def opening(self, index: int) -> ChatCompletionChunk | None:
        return self._chunk(index, {"role": "assistant", "content": ""})

    def text(self, index: int, text: str) -> ChatCompletionChunk:
        return self._chunk(index, {"content": text})

    def closing(self, index: int, finish_reason: str) -> ChatCompletionChunk:
        return self._chunk(index, {}, finish_reason)

    def total(self, usage: common_pb2.Usage) -> ChatCompletionChunk:
        return {**self._chunk(0, {}), "choices": [], "usage": token_usage(usage)}

    def _chunk(self, index: int, delta: ChatDelta, finish_reason: str | None = None) -> ChatCompletionChunk:
        chunk: ChatCompletionChunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        }
        if self.is_usage_wanted:
            chunk["usage"] = None
        return chunk


@dataclass(frozen=True, slots=True)
class CompletionChunks:
    """Chunks of completions; `index` is the prompt's."""

    id: str
    created: int
    model: str
    is_usage_wanted: bool

    def opening(self, _index: int) -> Completion | None:
        return None

    def text(self, index: int, text: str) -> Completion:
        return self._chunk(index, text)

    def closing(self, index: int, finish_reason: str) -> Completion:
        return self._chunk(index, "", finish_reason)

    def total(self, usage: common_pb2.Usage) -> Completion:
        return {**self._chunk(0, ""), "choices": [], "usage": token_usage(usage)}

    def _chunk(self, index: int, text: str, finish_reason: str | None = None) -> Completion:
        chunk: Completion = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}],
        }
        if self.is_usage_wanted:
            chunk["usage"] = None
        return chunk


async def chunks_of(
    streams: Sequence[EventStream], shape: ChatChunks | CompletionChunks, usage: common_pb2.Usage
) -> AsyncIterator[str]:
    """The chunks of all streams as JSON texts; `usage` is complete when they have ended."""
    each = [_chunks_of_one(stream, index, shape) for index, stream in enumerate(streams)]
    # Nothing to merge is the common case, and a task and a queue a token dearer.
    merged = each[0] if len(each) == 1 else _merge(each)
    timings: StageTimings | None = None
    async for chunk, timings in merged:  # noqa: B007
        yield chunk
    if shape.is_usage_wanted:
        total = shape.total(usage)
        if timings is not None:
            total["timings"] = timings
        yield to_json(total)


async def _chunks_of_one(
    stream: EventStream, index: int, shape: ChatChunks | CompletionChunks
) -> AsyncIterator[tuple[str, StageTimings | None]]:
    if (opening := shape.opening(index)) is not None:
        yield to_json(opening), None
    closing: Any = None
    while (response := await stream.read()) is not None:
        event = response.event
        match event.WhichOneof("event"):
            case "delta":
                # Empty while a character is incomplete.
                if event.delta.text:
                    yield to_json(shape.text(index, event.delta.text)), None
            case "finished":
                closing = shape.closing(index, FINISH_REASONS.get(event.finished.finish_reason, "stop"))
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


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole generation."""

    text: str
    finish_reason: str
    timings: common_pb2.Timings


async def whole(stream: EventStream) -> Generation:
    """Reads a stream to its end.

    Raises JanusError.
    """
    texts: list[str] = []
    finish_reason = ""
    timings = common_pb2.Timings()
    while (response := await stream.read()) is not None:
        event = response.event
        match event.WhichOneof("event"):
            case "delta":
                texts.append(event.delta.text)
            case "finished":
                finish_reason = FINISH_REASONS.get(event.finished.finish_reason, "stop")
            case "ended":
                timings = event.ended.timings
    if not finish_reason:
        raise WorkerLost("The worker left the stream before its end.")
    return Generation("".join(texts), finish_reason, timings)
