"""Encoder tasks: Hugging Face's bodies with the model beside them, answered in the task envelope."""

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from services.common.errors import JanusError
from services.gateway.methods import TaskResponse
from services.gateway.request_context import RequestContext
from services.gateway.rest import task_answers
from services.gateway.rest import task_examples as examples
from services.gateway.rest.answers import json_answer
from services.gateway.rest.body import JsonRoute
from services.gateway.rest.errors import respell
from services.gateway.rest.openapi import answers
from services.gateway.rest.operations_of import operations_of
from services.gateway.rest.pair_schemas import QuestionAnsweringRequest, RerankRequest
from services.gateway.rest.server_timing import encoder_timing
from services.gateway.rest.task_results import task_answer
from services.gateway.rest.task_schemas import (
    AttentionRequest,
    ClassifyRequest,
    FillMaskRequest,
    TaskBody,
    TokenClassifyRequest,
    ZeroShotRequest,
)
from services.gateway.rest.until_answered import until_answered

router = APIRouter(route_class=JsonRoute, tags=["Tasks"])


@router.post("/v1/classify", name="classify", responses=answers(task_answers.Classification))
async def classify(
    request: Request, body: Annotated[ClassifyRequest, Body(openapi_examples=examples.CLASSIFY)]
) -> Response:
    """Labels and scores for each input, best first: sentiment, topics, any sequence classification."""
    return await _answer(request, body)


@router.post(
    "/v1/zero-shot-classify", name="zero-shot-classify", responses=answers(task_answers.ZeroShotClassification)
)
async def classify_zero_shot(
    request: Request, body: Annotated[ZeroShotRequest, Body(openapi_examples=examples.ZERO_SHOT)]
) -> Response:
    """The request's own labels for each input, best first, by a model that judges what follows from a text."""
    return await _answer(request, body)


@router.post("/v1/token-classify", name="token-classify", responses=answers(task_answers.TokenClassification))
async def classify_tokens(
    request: Request, body: Annotated[TokenClassifyRequest, Body(openapi_examples=examples.TOKEN_CLASSIFY)]
) -> Response:
    """Labels of tokens, or of the words and entities that they make up, with their characters in the text."""
    return await _answer(request, body)


@router.post("/v1/fill-mask", name="fill-mask", responses=answers(task_answers.MaskFilling))
async def fill_mask(
    request: Request, body: Annotated[FillMaskRequest, Body(openapi_examples=examples.FILL_MASK)]
) -> Response:
    """The likeliest tokens in the place of each mask."""
    return await _answer(request, body)


@router.post("/v1/question-answering", name="question-answering", responses=answers(task_answers.QuestionAnswering))
async def answer_question(
    request: Request, body: Annotated[QuestionAnsweringRequest, Body(openapi_examples=examples.QUESTION_ANSWERING)]
) -> Response:
    """The passages of a context that answer a question, best first; a long context is read in windows."""
    return await _answer(request, body)


@router.post("/v1/rerank", name="rerank", responses=answers(task_answers.Reranking))
async def rerank(request: Request, body: Annotated[RerankRequest, Body(openapi_examples=examples.RERANK)]) -> Response:
    """Documents by how well each answers a query, best first."""
    return await _answer(request, body)


@router.post("/v1/attention", name="attention", responses=answers(task_answers.Attention))
async def inspect_attention(
    request: Request, body: Annotated[AttentionRequest, Body(openapi_examples=examples.ATTENTION)]
) -> Response:
    """Which token looks at which, layer by layer and head by head."""
    return await _answer(request, body)


async def ask(request: Request, body: TaskBody) -> TaskResponse:
    """What a worker answers to this body.

    Raises JanusError, with the field's name as the body has it.
    """
    context = RequestContext.of(request.scope)
    try:
        return await until_answered(request, operations_of(request).unary(body.request(), context))
    except JanusError as error:
        respell(error, body.spelled(error.param))
        raise


async def _answer(request: Request, body: TaskBody) -> Response:
    response = await ask(request, body)
    return await json_answer(response, lambda: task_answer(response), encoder_timing(response.metrics))
