"""Text to token ids and back, for any model of this worker; an adapter has its encoder's vocabulary."""

import asyncio
from typing import Any

import grpc

from janus.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from services.common.errors import InvalidRequest, ModelNotFound, TaskNotSupported
from services.common.logging import describe_request
from services.common.tokenization import detokenize, tokenize
from services.encoder.runner import Runner
from services.encoder.servicer import WorkerDoor

Context = grpc.aio.ServicerContext[Any, Any]


class TokenizerServicer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Reads prompts; an encoder has no chat template."""

    def __init__(self, door: WorkerDoor) -> None:
        self._door = door

    async def TokenizeText(
        self, request: tokenizer_pb2.TokenizeTextRequest, context: Context
    ) -> tokenizer_pb2.TokenizeTextResponse:
        runner, model_id = self._named(request.model)
        match request.WhichOneof("input"):
            case None:
                raise InvalidRequest("'prompt' is required.", param="prompt")
            case "messages":
                raise TaskNotSupported("This model has no chat template.", param="model")
        return await asyncio.to_thread(_tokenized, request, runner, model_id)

    async def DetokenizeTokens(
        self, request: tokenizer_pb2.DetokenizeTokensRequest, context: Context
    ) -> tokenizer_pb2.DetokenizeTokensResponse:
        runner, model_id = self._named(request.model)
        prompt = await asyncio.to_thread(
            detokenize, runner.tokenizer, request.tokens, vocabulary_size=runner.vocabulary_size
        )
        return tokenizer_pb2.DetokenizeTokensResponse(model=model_id, prompt=prompt)

    def _named(self, name: str) -> tuple[Runner, str]:
        """The runner and the id of a model; without a name the first. Raises: ModelNotFound, and what `open` raises."""
        for host, model in self._door.open().models():
            if not name or model.model_id == name:
                describe_request(model=model.model_id)
                return host.runner, model.model_id
        raise ModelNotFound("This worker has no such model.", param="model")


def _tokenized(
    request: tokenizer_pb2.TokenizeTextRequest, runner: Runner, model_id: str
) -> tokenizer_pb2.TokenizeTextResponse:
    tokens = tokenize(
        runner.tokenizer,
        request.prompt,
        param="prompt",
        add_special_tokens=request.add_special_tokens if request.HasField("add_special_tokens") else True,
        with_strings=request.return_token_strs,
        with_offsets=True,
    )
    response = tokenizer_pb2.TokenizeTextResponse(
        model=model_id,
        tokens=tokens.ids,
        count=len(tokens.ids),
        max_model_len=runner.max_input_tokens,
        token_strs=tokens.strings,
    )
    for start, end in tokens.offsets:
        response.offsets.add(start=start, end=end)
    return response
