"""Zero-shot classification: a model of natural language inference judges how well each label follows from the text.

Each label is an input of its own, "text [SEP] hypothesis", and the scores are made of the entailment logits. Source:
Yin et al., "Benchmarking zero-shot text classification", 2019; equal to transformers' pipeline.
"""

from collections.abc import Sequence
from typing import Any

import numpy

from janus.v1 import encoder_pb2
from services.common.errors import InvalidRequest
from services.encoder.tasks.inputs import (
    MAX_PAIRS,
    EncodedInputs,
    TextEncoder,
    encode_pairs,
    require_few_characters,
    require_texts,
)
from services.encoder.tasks.labels import Labels, WideScores
from services.encoder.tasks.scores import Scores, softmax
from services.encoder.tasks.task import Head

DEFAULT_TEMPLATE = "This example is {}."


class ClassifyZeroShot:
    """A score for each label that the request brings."""

    name = "zero-shot-classify"

    async def encode(
        self, request: encoder_pb2.ClassifyZeroShotRequest, head: Head, encoder: TextEncoder
    ) -> EncodedInputs:
        require_texts(request.inputs, param="inputs")
        labels = request.parameters.candidate_labels
        require_texts(labels, param="parameters.candidate_labels")
        if len(request.inputs) * len(labels) > MAX_PAIRS:
            raise InvalidRequest(
                f"{len(request.inputs)} inputs with {len(labels)} labels are more than {MAX_PAIRS} pairs: send several "
                "requests.",
                param="inputs",
            )
        hypotheses = _hypotheses(request.parameters, len(request.inputs))
        encoded = await encode_pairs(
            encoder,
            [(text, hypothesis) for text in request.inputs for hypothesis in hypotheses],
            names=[f"inputs[{index}]" for index in range(len(request.inputs)) for _ in labels],
            param="inputs",
            cut="first",
            may_truncate=request.truncate,
        )
        items = [item for [item] in encoded.items(head).items]
        rows = [items[start : start + len(labels)] for start in range(0, len(items), len(labels))]
        return EncodedInputs(rows, encoded.is_truncated)

    def decode(
        self, request: encoder_pb2.ClassifyZeroShotRequest, head: Head, outputs: Sequence[Sequence[Any]]
    ) -> encoder_pb2.ClassifyZeroShotResponse:
        assert head.labels is not None
        parameters = request.parameters
        names = list(parameters.candidate_labels)
        results = []
        for of_labels in outputs:
            scores = _scores(numpy.stack(of_labels), head.labels, parameters.multi_label)
            # Equal scores come out last first, as the reference has them.
            order = numpy.argsort(scores, kind="stable")[::-1]
            ranked = zip(order.tolist(), scores[order].tolist(), strict=True)
            results.append(
                encoder_pb2.TextClassification(
                    labels=[encoder_pb2.LabelScore(label=names[index], score=score) for index, score in ranked]
                )
            )
        return encoder_pb2.ClassifyZeroShotResponse(results=results)


def _hypotheses(parameters: encoder_pb2.ClassifyZeroShotParameters, num_inputs: int) -> list[str]:
    """Raises: InvalidRequest for a template without a place for the label, with several, or too long to be repeated."""
    template = parameters.hypothesis_template if parameters.HasField("hypothesis_template") else DEFAULT_TEMPLATE
    if template.count("{}") != 1:
        param = "parameters.hypothesis_template"
        raise InvalidRequest(f"'{param}' must hold {{}} once, in the place of the label.", param=param)
    num_characters = sum(len(template) - len("{}") + len(label) for label in parameters.candidate_labels)
    require_few_characters(num_inputs * num_characters, param="inputs")
    # Not str.format: a template is a text of the caller's, not a program.
    return [template.replace("{}", label) for label in parameters.candidate_labels]


def _scores(logits: Scores, labels: Labels, is_multi_label: bool) -> WideScores:
    """Each label against its contradiction, or all labels against one another.

    Shape: `[candidates, labels of the model]` to `[candidates]`.
    """
    entailment = labels.entailment
    assert entailment is not None
    if is_multi_label or len(logits) == 1:
        contradiction = -1 if entailment == 0 else 0
        return softmax(logits[:, [contradiction, entailment]].astype(numpy.float64))[:, 1]
    return softmax(logits[:, entailment].astype(numpy.float64))
