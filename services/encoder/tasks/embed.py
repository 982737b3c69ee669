"""Embeddings: one vector an input, as the checkpoint's layers make it; a shorter one on request."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from janus.v1 import encoder_pb2
from services.common.errors import ContextLengthExceeded, InvalidRequest
from services.encoder.batcher import Item
from services.encoder.tasks.inputs import EncodedInputs, TextEncoder, encode_texts
from services.encoder.tasks.task import Head


class EmbedText:
    """A vector for each text, or for token ids that a caller brings instead."""

    name = "embeddings"

    async def encode(self, request: encoder_pb2.EmbedTextRequest, head: Head, encoder: TextEncoder) -> EncodedInputs:
        if request.HasField("dimensions") and not 1 <= request.dimensions <= head.width:
            raise InvalidRequest(f"'dimensions' must be at least 1 and at most {head.width}.", param="dimensions")
        kinds = {one.WhichOneof("content") for one in request.input}
        if "tokens" not in kinds:
            texts = [one.text for one in request.input]
            encoded = await encode_texts(encoder, texts, param="input", may_truncate=request.truncate)
            return encoded.items(head)
        if len(kinds) > 1:
            raise InvalidRequest("'input' can't hold both texts and tokens.", param="input")
        given = [list(one.tokens.ids) for one in request.input]
        fitting = [_fitting(ids, f"input[{i}]", encoder, request.truncate) for i, ids in enumerate(given)]
        return EncodedInputs([[Item(ids, [0] * len(ids), head)] for ids in fitting], fitting != given)

    def decode(
        self, request: encoder_pb2.EmbedTextRequest, head: Head, outputs: Sequence[Sequence[Any]]
    ) -> encoder_pb2.EmbedTextResponse:
        vectors: Iterable[Sequence[float]] = (vector.tolist() for [vector] in outputs)
        if request.HasField("dimensions"):
            vectors = (_shortened(vector, request.dimensions) for vector in vectors)
        return encoder_pb2.EmbedTextResponse(embeddings=[encoder_pb2.Embedding(values=vector) for vector in vectors])


def _fitting(ids: list[int], name: str, encoder: TextEncoder, may_truncate: bool) -> list[int]:
    """Raises: InvalidRequest for no token or what is none; ContextLengthExceeded, unless cutting is allowed."""
    if not ids:
        raise InvalidRequest(f"'{name}' needs at least one token.", param="input")
    if not all(0 <= token_id < encoder.vocabulary_size for token_id in ids):
        message = f"'{name}' holds what is no token: ids go from 0 to {encoder.vocabulary_size - 1}."
        raise InvalidRequest(message, param="input")
    longest = encoder.max_input_tokens
    if len(ids) <= longest:
        return ids
    if not may_truncate:
        raise ContextLengthExceeded(f"'{name}' has {len(ids)} tokens, the model takes {longest}.", param="input")
    # A last special token, such as [SEP], stays last.
    return ids[: longest - 1] + ids[-1:] if ids[-1] in encoder.tokenizer.special_ids else ids[:longest]


def _shortened(vector: Sequence[float], dimensions: int) -> list[float]:
    """The leading components, of length 1 again."""
    leading = vector[:dimensions]
    length = math.sqrt(sum(x * x for x in leading)) or 1.0
    return [x / length for x in leading]
