"""From a worker's response to the answer of its task: one envelope for all of them, and the results of each."""

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

from google.protobuf.message import Message

from janus.v1 import encoder_pb2
from services.gateway.methods import TaskResponse
from services.gateway.rest.task_answers import (
    Answer,
    AttentionMatrix,
    Entity,
    InspectedText,
    LabelScore,
    MaskCandidate,
    RankedDocument,
    TaskTimings,
    TaskUsage,
)

_OBJECTS: Mapping[type[Message], str] = {
    encoder_pb2.ClassifyTextResponse: "classification",
    encoder_pb2.ClassifyZeroShotResponse: "zero_shot_classification",
    encoder_pb2.ClassifyTokensResponse: "token_classification",
    encoder_pb2.FillMaskResponse: "fill_mask",
    encoder_pb2.AnswerQuestionResponse: "question_answering",
    encoder_pb2.RerankTextsResponse: "rerank",
    encoder_pb2.InspectAttentionResponse: "attention",
}


def task_answer(response: TaskResponse) -> dict[str, Any]:
    """The envelope of any task's response, with its results."""
    usage: TaskUsage = {
        "prompt_tokens": response.usage.prompt_tokens,
        "total_tokens": response.usage.total_tokens,
        "truncated": response.usage.truncated,
    }
    metrics: TaskTimings = {
        "queue_ms": response.metrics.queue_ms,
        "tokenize_ms": response.metrics.tokenize_ms,
        "inference_ms": response.metrics.inference_ms,
        "total_ms": response.metrics.total_ms,
    }
    return {
        "id": response.id,
        "object": _OBJECTS[type(response)],
        "model": response.model,
        "created": response.created_unix_seconds,
        "results": results_of(response),
        "usage": usage,
        "metrics": metrics,
    }


@singledispatch
def results_of(response: TaskResponse) -> list[Any]:
    """A response's results without the envelope."""
    raise TypeError(f"no results of {type(response).__name__}")


@results_of.register(encoder_pb2.ClassifyTextResponse)
@results_of.register(encoder_pb2.ClassifyZeroShotResponse)
def _(
    response: encoder_pb2.ClassifyTextResponse | encoder_pb2.ClassifyZeroShotResponse,
) -> list[list[LabelScore]]:
    return [[{"label": each.label, "score": each.score} for each in result.labels] for result in response.results]


@results_of.register
def _(response: encoder_pb2.ClassifyTokensResponse) -> list[list[Entity]]:
    return [[_entity(each) for each in result.entities] for result in response.results]


def _entity(entity: encoder_pb2.Entity) -> Entity:
    where: Entity = {"score": entity.score, "word": entity.word, "start": entity.start, "end": entity.end}
    if entity.WhichOneof("name") == "entity_group":
        return {"entity_group": entity.entity_group, **where}
    single: Entity = {"entity": entity.entity, **where}
    if entity.HasField("index"):
        single["index"] = entity.index
    return single


@results_of.register
def _(response: encoder_pb2.FillMaskResponse) -> list[list[MaskCandidate] | list[list[MaskCandidate]]]:
    filled = [[_candidates(mask) for mask in result.masks] for result in response.results]
    return [masks[0] if len(masks) == 1 else masks for masks in filled]


def _candidates(mask: encoder_pb2.FilledMask) -> list[MaskCandidate]:
    return [
        {"score": each.score, "token": each.token, "token_str": each.token_str, "sequence": each.sequence}
        for each in mask.candidates
    ]


@results_of.register
def _(response: encoder_pb2.AnswerQuestionResponse) -> list[list[Answer]]:
    return [
        [{"score": each.score, "start": each.start, "end": each.end, "answer": each.answer} for each in result.answers]
        for result in response.results
    ]


@results_of.register
def _(response: encoder_pb2.EmbedTextResponse) -> list[list[float]]:
    return [list(embedding.values) for embedding in response.embeddings]


@results_of.register
def _(response: encoder_pb2.RerankTextsResponse) -> list[RankedDocument]:
    return [_ranked(each) for each in response.results]


def _ranked(ranked: encoder_pb2.RankedText) -> RankedDocument:
    document: RankedDocument = {"index": ranked.index, "relevance_score": ranked.relevance_score}
    if ranked.HasField("document"):
        document["document"] = {"text": ranked.document}
    return document


@results_of.register
def _(response: encoder_pb2.InspectAttentionResponse) -> list[InspectedText]:
    return [
        {
            "tokens": [token.token_str for token in result.tokens],
            "token_ids": [token.token for token in result.tokens],
            "offsets": [(token.start, token.end) for token in result.tokens],
            "matrices": [_matrix(matrix, len(result.tokens)) for matrix in result.matrices],
        }
        for result in response.results
    ]


def _matrix(matrix: encoder_pb2.AttentionMatrix, num_tokens: int) -> AttentionMatrix:
    shown: AttentionMatrix = {
        "layer": matrix.layer if matrix.HasField("layer") else None,
        "head": matrix.head if matrix.HasField("head") else None,
    }
    if matrix.weights:
        weights = list(matrix.weights)
        shown["weights"] = [weights[at : at + num_tokens] for at in range(0, len(weights), num_tokens)]
    else:
        shown["edges"] = [
            {"source": edge.source, "target": edge.target, "weight": edge.weight} for edge in matrix.edges
        ]
    return shown
