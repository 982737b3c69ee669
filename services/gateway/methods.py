"""The rpcs that the gateway passes on: which request is which task, and which kind of worker answers it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from google.protobuf.message import Message

from janus.v1 import decoder_pb2, encoder_pb2

WorkerKind = Literal["encoder", "decoder"]
WORKER_KINDS: tuple[WorkerKind, ...] = ("encoder", "decoder")

# The service whose health says that a worker of this kind serves.
SERVICE_OF_KIND: Mapping[WorkerKind, str] = {
    "encoder": "janus.v1.EncoderService",
    "decoder": "janus.v1.DecoderService",
}

UnaryRequest = (
    encoder_pb2.ClassifyTextRequest
    | encoder_pb2.ClassifyZeroShotRequest
    | encoder_pb2.ClassifyTokensRequest
    | encoder_pb2.FillMaskRequest
    | encoder_pb2.AnswerQuestionRequest
    | encoder_pb2.EmbedTextRequest
    | encoder_pb2.RerankTextsRequest
    | encoder_pb2.InspectAttentionRequest
)
UnaryResponse = (
    encoder_pb2.ClassifyTextResponse
    | encoder_pb2.ClassifyZeroShotResponse
    | encoder_pb2.ClassifyTokensResponse
    | encoder_pb2.FillMaskResponse
    | encoder_pb2.AnswerQuestionResponse
    | encoder_pb2.EmbedTextResponse
    | encoder_pb2.RerankTextsResponse
    | encoder_pb2.InspectAttentionResponse
)
StreamRequest = decoder_pb2.GenerateRequest | decoder_pb2.ChatRequest
StreamResponse = decoder_pb2.GenerateResponse | decoder_pb2.ChatResponse


@dataclass(frozen=True, slots=True)
class Method:
    """One rpc. `task` is the word that models list, `id_prefix` what the ids of its answers begin with."""

    name: str
    task: str
    worker_kind: WorkerKind
    request: type[Message]
    response: type[Message]
    id_prefix: str

    @property
    def path(self) -> str:
        return f"/{SERVICE_OF_KIND[self.worker_kind]}/{self.name}"


def _encoder(name: str, task: str, id_prefix: str) -> Method:
    request, response = (getattr(encoder_pb2, f"{name}{kind}") for kind in ("Request", "Response"))
    return Method(name, task, "encoder", request, response, id_prefix)


def _decoder(name: str, task: str, id_prefix: str) -> Method:
    request, response = (getattr(decoder_pb2, f"{name}{kind}") for kind in ("Request", "Response"))
    return Method(name, task, "decoder", request, response, id_prefix)


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
    )
}
