"""What is served: OpenAI's model objects, with the tasks, limits, arithmetic and state that Janus knows of each."""

from typing import Literal

from fastapi import APIRouter, Request, Response

from janus.v1 import models_pb2
from services.gateway.rest.answers import ModelCard, ModelList, json_response
from services.gateway.rest.openapi import answers
from services.gateway.rest.operations_of import operations_of

router = APIRouter(tags=["OpenAI"])

# A model whose worker is lost is in none of these.
_STATES: dict[models_pb2.ModelState.ValueType, Literal["ready", "loading", "draining"]] = {
    models_pb2.MODEL_STATE_READY: "ready",
    models_pb2.MODEL_STATE_LOADING: "loading",
    models_pb2.MODEL_STATE_DRAINING: "draining",
}


@router.get("/v1/models", name="models", responses=answers(ModelList, has_body=False))
async def list_models(request: Request) -> Response:
    """Every model, with the tasks that it serves and the arithmetic in force."""
    models = operations_of(request).list_models().models
    answer: ModelList = {"object": "list", "data": [model_card(model) for model in models]}
    return json_response(answer)


@router.get("/v1/models/{model:path}", name="model", responses=answers(ModelCard, has_body=False))
async def get_model(request: Request, model: str) -> Response:
    """One model; its id may hold slashes."""
    return json_response(model_card(operations_of(request).get_model(model).model))


def model_card(model: models_pb2.Model) -> ModelCard:
    defaults = model.generation_defaults
    return {
        "id": model.id,
        "object": "model",
        "created": model.created_unix_seconds,
        "owned_by": "janus",
        "parent": model.parent or None,
        "tasks": list(model.tasks),
        "default_tasks": list(model.default_tasks),
        "labels": list(model.labels),
        "max_input_tokens": model.max_input_tokens,
        "vocabulary_size": model.vocabulary_size,
        "dtype": model.dtype,
        "device": model.device,
        "kernel": model.kernel,
        "digest": model.digest,
        "state": _STATES.get(model.state, "unavailable"),
        "generation_defaults": {
            "max_tokens": defaults.max_tokens,
            "temperature": defaults.temperature,
            "top_p": defaults.top_p,
            "top_k": defaults.top_k,
        }
        if model.HasField("generation_defaults")
        else None,
    }
