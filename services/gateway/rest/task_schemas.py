"""The bodies of the encoder's tasks, Hugging Face's with the model beside them, and the messages that they become.

Names are the protos' names, so `param` is right on both transports; what a value may be stands in `validation`.
"""

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import Field

from janus.v1 import common_pb2, encoder_pb2
from services.common.errors import InvalidRequest
from services.gateway.methods import TaskRequest
from services.gateway.rest.fields import (
    TEXT,
    TEXTS,
    Body,
    Int32,
    ModelId,
    Truncate,
    checked,
    ranged,
    text_or_texts,
)

_TEXT_OR_TEXTS = {"anyOf": [TEXT, TEXTS]}


def _labels(value: Any) -> list[str]:
    if isinstance(value, str):
        return [label.strip() for label in value.split(",") if label.strip()]
    return text_or_texts("parameters.candidate_labels")(value)


def _targets(value: Any) -> list[str]:
    if value == []:
        raise InvalidRequest("'parameters.targets' can't be empty.", param="parameters.targets")
    return text_or_texts("parameters.targets")(value)


Inputs = Annotated[list[str], *checked(text_or_texts("inputs"), _TEXT_OR_TEXTS)]
Labels = Annotated[list[str], *checked(_labels, _TEXT_OR_TEXTS)]
Targets = Annotated[list[str], *checked(_targets, _TEXT_OR_TEXTS)]


class TaskBody(Body, ABC):
    """What the bodies of all tasks share."""

    model: ModelId | None = None

    @abstractmethod
    def request(self) -> TaskRequest:
        """The message that this body is."""

    def spelled(self, param: str | None) -> str | None:
        """A field's name as this body has it."""
        return param


class TextsBody(TaskBody):
    """What the bodies of tasks on single texts share."""

    inputs: Inputs
    truncate: Truncate = False


class ClassifyParameters(Body):
    """How scores are made of logits, and how many are told."""

    function_to_apply: Literal["none", "sigmoid", "softmax"] | None = Field(
        default=None, description="Absent: what the checkpoint says."
    )
    top_k: Int32 | None = ranged("parameters.top_k", "How many labels, best first; absent: all.")

    def message(self) -> encoder_pb2.ClassifyTextParameters:
        function = encoder_pb2.FUNCTION_TO_APPLY_UNSPECIFIED
        if self.function_to_apply is not None:
            function = encoder_pb2.FunctionToApply.Value(f"FUNCTION_TO_APPLY_{self.function_to_apply.upper()}")
        return encoder_pb2.ClassifyTextParameters(function_to_apply=function, top_k=self.top_k)


class ClassifyRequest(TextsBody):
    """Hugging Face's text classification, with the model in the body."""

    parameters: ClassifyParameters = ClassifyParameters()

    def request(self) -> encoder_pb2.ClassifyTextRequest:
        return encoder_pb2.ClassifyTextRequest(
            model=self.model or "", inputs=self.inputs, parameters=self.parameters.message(), truncate=self.truncate
        )


class ZeroShotParameters(Body):
    """The labels, and how the model is asked about each."""

    candidate_labels: Labels = Field(description="A list, or one text with commas between the labels.")
    hypothesis_template: str | None = Field(
        default=None, description="With {} once, in the place of the label; absent: This example is {}."
    )
    multi_label: bool = Field(default=False, description="Each label on its own, instead of one of them all.")

    def message(self) -> encoder_pb2.ClassifyZeroShotParameters:
        return encoder_pb2.ClassifyZeroShotParameters(
            candidate_labels=self.candidate_labels,
            hypothesis_template=self.hypothesis_template,
            multi_label=self.multi_label,
        )


class ZeroShotRequest(TextsBody):
    """Hugging Face's zero-shot classification, with the model in the body."""

    parameters: ZeroShotParameters

    def request(self) -> encoder_pb2.ClassifyZeroShotRequest:
        return encoder_pb2.ClassifyZeroShotRequest(
            model=self.model or "", inputs=self.inputs, parameters=self.parameters.message(), truncate=self.truncate
        )


class TokenClassifyParameters(Body):
    """How the labels of tokens become those of entities."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = Field(
        default=None,
        description="none: every token by itself; simple: neighbouring tokens of one entity; first, average, max: "
        "whole words, by their first token, their mean or their surest token. Absent: none.",
    )
    ignore_labels: list[str] | None = Field(default=None, description="Labels that are left out; absent: O alone.")
    stride: Int32 | None = ranged(
        "parameters.stride",
        "Read a text that is too long in windows that overlap by so many tokens; needs a strategy other than none.",
    )

    def message(self) -> encoder_pb2.ClassifyTokensParameters:
        strategy = encoder_pb2.AGGREGATION_STRATEGY_UNSPECIFIED
        if self.aggregation_strategy is not None:
            name = f"AGGREGATION_STRATEGY_{self.aggregation_strategy.upper()}"
            strategy = encoder_pb2.AggregationStrategy.Value(name)
        ignored = None if self.ignore_labels is None else common_pb2.Texts(texts=self.ignore_labels)
        return encoder_pb2.ClassifyTokensParameters(
            aggregation_strategy=strategy, ignore_labels=ignored, stride=self.stride
        )


class TokenClassifyRequest(TextsBody):
    """Hugging Face's token classification, with the model in the body."""

    parameters: TokenClassifyParameters = TokenClassifyParameters()

    def request(self) -> encoder_pb2.ClassifyTokensRequest:
        return encoder_pb2.ClassifyTokensRequest(
            model=self.model or "", inputs=self.inputs, parameters=self.parameters.message(), truncate=self.truncate
        )


class FillMaskParameters(Body):
    """Which candidates are told."""

    top_k: Int32 | None = ranged("parameters.top_k", "How many candidates a mask, best first; absent: 5.")
    targets: Targets = Field(default=[], description="Score these words alone; absent: the whole vocabulary.")

    def message(self) -> encoder_pb2.FillMaskParameters:
        return encoder_pb2.FillMaskParameters(top_k=self.top_k, targets=self.targets)


class FillMaskRequest(TextsBody):
    """Hugging Face's mask filling, with the model in the body."""

    parameters: FillMaskParameters = FillMaskParameters()

    def request(self) -> encoder_pb2.FillMaskRequest:
        return encoder_pb2.FillMaskRequest(
            model=self.model or "", inputs=self.inputs, parameters=self.parameters.message(), truncate=self.truncate
        )


class AttentionParameters(Body):
    """Which matrices, and what becomes of them."""

    layers: list[Int32] | None = Field(
        default=None, min_length=1, description="Counted from 0, negative ones from the last; absent: all."
    )
    heads: list[Int32] | None = Field(default=None, min_length=1, description="The same for heads.")
    reduce: Literal["none", "mean", "rollout"] | None = Field(
        default=None,
        description="none: a matrix a layer and head; mean: their mean; rollout: what flows from token to token "
        "through all of the layers. Absent: none.",
    )
    top_k_edges: Int32 | None = ranged(
        "parameters.top_k_edges",
        "Instead of whole matrices the strongest edges of each, special tokens left out.",
    )

    def message(self) -> encoder_pb2.InspectAttentionParameters:
        reduction = encoder_pb2.ATTENTION_REDUCTION_UNSPECIFIED
        if self.reduce is not None:
            reduction = encoder_pb2.AttentionReduction.Value(f"ATTENTION_REDUCTION_{self.reduce.upper()}")
        return encoder_pb2.InspectAttentionParameters(
            layers=self.layers, heads=self.heads, reduce=reduction, top_k_edges=self.top_k_edges
        )


class AttentionRequest(TextsBody):
    """Which token of each input looks at which."""

    parameters: AttentionParameters = AttentionParameters()

    def request(self) -> encoder_pb2.InspectAttentionRequest:
        return encoder_pb2.InspectAttentionRequest(
            model=self.model or "", inputs=self.inputs, parameters=self.parameters.message(), truncate=self.truncate
        )
