"""Reranking: a cross-encoder reads a query with each document and scores how well the one answers the other.

Source: Nogueira and Cho, "Passage re-ranking with BERT", 2019; scores are those of sentence-transformers' CrossEncoder.
"""

from collections.abc import Sequence
from typing import Any

from janus.v1 import encoder_pb2
from services.common.errors import InvalidRequest
from services.encoder.tasks.inputs import EncodedInputs, TextEncoder, encode_pairs, require_texts
from services.encoder.tasks.task import Head


class RerankTexts:
    """Documents by their score, best first."""

    name = "rerank"

    async def encode(self, request: encoder_pb2.RerankTextsRequest, head: Head, encoder: TextEncoder) -> EncodedInputs:
        if not request.query:
            raise InvalidRequest("'query' is an empty text.", param="query")
        require_texts(request.documents, param="documents")
        if request.HasField("top_n") and request.top_n < 1:
            raise InvalidRequest("'top_n' must be at least 1.", param="top_n")
        encoded = await encode_pairs(
            encoder,
            [(request.query, document) for document in request.documents],
            names=[f"documents[{index}]" for index in range(len(request.documents))],
            param="documents",
            cut="longest",
            may_truncate=request.truncate,
        )
        # One row of all documents: they are ranked together.
        return EncodedInputs([[item for [item] in encoded.items(head).items]], encoded.is_truncated)

    def decode(
        self, request: encoder_pb2.RerankTextsRequest, head: Head, outputs: Sequence[Sequence[Any]]
    ) -> encoder_pb2.RerankTextsResponse:
        assert head.labels is not None
        [of_documents] = outputs
        scores = [head.labels.ranked(logits.tolist())[0][1] for logits in of_documents]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        if request.HasField("top_n"):
            order = order[: request.top_n]
        return encoder_pb2.RerankTextsResponse(
            results=[
                encoder_pb2.RankedText(
                    index=index,
                    relevance_score=scores[index],
                    document=request.documents[index] if request.return_documents else None,
                )
                for index in order
            ]
        )
