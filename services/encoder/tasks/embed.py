"""Embeddings: one vector an input, as the checkpoint's layers make it; a shorter one on request."""

from collections.abc import Sequence
from typing import Any

import numpy

from janus.v1 import encoder_pb2
from services.common.errors import ContextLengthExceeded, InvalidRequest
from services.encoder.batcher import Item
from services.encoder.tasks.inputs import EncodedInputs, TextEncoder, encode_texts
from services.encoder.tasks.scores import Scores
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
        given = [one.tokens.ids for one in request.input]
        fitting = [_fitting(ids, f"input[{i}]", encoder, request.truncate) for i, ids in enumerate(given)]
        is_truncated = any(len(ids) < len(whole) for ids, whole in zip(fitting, given, strict=True))
        return EncodedInputs([[Item(ids, [0] * len(ids), head)] for ids in fitting], is_truncated)

    def decode(
        self, request: encoder_pb2.EmbedTextRequest, head: Head, outputs: Sequence[Sequence[Any]]
    ) -> encoder_pb2.EmbedTextResponse:
        vectors = numpy.stack([vector for [vector] in outputs])
        if request.HasField("dimensions"):
            vectors = _shortened(vectors, request.dimensions)
        return encoder_pb2.EmbedTextResponse(
            embeddings=[encoder_pb2.Embedding(values=vector) for vector in vectors.tolist()]
        )


def _fitting(given: Sequence[int], name: str, encoder: TextEncoder, may_truncate: bool) -> list[int]:
    """Raises: InvalidRequest for no token or what is none; ContextLengthExceeded, unless cutting is allowed."""
    if not given:
        raise InvalidRequest(f"'{name}' needs at least one token.", param="input")
    longest = encoder.max_input_tokens
    # Their number first: millions that are too many are not worth looking at.
    if len(given) > longest and not may_truncate:
        raise ContextLengthExceeded(f"'{name}' has {len(given)} tokens, the model takes {longest}.", param="input")
    ids = list(given[:longest])
    if given[-1] in encoder.tokenizer.special_ids:
        ids[-1] = given[-1]  # such as [SEP]: what was last stays last
    if min(ids) < 0 or max(ids) >= encoder.vocabulary_size:
        message = f"'{name}' holds what is no token: ids go from 0 to {encoder.vocabulary_size - 1}."
        raise InvalidRequest(message, param="input")
    return ids


def _shortened(vectors: Scores, dimensions: int) -> Scores:
    """The leading components, of length 1 again; a vector without length stays what it is."""
    leading = vectors[:, :dimensions]
    lengths = numpy.sqrt((leading * leading).sum(axis=1, keepdims=True))
    lengths[lengths == 0] = 1
    shortened: Scores = leading / lengths
    return shortened
