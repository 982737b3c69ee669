"""The shapes of the answers: what routes build, what the type checker checks, what the OpenAPI document shows.

`Problem` is RFC 9457 and OpenAI's error in one; the others are OpenAI's objects. The tasks' stand in `task_answers`.
"""

import json
from typing import Any, Literal, NotRequired

from fastapi import Response

# typing's own, before Python 3.12, does not tell pydantic enough.
from typing_extensions import TypedDict

to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def json_response(answer: Any, headers: dict[str, str] | None = None) -> Response:
    """Compact UTF-8, never NaN; what is sent was built here, so it is not validated again."""
    return Response(to_json(answer), headers=headers, media_type="application/json")


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


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: None
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
    logprobs: None
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
    logprobs: None
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
