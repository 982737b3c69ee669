"""Encoder tasks: Hugging Face's bodies with the model beside them, answered in the task envelope."""

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from janus.v1 import encoder_pb2
from services.gateway.request_context import RequestContext
from services.gateway.rest.answers import Classification, TaskTimings, TaskUsage, json_response
from services.gateway.rest.body import JsonRoute
from services.gateway.rest.openapi import CLASSIFY_EXAMPLES, answers
from services.gateway.rest.operations_of import operations_of
from services.gateway.rest.schemas import ClassifyRequest
from services.gateway.rest.server_timing import encoder_timing
from services.gateway.rest.until_answered import until_answered

router = APIRouter(route_class=JsonRoute, tags=["Tasks"])


@router.post("/v1/classify", name="classify", responses=answers(Classification))
async def classify(
    request: Request, body: Annotated[ClassifyRequest, Body(openapi_examples=CLASSIFY_EXAMPLES)]
) -> Response:
    """Labels and scores for each input, best first: sentiment, topics, any sequence classification."""
    context = RequestContext.of(request.scope)
    response = await until_answered(request, operations_of(request).unary(body.request(), context))
    assert isinstance(response, encoder_pb2.ClassifyTextResponse)
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
    answer: Classification = {
        "id": response.id,
        "object": "classification",
        "model": response.model,
        "created": response.created_unix_seconds,
        "results": [
            [{"label": each.label, "score": each.score} for each in result.labels] for result in response.results
        ],
        "usage": usage,
        "metrics": metrics,
    }
    return json_response(answer, encoder_timing(response.metrics))
