"""Attention inspection: which token looks at which, as whole matrices or as the strongest edges.

Rollout follows what flows from token to token through all layers: the product of the layers' mean matrices, half of
each being the residual connection that carries a token past the layer. Source: Abnar and Zuidema, "Quantifying
attention flow in transformers", 2020.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy

from janus.v1 import encoder_pb2
from services.common.errors import ContextLengthExceeded, InvalidRequest
from services.encoder.batcher import Item
from services.encoder.tasks.inputs import Encoded, EncodedInputs, Encoding, TextEncoder, encode_texts
from services.encoder.tasks.task import Head

MAX_TOKENS: Final = 512
MAX_WEIGHTS: Final = 2**20
"""Of one answer."""
_WEIGHTS_PER_EDGE: Final = 4
"""What an edge counts for in an answer: it is a message, not a bare number."""

Reduction: TypeAlias = Literal["none", "mean", "rollout"]
Matrix: TypeAlias = "numpy.ndarray[Any, numpy.dtype[numpy.floating[Any]]]"
_REDUCTIONS: Mapping[int, Reduction] = {
    encoder_pb2.ATTENTION_REDUCTION_UNSPECIFIED: "none",
    encoder_pb2.ATTENTION_REDUCTION_NONE: "none",
    encoder_pb2.ATTENTION_REDUCTION_MEAN: "mean",
    encoder_pb2.ATTENTION_REDUCTION_ROLLOUT: "rollout",
}


class InspectAttention:
    """The attention of chosen layers and heads."""

    name = "attention"

    async def encode(
        self, request: encoder_pb2.InspectAttentionRequest, head: Head, encoder: TextEncoder
    ) -> EncodedInputs:
        parameters = request.parameters
        if parameters.reduce not in _REDUCTIONS:
            raise InvalidRequest("'parameters.reduce' is no known reduction.", param="parameters.reduce")
        if parameters.HasField("top_k_edges") and parameters.top_k_edges < 1:
            raise InvalidRequest("'parameters.top_k_edges' must be at least 1.", param="parameters.top_k_edges")
        layers = _chosen(parameters.layers, encoder.num_layers, "layers")
        heads = _chosen(parameters.heads, encoder.num_heads, "heads")
        reduction = _REDUCTIONS[parameters.reduce]
        encoded = await encode_texts(encoder, request.inputs, param="inputs", may_truncate=request.truncate)
        shown = await asyncio.to_thread(_shown, encoder, encoded, request.truncate)
        views = [_View(one, encoder, layers, heads, reduction, _top_k(parameters)) for one in shown.encodings]
        num_weights = sum(view.num_weights for view in views)
        if num_weights > MAX_WEIGHTS:
            raise InvalidRequest(
                f"The answer would hold {num_weights} weights, more than {MAX_WEIGHTS}: choose layers, heads, a "
                "reduction or 'top_k_edges'.",
                param="parameters",
            )
        items = [
            Item(one.ids, one.type_ids, head, rows=layers, reduce=view, cost=_cost(len(one)))
            for one, view in zip(shown.encodings, views, strict=True)
        ]
        return EncodedInputs([[item] for item in items], shown.is_truncated)

    def decode(
        self, request: encoder_pb2.InspectAttentionRequest, head: Head, outputs: Sequence[Sequence[Any]]
    ) -> encoder_pb2.InspectAttentionResponse:
        return encoder_pb2.InspectAttentionResponse(results=[text for [text] in outputs])


def _cost(num_tokens: int) -> int:
    """A pass of its own, and a look at every 32 columns of its matrices: measured, in tokens of an ordinary pass."""
    return 64 + num_tokens * (1 + num_tokens // 32)


def _shown(encoder: TextEncoder, encoded: Encoded, may_truncate: bool) -> Encoded:
    """Raises: ContextLengthExceeded for what is longer than is shown, unless cutting is allowed."""
    encodings, is_truncated = [], encoded.is_truncated
    for index, (text, whole) in enumerate(zip(encoded.texts, encoded.encodings, strict=True)):
        encoding = whole
        if len(whole) > MAX_TOKENS:
            if not may_truncate:
                message = f"'inputs[{index}]' has {len(whole)} tokens, attention is shown for {MAX_TOKENS} at most."
                raise ContextLengthExceeded(message, param="inputs")
            encoding, is_truncated = encoder.tokenizer.encode_within(MAX_TOKENS, text), True
        encodings.append(encoding)
    return Encoded(encodings, is_truncated)


def _chosen(numbers: Sequence[int], count: int, name: str) -> list[int]:
    """Counted from 0, negative ones from the last; all when none is named. Raises: InvalidRequest."""
    for number in numbers:
        if not -count <= number < count:
            param = f"parameters.{name}"
            raise InvalidRequest(f"'{param}' must be at least {-count} and at most {count - 1}.", param=param)
    return sorted({number % count for number in numbers}) or list(range(count))


def _top_k(parameters: encoder_pb2.InspectAttentionParameters) -> int | None:
    return parameters.top_k_edges if parameters.HasField("top_k_edges") else None


@dataclass(frozen=True, slots=True)
class _View:
    """What a request wants to see of one input; called with the weights of its layers, each `[H, T, T]`."""

    encoding: Encoding
    encoder: TextEncoder
    layers: Sequence[int]
    heads: Sequence[int]
    reduction: Reduction
    top_k: int | None

    @property
    def num_weights(self) -> int:
        """How many numbers it will hold at most."""
        num_tokens = len(self.encoding)
        num_matrices = len(self.layers) * len(self.heads) if self.reduction == "none" else 1
        if self.top_k is None:
            return num_matrices * num_tokens**2
        return num_matrices * _WEIGHTS_PER_EDGE * min(num_tokens**2, self.top_k)

    def __call__(self, weights_of_layers: Iterable[Matrix]) -> encoder_pb2.InspectedText:
        chosen = (weights_HTT[list(self.heads)] for weights_HTT in weights_of_layers)
        if self.reduction == "none":
            matrices = list(self._each(chosen))
        else:
            reduce = _mean if self.reduction == "mean" else _rollout
            matrices = [self._shown(reduce(weights_HTT.mean(axis=0) for weights_HTT in chosen))]
        return encoder_pb2.InspectedText(tokens=list(self._tokens()), matrices=matrices)

    def _each(self, chosen: Iterable[Matrix]) -> Iterator[encoder_pb2.AttentionMatrix]:
        for layer, weights_HTT in zip(self.layers, chosen, strict=True):
            for head, weights_TT in zip(self.heads, weights_HTT, strict=True):
                shown = self._shown(weights_TT)
                shown.layer, shown.head = layer, head
                yield shown

    def _shown(self, weights_TT: Matrix) -> encoder_pb2.AttentionMatrix:
        if self.top_k is None:
            return encoder_pb2.AttentionMatrix(weights=weights_TT.ravel().tolist())
        return encoder_pb2.AttentionMatrix(edges=list(self._edges(weights_TT, self.top_k)))

    def _edges(self, weights_TT: Matrix, top_k: int) -> Iterator[encoder_pb2.AttentionEdge]:
        """The strongest first, equal ones in the order of the text; none from or to a special token."""
        (own,) = numpy.nonzero(numpy.array(self.encoding.special_mask) == 0)
        among = weights_TT[numpy.ix_(own, own)]
        places = numpy.argsort(-among, axis=None, kind="stable")[:top_k]
        sources, targets = numpy.unravel_index(places, among.shape)
        weights = among[sources, targets]
        for source, target, weight in zip(own[sources].tolist(), own[targets].tolist(), weights.tolist(), strict=True):
            yield encoder_pb2.AttentionEdge(source=source, target=target, weight=weight)

    def _tokens(self) -> Iterator[encoder_pb2.InspectedToken]:
        for token_id, (start, end) in zip(self.encoding.ids, self.encoding.offsets, strict=True):
            text = self.encoder.tokenizer.id_to_token(token_id) or ""
            yield encoder_pb2.InspectedToken(token=token_id, token_str=text, start=start, end=end)


def _mean(matrices: Iterable[Matrix]) -> Matrix:
    total, count = None, 0
    for matrix in matrices:
        total = matrix if total is None else total + matrix
        count += 1
    assert total is not None
    return total / numpy.float32(count)


def _rollout(matrices: Iterable[Matrix]) -> Matrix:
    """From the first layer to the last."""
    flow = None
    for matrix in matrices:
        step = (matrix + numpy.eye(len(matrix), dtype=numpy.float32)) / 2
        flow = step if flow is None else step @ flow
    assert flow is not None
    return flow
