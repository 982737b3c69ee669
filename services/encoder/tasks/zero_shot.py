"""Zero-shot classification: a model of natural language inference judges how well each label follows from the text.

Each label is an input of its own, "text [SEP] hypothesis", and the scores are made of the entailment logits. Source:
Yin et al., "Benchmarking zero-shot text classification", 2019; equal to transformers' pipeline.
"""

from collections.abc import Sequence
from typing import Any

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
from services.encoder.tasks.labels import Labels, softmax
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
        results = []
        for of_labels in outputs:
            scores = _scores([logits.tolist() for logits in of_labels], head.labels, parameters.multi_label)
            # Equal scores come out last first, as the reference has them.
            ranked = sorted(zip(scores, parameters.candidate_labels, strict=True), key=lambda pair: pair[0])[::-1]
            results.append(
                encoder_pb2.TextClassification(
                    labels=[encoder_pb2.LabelScore(label=label, score=score) for score, label in ranked]
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


def _scores(logits: Sequence[Sequence[float]], labels: Labels, is_multi_label: bool) -> list[float]:
    """Each label against its contradiction, or all labels against one another."""
    entailment = labels.entailment
    assert entailment is not None
    if is_multi_label or len(logits) == 1:
        contradiction = -1 if entailment == 0 else 0
        return [softmax([one[contradiction], one[entailment]])[1] for one in logits]
    return softmax([one[entailment] for one in logits])
