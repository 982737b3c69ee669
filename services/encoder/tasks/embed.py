"""Embeddings: one normalised vector an input, as long as asked for."""

import math
from collections.abc import Iterable, Sequence

from janus.v1 import encoder_pb2
from services.common.errors import InvalidRequest
from services.encoder.tasks.inputs import EncodedInputs, TextEncoder, Tokens, encode_texts, fit
from services.encoder.tasks.task import Head


class EmbedText:
    """A vector for each text, or for token ids that a caller brings instead."""

    name = "embeddings"

    async def encode(self, request: encoder_pb2.EmbedTextRequest, head: Head, encoder: TextEncoder) -> EncodedInputs:
        if request.HasField("dimensions") and not 1 <= request.dimensions <= encoder.width:
            raise InvalidRequest(f"'dimensions' must be at least 1 and at most {encoder.width}.", param="dimensions")
        kinds = {one.WhichOneof("content") for one in request.input}
        if "tokens" not in kinds:
            tokens = await encode_texts(encoder, [one.text for one in request.input], param="input")
        elif len(kinds) == 1:
            size = encoder.vocabulary_size
            tokens = [_given(one.tokens.ids, index, size) for index, one in enumerate(request.input)]
        else:
            raise InvalidRequest("'input' can't hold both texts and tokens.", param="input")
        return fit(encoder, tokens, head, param="input", may_truncate=request.truncate)

    def decode(
        self, request: encoder_pb2.EmbedTextRequest, head: Head, outputs: Sequence[Sequence[float]]
    ) -> encoder_pb2.EmbedTextResponse:
        vectors: Iterable[Sequence[float]] = outputs
        if request.HasField("dimensions"):
            vectors = (_shortened(vector, request.dimensions) for vector in outputs)
        return encoder_pb2.EmbedTextResponse(embeddings=[encoder_pb2.Embedding(values=vector) for vector in vectors])


def _given(token_ids: Sequence[int], index: int, vocabulary_size: int) -> Tokens:
    for token_id in token_ids:
        if not 0 <= token_id < vocabulary_size:
            message = f"'input[{index}]' holds what is no token: ids go from 0 to {vocabulary_size - 1}."
            raise InvalidRequest(message, param="input")
    return Tokens(list(token_ids), [0] * len(token_ids))


def _shortened(vector: Sequence[float], dimensions: int) -> list[float]:
    """The leading components, of length 1 again."""
    leading = vector[:dimensions]
    length = math.sqrt(sum(x * x for x in leading)) or 1.0
    return [x / length for x in leading]
