"""Text to token ids and back: a prompt as it is, or a conversation as the checkpoint's chat template lays it out."""

import asyncio
from typing import Any

import grpc

from janus.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from services.common.errors import InvalidRequest
from services.common.tokenization import detokenize, tokenize
from services.decoder.servicer import WorkerDoor
from services.decoder.worker import DecoderWorker

Context = grpc.aio.ServicerContext[Any, Any]


class TokenizerServicer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """What Generate and Chat do before they generate, for callers who want to see it."""

    def __init__(self, door: WorkerDoor) -> None:
        self._door = door

    async def TokenizeText(
        self, request: tokenizer_pb2.TokenizeTextRequest, context: Context
    ) -> tokenizer_pb2.TokenizeTextResponse:
        return await asyncio.to_thread(_tokenized, request, self._door.named(request.model))

    async def DetokenizeTokens(
        self, request: tokenizer_pb2.DetokenizeTokensRequest, context: Context
    ) -> tokenizer_pb2.DetokenizeTokensResponse:
        worker = self._door.named(request.model)
        prompt = await asyncio.to_thread(
            detokenize, worker.runner.tokenizer, request.tokens, vocabulary_size=worker.capacity.vocabulary_size
        )
        return tokenizer_pb2.DetokenizeTokensResponse(model=worker.model_id, prompt=prompt)


def _tokenized(request: tokenizer_pb2.TokenizeTextRequest, worker: DecoderWorker) -> tokenizer_pb2.TokenizeTextResponse:
    """Raises: InvalidRequest for no input, too long a text or a conversation that the template refuses, and
    TaskNotSupported without a template."""
    is_chat = request.WhichOneof("input") == "messages"
    tokens = tokenize(
        worker.runner.tokenizer,
        _laid_out(request, worker) if is_chat else _prompt(request),
        param="messages" if is_chat else "prompt",
        # The template writes the special tokens itself.
        add_special_tokens=request.add_special_tokens if request.HasField("add_special_tokens") else not is_chat,
        with_strings=request.return_token_strs,
        # Places in a text that the caller never saw would tell it nothing.
        with_offsets=not is_chat,
    )
    response = tokenizer_pb2.TokenizeTextResponse(
        model=worker.model_id,
        tokens=tokens.ids,
        count=len(tokens.ids),
        max_model_len=worker.capacity.max_total_tokens,
        token_strs=tokens.strings,
    )
    for start, end in tokens.offsets:
        response.offsets.add(start=start, end=end)
    return response


def _prompt(request: tokenizer_pb2.TokenizeTextRequest) -> str:
    if not request.HasField("prompt"):
        raise InvalidRequest("'prompt' or 'messages' is required.", param="prompt")
    return request.prompt


def _laid_out(request: tokenizer_pb2.TokenizeTextRequest, worker: DecoderWorker) -> str:
    opens_answer = request.add_generation_prompt if request.HasField("add_generation_prompt") else True
    messages = [(message.role, message.content) for message in request.messages.messages]
    return worker.template.render(messages, add_generation_prompt=opens_answer)
