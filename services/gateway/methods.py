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

UnaryRequest = encoder_pb2.ClassifyTextRequest | encoder_pb2.EmbedTextRequest
UnaryResponse = encoder_pb2.ClassifyTextResponse | encoder_pb2.EmbedTextResponse
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


METHODS: Mapping[type[Message], Method] = {
    method.request: method
    for method in (
        Method(
            "ClassifyText",
            "classify",
            "encoder",
            encoder_pb2.ClassifyTextRequest,
            encoder_pb2.ClassifyTextResponse,
            "cls",
        ),
        Method(
            "EmbedText", "embeddings", "encoder", encoder_pb2.EmbedTextRequest, encoder_pb2.EmbedTextResponse, "emb"
        ),
        Method("Generate", "completions", "decoder", decoder_pb2.GenerateRequest, decoder_pb2.GenerateResponse, "cmpl"),
        Method("Chat", "chat", "decoder", decoder_pb2.ChatRequest, decoder_pb2.ChatResponse, "chatcmpl"),
    )
}
