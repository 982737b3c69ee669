"""Text classification: every label of the head with its score, best first."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from janus.v1 import encoder_pb2
from services.common.errors import InvalidRequest
from services.encoder.tasks.inputs import EncodedInputs, TextEncoder, encode_texts
from services.encoder.tasks.labels import Function
from services.encoder.tasks.task import Head

_FUNCTIONS: Mapping[int, Function | None] = {
    encoder_pb2.FUNCTION_TO_APPLY_UNSPECIFIED: None,
    encoder_pb2.FUNCTION_TO_APPLY_NONE: "none",
    encoder_pb2.FUNCTION_TO_APPLY_SIGMOID: "sigmoid",
    encoder_pb2.FUNCTION_TO_APPLY_SOFTMAX: "softmax",
}


class ClassifyText:
    """A score a label for each text."""

    name = "classify"

    async def encode(self, request: encoder_pb2.ClassifyTextRequest, head: Head, encoder: TextEncoder) -> EncodedInputs:
        parameters = request.parameters
        if parameters.HasField("top_k") and parameters.top_k < 1:
            raise InvalidRequest("'parameters.top_k' must be at least 1.", param="parameters.top_k")
        if parameters.function_to_apply not in _FUNCTIONS:
            raise InvalidRequest(
                "'parameters.function_to_apply' is no known function.", param="parameters.function_to_apply"
            )
        encoded = await encode_texts(encoder, request.inputs, param="inputs", may_truncate=request.truncate)
        return encoded.items(head)

    def decode(
        self, request: encoder_pb2.ClassifyTextRequest, head: Head, outputs: Sequence[Sequence[Any]]
    ) -> encoder_pb2.ClassifyTextResponse:
        assert head.labels is not None
        function = _FUNCTIONS[request.parameters.function_to_apply]
        top_k = request.parameters.top_k if request.parameters.HasField("top_k") else None
        ranked = head.labels.ranked(numpy.stack([logits for [logits] in outputs]), function, top_k=top_k)
        response = encoder_pb2.ClassifyTextResponse()
        for one in ranked:
            # In place: messages that are made first and copied then take twice the time.
            labels = response.results.add().labels
            for label, score in one:
                labels.add(label=label, score=score)
        return response
