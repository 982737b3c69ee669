"""The rpcs that the gateway passes on: which request is which task, and which kind of worker answers it."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from google.protobuf.message import Message

from janus.v1 import decoder_pb2, encoder_pb2, models_pb2, tokenizer_pb2

WorkerKind = Literal["encoder", "decoder"]
WORKER_KINDS: tuple[WorkerKind, ...] = ("encoder", "decoder")

# The service whose health says that a worker of this kind serves.
SERVICE_OF_KIND: Mapping[WorkerKind, str] = {
    "encoder": "janus.v1.EncoderService",
    "decoder": "janus.v1.DecoderService",
}

TaskRequest = (
    encoder_pb2.ClassifyTextRequest
    | encoder_pb2.ClassifyZeroShotRequest
    | encoder_pb2.ClassifyTokensRequest
    | encoder_pb2.FillMaskRequest
    | encoder_pb2.AnswerQuestionRequest
    | encoder_pb2.EmbedTextRequest
    | encoder_pb2.RerankTextsRequest
    | encoder_pb2.InspectAttentionRequest
)
TaskResponse = (
    encoder_pb2.ClassifyTextResponse
    | encoder_pb2.ClassifyZeroShotResponse
    | encoder_pb2.ClassifyTokensResponse
    | encoder_pb2.FillMaskResponse
    | encoder_pb2.AnswerQuestionResponse
    | encoder_pb2.EmbedTextResponse
    | encoder_pb2.RerankTextsResponse
    | encoder_pb2.InspectAttentionResponse
)
TokenizerRequest = tokenizer_pb2.TokenizeTextRequest | tokenizer_pb2.DetokenizeTokensRequest
TokenizerResponse = tokenizer_pb2.TokenizeTextResponse | tokenizer_pb2.DetokenizeTokensResponse
StreamRequest = decoder_pb2.GenerateRequest | decoder_pb2.ChatRequest
StreamResponse = decoder_pb2.GenerateResponse | decoder_pb2.ChatResponse


@dataclass(frozen=True, slots=True)
class Method:
    """One rpc. `task` is the word that models list, `id_prefix` what the ids of its answers begin with.

    Without a `worker_kind` every model serves it, and none lists it; its answers have no ids. A request that names no
    model is for the default model of the first of `default_tasks` that has one.
    """

    name: str
    task: str
    service: str
    worker_kind: WorkerKind | None
    default_tasks: tuple[str, ...]
    request: type[Message]
    response: type[Message]
    id_prefix: str

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"

    def is_served_by(self, model: models_pb2.Model) -> bool:
        return self.worker_kind is None or self.task in model.tasks


def _encoder(name: str, task: str, id_prefix: str) -> Method:
    messages = _messages(encoder_pb2, name)
    return Method(name, task, SERVICE_OF_KIND["encoder"], "encoder", (task,), *messages, id_prefix)


def _decoder(name: str, task: str, id_prefix: str) -> Method:
    messages = _messages(decoder_pb2, name)
    return Method(name, task, SERVICE_OF_KIND["decoder"], "decoder", (task,), *messages, id_prefix)


def _tokenizer(name: str, task: str) -> Method:
    messages = _messages(tokenizer_pb2, name)
    return Method(name, task, "janus.v1.TokenizerService", None, ("chat", "completions"), *messages, "")


def _messages(stubs: ModuleType, name: str) -> tuple[type[Message], type[Message]]:
    return getattr(stubs, f"{name}Request"), getattr(stubs, f"{name}Response")


METHODS: Mapping[type[Message], Method] = {
    method.request: method
    for method in (
        _encoder("ClassifyText", "classify", "cls"),
        _encoder("ClassifyZeroShot", "zero-shot-classify", "zsc"),
        _encoder("ClassifyTokens", "token-classify", "tok"),
        _encoder("FillMask", "fill-mask", "mask"),
        _encoder("AnswerQuestion", "question-answering", "qa"),
        _encoder("EmbedText", "embeddings", "emb"),
        _encoder("RerankTexts", "rerank", "rank"),
        _encoder("InspectAttention", "attention", "attn"),
        _decoder("Generate", "completions", "cmpl"),
        _decoder("Chat", "chat", "chatcmpl"),
        _tokenizer("TokenizeText", "tokenize"),
        _tokenizer("DetokenizeTokens", "detokenize"),
    )
}
