"""Hugging Face's own route: the model in the path, a bare task body in, a bare answer out.

So `huggingface_hub.InferenceClient(model="http://.../models/NAME")` works. No body names its task: its shape tells a
question, labels to choose from, and the fields that only feature extraction has; anything else is for the model's own
head, and for its vectors when it has none. Every shape is what the client parses: a list for one text where it expects
one, an object for the one answer to a question, and always a list of vectors.

Source: huggingface_hub's InferenceClient and the task specifications that it is generated from.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Body, Request, Response
from pydantic import Field, model_validator

from janus.v1 import encoder_pb2
from services.common.errors import InvalidRequest, TaskNotSupported
from services.gateway.rest import task_examples as examples
from services.gateway.rest.answers import json_answer
from services.gateway.rest.body import JsonRoute
from services.gateway.rest.fields import Int32, Neutral, Truncate, checked, parsed, ranged
from services.gateway.rest.openapi import answers
from services.gateway.rest.operations_of import operations_of
from services.gateway.rest.pair_schemas import QuestionAnsweringRequest
from services.gateway.rest.server_timing import encoder_timing
from services.gateway.rest.task_answers import BareAnswer
from services.gateway.rest.task_results import results_of
from services.gateway.rest.task_schemas import (
    ClassifyRequest,
    FillMaskRequest,
    Inputs,
    TaskBody,
    TokenClassifyRequest,
    ZeroShotRequest,
)
from services.gateway.rest.tasks import ask

router = APIRouter(route_class=JsonRoute, tags=["Hugging Face"])


class FeatureExtractionRequest(TaskBody):
    """Hugging Face's feature extraction, whose parameters stand beside the inputs."""

    neutral: ClassVar[Neutral] = {
        "encoding_format": ("float",),
        "parameters": ({},),
        "prompt_name": (),
        "truncation_direction": ("right", "Right"),
    }

    inputs: Inputs
    normalize: bool = Field(
        default=False, description="Vectors of length 1, where the checkpoint does not make them so; never false."
    )
    dimensions: Int32 | None = ranged("dimensions", "Keep this many leading components and normalise again.")
    truncate: Truncate = False

    @model_validator(mode="after")
    def _nothing_is_undone(self) -> "FeatureExtractionRequest":
        if "normalize" in self.model_fields_set and not self.normalize:
            raise InvalidRequest("'normalize' can't be false: what a checkpoint does is not undone.", param="normalize")
        return self

    def request(self) -> encoder_pb2.EmbedTextRequest:
        return encoder_pb2.EmbedTextRequest(
            model=self.model or "",
            input=[encoder_pb2.EmbedTextInput(text=text) for text in self.inputs],
            dimensions=self.dimensions,
            truncate=self.truncate,
        )

    def spelled(self, param: str | None) -> str | None:
        return "inputs" if param == "input" else param


# The heads that a model may have of its own, before the vectors that every encoder gives.
_BODY_OF_TASK: Mapping[str, type[TaskBody]] = {
    "classify": ClassifyRequest,
    "token-classify": TokenClassifyRequest,
    "fill-mask": FillMaskRequest,
    "question-answering": QuestionAnsweringRequest,
    "embeddings": FeatureExtractionRequest,
}
_ONLY_OF_FEATURE_EXTRACTION = frozenset(
    {"normalize", "prompt_name", "truncation_direction", "dimensions", "encoding_format"}
)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    if "model" in value:
        raise InvalidRequest("'model' is not a field here: the path names the model.", param="model")
    return value


BareBody = Annotated[
    dict[str, Any],
    *checked(
        _object,
        {
            "title": "HuggingFaceBody",
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "inputs": {
                    "description": "A text or a list of texts; a question with its context, or a list of those."
                },
                "parameters": {"type": "object", "description": "As the task's own route takes them."},
                "truncate": {"type": "boolean", "description": "Cut an input that is too long."},
                "options": {"description": "Accepted and ignored: it changes nothing here."},
            },
        },
    ),
]


@router.post("/models/{model:path}", name="huggingface", responses=answers(BareAnswer))
async def infer(
    request: Request, model: str, body: Annotated[BareBody, Body(openapi_examples=examples.HUGGING_FACE)]
) -> Response:
    """What this model does, as Hugging Face's own clients ask for it; the model's id may hold slashes."""
    tasks = operations_of(request).get_model(model).model.tasks
    bare = {name: value for name, value in body.items() if name != "options" and value is not None}
    asked = parsed(_body_type(bare, tasks), {**bare, "model": model})
    response = await ask(request, asked)

    def answer() -> Any:
        return _bare(asked, bare["inputs"], results_of(response))

    return await json_answer(response, answer, encoder_timing(response.metrics))


def _body_type(body: Mapping[str, Any], tasks: Any) -> type[TaskBody]:
    """Raises TaskNotSupported for a model that only generates or ranks."""
    parameters = body.get("parameters")
    if isinstance(parameters, dict) and "candidate_labels" in parameters:
        return ZeroShotRequest
    if not _ONLY_OF_FEATURE_EXTRACTION.isdisjoint(body):
        return FeatureExtractionRequest
    if _is_question(body.get("inputs")):
        return QuestionAnsweringRequest
    for task, body_type in _BODY_OF_TASK.items():
        if task in tasks:
            return body_type
    raise TaskNotSupported("This model has no task that this route serves.", param="model")


def _is_question(inputs: Any) -> bool:
    first = inputs[0] if isinstance(inputs, list) and inputs else inputs
    return isinstance(first, dict) and ("question" in first or "context" in first)


def _bare(asked: TaskBody, inputs: Any, results: list[Any]) -> Any:
    """The results in the nesting of the task's pipeline: what is asked once is answered once."""
    match asked:
        case FeatureExtractionRequest():
            return [_normalised(vector) for vector in results] if asked.normalize else results
        case ClassifyRequest():
            return results
        case QuestionAnsweringRequest() if asked.parameters.top_k in (None, 1):
            results = [answers[0] if answers else answers for answers in results]
    return results if isinstance(inputs, list) else results[0]


def _normalised(vector: list[float]) -> list[float]:
    length = math.hypot(*vector) or 1.0
    return [x / length for x in vector]
