"""The shapes of the answers: what routes build, what the type checker checks, what the OpenAPI document shows.

`Problem` is RFC 9457 and OpenAI's error in one; the others are OpenAI's objects. The tasks' stand in `task_answers`.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, NotRequired

from fastapi import Response
from google.protobuf.message import Message

# typing's own, before Python 3.12, does not tell pydantic enough.
from typing_extensions import TypedDict

to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def json_response(answer: Any, headers: dict[str, str] | None = None) -> Response:
    """Compact UTF-8, never NaN; what is sent was built here, so it is not validated again."""
    return Response(to_json(answer), headers=headers, media_type="application/json")


# So many numbers or texts are encoded in a few milliseconds.
_PIECE_VALUES: Final = 2**12


async def json_answer(response: Message, answer: Callable[[], Any], headers: dict[str, str] | None = None) -> Response:
    """What `answer` makes of a worker's `response`, as `json_response` has it.

    A large one is made in a thread, and encoded there a piece at a time: one call of the encoder for all of it would
    hold the interpreter's lock, and with it the event loop, for seconds.
    """
    if _room_after_message(response, _PIECE_VALUES) >= 0:
        return json_response(answer(), headers)
    return await asyncio.to_thread(_encoded_in_pieces, answer, headers)


def _encoded_in_pieces(answer: Callable[[], Any], headers: dict[str, str] | None) -> Response:
    body = b"".join(map(str.encode, json_pieces(answer())))
    return Response(body, headers=headers, media_type="application/json")


def json_pieces(value: Any) -> Iterator[str]:
    """What `to_json` makes of a value, in pieces of a few thousand numbers or texts."""
    if _room_after(value, _PIECE_VALUES) >= 0:
        yield to_json(value)
    elif isinstance(value, dict):
        before = "{"
        for name, each in value.items():
            yield f"{before}{to_json(name)}:"
            yield from json_pieces(each)
            before = ","
        yield "}"
    else:
        before = "["
        for piece in _pieces_of_list(value):
            yield before
            yield from piece
            before = ","
        yield "]"


def _pieces_of_list(values: Sequence[Any]) -> Iterator[Iterator[str]]:
    """Without the commas between: as many elements together as make a piece, or the pieces of one that is larger."""
    begin, room = 0, _PIECE_VALUES
    for end, each in enumerate(values):
        room = _room_after(each, room)
        if room < 0:
            if begin < end:
                yield iter((to_json(values[begin:end])[1:-1],))
            begin, room = end, _room_after(each, _PIECE_VALUES)
            if room < 0:
                yield json_pieces(each)
                begin, room = end + 1, _PIECE_VALUES
    if begin < len(values):
        yield iter((to_json(values[begin:])[1:-1],))


def _room_after(value: Any, room: int) -> int:
    """What is left of a piece that had room for so many values; negative, and not counted to the end, for too many."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return room - 1
    elif not value or not isinstance(value[0], dict | list | tuple):
        return room - len(value)
    for each in value:
        if room < 0:
            break
        room = _room_after(each, room)
    return room


def _room_after_message(message: Message, room: int) -> int:
    """The same for a message; its size in bytes would be counted to the end."""
    for field, value in message.ListFields():
        if not field.is_repeated:
            room = room - 1 if field.message_type is None else _room_after_message(value, room)
        elif field.message_type is None:
            room -= len(value)
        else:
            for each in value:
                room = _room_after_message(each, room)
                if room < 0:
                    return room
    return room


FinishReasonWord = Literal["stop", "length"]


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class TokenUsage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class StageTimings(TypedDict):
    queue_ms: float
    tokenize_ms: float
    prefill_ms: float
    decode_ms: float


class Logprob(TypedDict):
    """`bytes` tells what the token is where `token` can't: a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Logprob):
    top_logprobs: list[Logprob]


class ChatLogprobs(TypedDict):
    content: list[TokenLogprob]
    refusal: None


class CompletionLogprobs(TypedDict):
    """An entry a token in each list; `text_offset` counts characters of the whole text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage


class ChatDelta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatCompletionChunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[TokenUsage | None]
    timings: NotRequired[StageTimings]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class Completion(TypedDict):
    """Whole answers and chunks alike, as ever."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[TokenUsage | None]
    timings: NotRequired[StageTimings]


class EmbeddingVector(TypedDict):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int
    truncated: NotRequired[bool]


class EmbeddingList(TypedDict):
    object: Literal["list"]
    data: list[EmbeddingVector]
    model: str
    usage: EmbeddingUsage


class GenerationDefaults(TypedDict):
    """Where a request names nothing. `max_tokens` is of a chat; without chat, of a completion: 16 for every model."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int


class ModelCard(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["janus"]
    parent: str | None
    tasks: list[str]
    default_tasks: list[str]
    labels: list[str]
    max_input_tokens: int
    vocabulary_size: int
    dtype: str
    device: str
    kernel: str
    digest: str
    state: Literal["ready", "loading", "draining", "unavailable"]
    generation_defaults: GenerationDefaults | None


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelCard]


class OpenAIError(TypedDict):
    message: str
    type: str
    param: str | None
    code: str


class Problem(TypedDict):
    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: OpenAIError
    request_id: str
    retry_after_ms: int | None
