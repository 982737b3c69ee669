"""The bodies of OpenAI's routes, and the messages that they become.

Names are the protos' names, so `param` is right on both transports. Ranges stand in `validation`, which both
transports pass; here stand types and shapes.
"""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from janus.v1 import common_pb2, decoder_pb2, encoder_pb2
from services.common.errors import InvalidRequest
from services.gateway.rest.fields import (
    INT32_MAX,
    TEXT,
    TEXTS,
    Body,
    Int32,
    Int64,
    ModelId,
    Neutral,
    Truncate,
    checked,
    is_texts,
    is_token_ids,
    ranged,
    text_or_texts,
)
from services.gateway.validation import MAX_BIAS, MAX_STOP_STRINGS, RANGES

MAX_PROMPTS = 128
COMPLETIONS_DEFAULT_MAX_TOKENS = 16

_TOKEN_ID = re.compile("[0-9]{1,10}", re.ASCII)
_TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": INT32_MAX}, "minItems": 1}
_TEXTS_OR_TOKENS = {"anyOf": [TEXT, TEXTS, _TOKEN_IDS, {"type": "array", "items": _TOKEN_IDS, "minItems": 1}]}
_CONTENT = {
    "anyOf": [
        TEXT,
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "text"],
                "properties": {"type": {"const": "text"}, "text": TEXT},
            },
        },
    ],
    "description": "A text, or text parts, which are joined by line ends.",
}


def _texts_or_tokens(name: str) -> Any:
    def check(value: Any) -> list[str] | list[list[int]]:
        if isinstance(value, str):
            return [value]
        if value == []:
            raise InvalidRequest(f"'{name}' can't be empty.", param=name)
        if is_texts(value):
            return list(value)
        if is_token_ids(value):
            return [value]
        if isinstance(value, list) and all(is_token_ids(each) for each in value):
            return list(value)
        raise InvalidRequest(
            f"'{name}' must be a string, a list of strings, a list of token ids or a list of such lists.", param=name
        )

    return check


def _biases(value: Any) -> dict[int, float]:
    param = "logit_bias"
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{param}' must be an object of token ids and numbers.", param=param)
    if not all(_TOKEN_ID.fullmatch(key) and int(key) <= INT32_MAX for key in value):
        raise InvalidRequest(f"'{param}' has a key that is no token id.", param=param)
    if not all(type(bias) in (int, float) and -MAX_BIAS <= bias <= MAX_BIAS for bias in value.values()):
        raise InvalidRequest(f"'{param}' takes numbers from -{MAX_BIAS} to {MAX_BIAS}.", param=param)
    return {int(key): float(bias) for key, bias in value.items()}


_BIAS = {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS}
Biases = Annotated[dict[int, float], *checked(_biases, {"type": "object", "additionalProperties": _BIAS})]
Stop = Annotated[
    list[str],
    *checked(text_or_texts("stop"), {"anyOf": [TEXT, {**TEXTS, "minItems": 0, "maxItems": MAX_STOP_STRINGS}]}),
]
Prompts = Annotated[list[str] | list[list[int]], *checked(_texts_or_tokens("prompt"), _TEXTS_OR_TOKENS)]
EmbeddingInputs = Annotated[list[str] | list[list[int]], *checked(_texts_or_tokens("input"), _TEXTS_OR_TOKENS)]


class StreamOptions(Body):
    """What a stream tells besides its text."""

    ignored = frozenset({"include_obfuscation"})

    include_usage: bool = Field(default=False, description="A last chunk with the usage and no choices.")


class GenerationBody(Body):
    """What chat and completions share."""

    ignored = frozenset(
        {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
    )
    neutral: ClassVar[Neutral] = {
        "structured_outputs": ({},),
        "priority": (0,),
    }

    model: ModelId | None = None
    max_tokens: Int32 | None = ranged("max_tokens", "How many tokens to generate at most.")
    min_tokens: Int32 | None = ranged("min_tokens", "No end before this many tokens.")
    temperature: float | None = ranged("temperature", "0 takes the likeliest token each time.")
    top_p: float | None = ranged("top_p", "Draw from the likeliest tokens that together have this probability.")
    top_k: Int32 | None = ranged("top_k", "Draw from this many of the likeliest tokens; 0: from all.")
    min_p: float | None = ranged("min_p", "Leave out tokens less likely than this share of the likeliest.")
    repetition_penalty: float | None = ranged("repetition_penalty", "Above 1, what was said or asked comes less again.")
    presence_penalty: float | None = ranged("presence_penalty", "Taken off the score of a token that was said.")
    frequency_penalty: float | None = ranged("frequency_penalty", "The same, for each time that it was said.")
    logit_bias: Biases = Field(default={}, description="Added to the scores of these tokens.")
    allowed_token_ids: list[Int32] | None = Field(default=None, description="Draw from these tokens alone.")
    n: Int32 | None = ranged("n", "How many choices, each drawn by itself.")
    seed: Int64 | None = Field(default=None, description="The same seed gives the same answer.")
    stop: Stop = Field(default=[], description="End before any of these texts.")
    stop_token_ids: list[Int32] = Field(default=[], description="End at any of these tokens.")
    ignore_eos: bool = Field(default=False, description="Go on after the model's end token.")
    stream: bool = Field(default=False, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "GenerationBody":
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("'stream_options' is only for 'stream': true.", param="stream_options")
        return self

    @property
    def is_usage_wanted(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def num_choices(self) -> int:
        """Of each prompt."""
        return 1 if self.n is None else self.n

    def _options(
        self, max_tokens: int | None, *, logprobs: bool, top_logprobs: int | None, echo: bool = False
    ) -> decoder_pb2.GenerationOptions:
        allowed = self.allowed_token_ids
        return decoder_pb2.GenerationOptions(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            allowed_token_ids=None if allowed is None else common_pb2.TokenIds(ids=allowed),
            n=self.n,
            seed=self.seed,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
            echo=echo,
        )


class ChatMessage(Body):
    """One message; keys that nobody knows are ignored, since clients send an answer back whole."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"] = Field(description="developer is system.")
    content: Annotated[Any, *checked(lambda value: value, _CONTENT)] = None
    name: str = ""

    def message(self, index: int) -> decoder_pb2.ChatMessage:
        param = f"messages[{index}].content"
        return decoder_pb2.ChatMessage(role=self.role, content=self._text(param), name=self.name)

    def _text(self, param: str) -> str:
        if isinstance(self.content, str):
            return self.content
        if self.content is None and self.role == "assistant":
            # An assistant's message that only called tools has none.
            return ""
        if isinstance(self.content, list):
            return "\n".join(_part_text(part, f"{param}[{index}]") for index, part in enumerate(self.content))
        raise InvalidRequest(f"'{param}' must be a string or a list of text parts.", param=param)


def _part_text(part: Any, param: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise InvalidRequest(f"'{param}' must be a text part; other kinds are not supported.", param=param)
    if not isinstance(part.get("text"), str):
        raise InvalidRequest(f"'{param}.text' must be a string.", param=f"{param}.text")
    return str(part["text"])


class ChatCompletionRequest(GenerationBody):
    """OpenAI's chat completion, with `top_k`, `min_p`, `repetition_penalty`, `stop_token_ids`, `min_tokens`,
    `ignore_eos`, `allowed_token_ids`, `add_generation_prompt` and `continue_final_message` beside it."""

    ignored = GenerationBody.ignored | {"parallel_tool_calls", "prediction"}
    neutral: ClassVar[Neutral] = {
        **GenerationBody.neutral,
        "audio": (),
        "function_call": ("none",),
        "functions": ([],),
        "modalities": (["text"],),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "tool_choice": ("none",),
        "tools": ([],),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: list[ChatMessage]
    max_completion_tokens: Int32 | None = ranged("max_tokens", "The newer name of max_tokens.")
    logprobs: bool = Field(default=False, description="Tell the log probability of each token.")
    top_logprobs: Int32 | None = ranged("top_logprobs", "And those of so many of the likeliest in its place.")
    add_generation_prompt: bool | None = Field(
        default=None, description="Open an assistant's message; absent: true, unless the final message goes on."
    )
    continue_final_message: bool = Field(default=False, description="Go on with the final message.")

    @model_validator(mode="after")
    def _one_limit(self) -> "ChatCompletionRequest":
        newer = self.max_completion_tokens
        if newer is not None and newer not in RANGES["max_tokens"]:
            raise InvalidRequest(
                f"'max_completion_tokens' must be {RANGES['max_tokens']}.", param="max_completion_tokens"
            )
        limits = {self.max_tokens, newer} - {None}
        if len(limits) > 1:
            raise InvalidRequest(
                "'max_tokens' and 'max_completion_tokens' are one limit; send one.", param="max_completion_tokens"
            )
        return self

    def spelled(self, param: str | None) -> str | None:
        """A field's name as this body has it: the one limit has two."""
        is_newer = param == "max_tokens" and self.max_tokens is None and self.max_completion_tokens is not None
        return "max_completion_tokens" if is_newer else param

    def request(self) -> decoder_pb2.ChatRequest:
        limit = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        return decoder_pb2.ChatRequest(
            model=self.model or "",
            messages=[message.message(index) for index, message in enumerate(self.messages)],
            options=self._options(limit, logprobs=self.logprobs, top_logprobs=self.top_logprobs),
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
        )


class CompletionRequest(GenerationBody):
    """OpenAI's older completion: one prompt or several, as texts or as token ids."""

    neutral: ClassVar[Neutral] = {
        **GenerationBody.neutral,
        "best_of": (1,),
        "suffix": ("",),
    }

    prompt: Prompts
    logprobs: Int32 | None = ranged("top_logprobs", "Tell the log probability of each token, and of so many likeliest.")
    echo: bool = Field(default=False, description="Begin with the prompt; then max_tokens may be 0.")

    @model_validator(mode="after")
    def _not_too_many_prompts(self) -> "CompletionRequest":
        if len(self.prompt) > MAX_PROMPTS:
            raise InvalidRequest(f"'prompt' takes at most {MAX_PROMPTS} prompts.", param="prompt")
        return self

    def spelled(self, param: str | None) -> str | None:
        """A field's name as this body has it: the number stands for both."""
        return "logprobs" if param == "top_logprobs" else param

    def requests(self) -> list[decoder_pb2.GenerateRequest]:
        """One request a prompt, in order."""
        limit = COMPLETIONS_DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        is_told = self.logprobs is not None
        options = self._options(limit, logprobs=is_told, top_logprobs=self.logprobs, echo=self.echo)
        return [self._request(prompt, options) for prompt in self.prompt]

    def _request(self, prompt: str | list[int], options: decoder_pb2.GenerationOptions) -> decoder_pb2.GenerateRequest:
        model = self.model or ""
        if isinstance(prompt, str):
            return decoder_pb2.GenerateRequest(model=model, text=prompt, options=options)
        return decoder_pb2.GenerateRequest(model=model, token_ids=common_pb2.TokenIds(ids=prompt), options=options)


class EmbeddingRequest(Body):
    """OpenAI's embeddings, with `truncate` beside them."""

    ignored = frozenset({"user"})

    model: ModelId | None = None
    input: EmbeddingInputs
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="base64: little-endian float32, a quarter of the bytes."
    )
    dimensions: Int32 | None = ranged("dimensions", "Keep this many leading components and normalise again.")
    truncate: Truncate = False

    def request(self) -> encoder_pb2.EmbedTextRequest:
        inputs = [
            encoder_pb2.EmbedTextInput(text=each)
            if isinstance(each, str)
            else encoder_pb2.EmbedTextInput(tokens=common_pb2.TokenIds(ids=each))
            for each in self.input
        ]
        return encoder_pb2.EmbedTextRequest(
            model=self.model or "", input=inputs, dimensions=self.dimensions, truncate=self.truncate
        )
