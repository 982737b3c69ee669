"""Text to token ids and back, with vLLM's bodies: what a model reads, and how long it is."""

from typing import Annotated, Any, ClassVar, NotRequired

from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example
from pydantic import Field, model_validator

# typing's own, before Python 3.12, does not tell pydantic enough.
from typing_extensions import TypedDict

from janus.v1 import tokenizer_pb2
from services.common.errors import InvalidRequest
from services.gateway.request_context import RequestContext
from services.gateway.rest import fields
from services.gateway.rest.answers import json_answer, json_response
from services.gateway.rest.body import JsonRoute
from services.gateway.rest.fields import INT32_MAX, ModelId, Neutral, checked, is_token_ids
from services.gateway.rest.openapi import answers
from services.gateway.rest.operations_of import operations_of
from services.gateway.rest.schemas import ChatMessage
from services.gateway.rest.until_answered import until_answered

router = APIRouter(route_class=JsonRoute, tags=["Tokenizer"])

TOKENIZE_EXAMPLES: dict[str, Example] = {
    "prompt": {"summary": "A prompt", "value": {"prompt": "The quick brown fox", "return_token_strs": True}},
    "messages": {
        "summary": "A conversation, as chat lays it out",
        "value": {"messages": [{"role": "user", "content": "Name the capital of France."}]},
    },
    "encoder": {"summary": "For an encoder", "value": {"model": "all-MiniLM-L6-v2", "prompt": "The quick brown fox"}},
}
DETOKENIZE_EXAMPLES: dict[str, Example] = {
    "tokens": {"summary": "Four tokens", "value": {"tokens": [504, 2365, 6354, 16438]}},
}


class Tokenization(TypedDict):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None
    offsets: NotRequired[list[tuple[int, int]]]
    model: str


class Detokenization(TypedDict):
    prompt: str
    model: str


class TokenizeRequest(fields.Body):
    """A prompt, or messages that the model's chat template lays out."""

    neutral: ClassVar[Neutral] = {
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "continue_final_message": (False,),
        "mm_processor_kwargs": ({},),
        "tools": ([],),
    }

    model: ModelId | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = Field(
        default=None, description="Absent: for a prompt, but not for messages, whose template writes them itself."
    )
    add_generation_prompt: bool | None = Field(
        default=None, description="Whether the template opens the assistant's answer; absent: yes. Only for messages."
    )
    return_token_strs: bool = Field(default=False, description="Tell each token as the vocabulary spells it.")

    @model_validator(mode="after")
    def _one_input(self) -> "TokenizeRequest":
        if self.prompt is not None and self.messages is not None:
            raise InvalidRequest("'prompt' and 'messages' are two kinds of input; send one.", param="messages")
        return self

    def request(self) -> tokenizer_pb2.TokenizeTextRequest:
        request = tokenizer_pb2.TokenizeTextRequest(
            model=self.model or "",
            add_special_tokens=self.add_special_tokens,
            add_generation_prompt=self.add_generation_prompt,
            return_token_strs=self.return_token_strs,
        )
        if self.prompt is not None:
            request.prompt = self.prompt
        if self.messages is not None:
            messages = [message.message(index) for index, message in enumerate(self.messages)]
            request.messages.CopyFrom(tokenizer_pb2.ChatMessages(messages=messages))
        return request


def _token_ids(value: Any) -> list[int]:
    if not is_token_ids(value):
        raise InvalidRequest("'tokens' must be a list of token ids.", param="tokens")
    return list(value)


_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": INT32_MAX}}


class DetokenizeRequest(fields.Body):
    """Token ids of a model's vocabulary."""

    model: ModelId | None = None
    tokens: Annotated[list[int], *checked(_token_ids, _TOKENS)]

    def request(self) -> tokenizer_pb2.DetokenizeTokensRequest:
        return tokenizer_pb2.DetokenizeTokensRequest(model=self.model or "", tokens=self.tokens)


@router.post("/v1/tokenize", name="tokenize", responses=answers(Tokenization))
async def tokenize(
    request: Request, body: Annotated[TokenizeRequest, Body(openapi_examples=TOKENIZE_EXAMPLES)]
) -> Response:
    """The tokens that a model reads; without a model those of the default decoder."""
    context = RequestContext.of(request.scope)
    response = await until_answered(request, operations_of(request).tokenize(body.request(), context))
    assert isinstance(response, tokenizer_pb2.TokenizeTextResponse)
    return await json_answer(response, lambda: _tokenization(body, response))


def _tokenization(body: TokenizeRequest, response: tokenizer_pb2.TokenizeTextResponse) -> Tokenization:
    answer: Tokenization = {
        "count": response.count,
        "max_model_len": response.max_model_len,
        "tokens": list(response.tokens),
        "token_strs": list(response.token_strs) if body.return_token_strs else None,
        "model": response.model,
    }
    if body.messages is None:
        answer["offsets"] = [(each.start, each.end) for each in response.offsets]
    return answer


@router.post("/v1/detokenize", name="detokenize", responses=answers(Detokenization))
async def detokenize(
    request: Request, body: Annotated[DetokenizeRequest, Body(openapi_examples=DETOKENIZE_EXAMPLES)]
) -> Response:
    """The text that tokens make up, special tokens included; without a model by the default decoder."""
    context = RequestContext.of(request.scope)
    response = await until_answered(request, operations_of(request).tokenize(body.request(), context))
    assert isinstance(response, tokenizer_pb2.DetokenizeTokensResponse)
    answer: Detokenization = {"prompt": response.prompt, "model": response.model}
    return json_response(answer)
