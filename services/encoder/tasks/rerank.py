"""Reranking: a cross-encoder reads a query with each document and scores how well the one answers the other.

Source: Nogueira and Cho, "Passage re-ranking with BERT", 2019; scores are those of sentence-transformers' CrossEncoder.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from janus.v1 import encoder_pb2
from services.common.errors import InvalidRequest
from services.encoder.tasks.inputs import EncodedInputs, TextEncoder, encode_pairs, require_texts
from services.encoder.tasks.labels import Function, UnknownLabels
from services.encoder.tasks.task import Head

_FUNCTIONS: dict[str, Function] = {"Identity": "none", "Sigmoid": "sigmoid"}


def score_function(folder: Path, config: Mapping[str, Any]) -> Function:
    """What becomes of a score: what the newest of sentence-transformers' places names, else a sigmoid.

    Raises: UnknownLabels for another function, or a file that can't be read.
    """
    path = folder / "config_sentence_transformers.json"
    try:
        newest = json.loads(path.read_text("utf-8")) if path.exists() else {}
        newer = config.get("sentence_transformers") or {}
        oldest = config.get("sbert_ce_default_activation_function")
        name = newest.get("activation_fn") or newer.get("activation_fn") or oldest or "torch.nn.Sigmoid"
        package, _, kind = name.rpartition(".")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UnknownLabels(f"{folder}: what becomes of its scores can't be read: {error!r}") from error
    if not f"{package}.".startswith("torch.") or kind not in _FUNCTIONS:
        raise UnknownLabels(f"{folder}: the activation {name} is not served")
    return _FUNCTIONS[kind]


class RerankTexts:
    """Documents by their score, best first."""

    name = "rerank"

    async def encode(self, request: encoder_pb2.RerankTextsRequest, head: Head, encoder: TextEncoder) -> EncodedInputs:
        query = request.query  # once: a message makes a new text each time that it is asked
        if not query:
            raise InvalidRequest("'query' is an empty text.", param="query")
        require_texts(request.documents, param="documents")
        if request.HasField("top_n") and request.top_n < 1:
            raise InvalidRequest("'top_n' must be at least 1.", param="top_n")
        encoded = await encode_pairs(
            encoder,
            [(query, document) for document in request.documents],
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
        scores = head.labels.scores(numpy.stack(of_documents))[:, 0]
        order = numpy.argsort(-scores, kind="stable").tolist()
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
