"""A classifier's labels, and how its scores become answers: as transformers' text-classification pipeline decides."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy

from services.encoder.tasks.scores import Scores, softmax

Function: TypeAlias = Literal["none", "sigmoid", "softmax"]
WideScores: TypeAlias = "numpy.ndarray[Any, numpy.dtype[numpy.float64]]"
_PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")


class UnknownLabels(Exception):
    """A checkpoint's config does not tell its labels, or what its scores are."""


@dataclass(frozen=True, slots=True)
class Labels:
    """A head's labels in order, and what is applied to its scores when a request does not say.

    `entailment` is the label of a natural language inference model that says "this follows"; None for other models.
    """

    names: tuple[str, ...]
    function: Function
    entailment: int | None = None

    @classmethod
    def of_checkpoint(cls, config: Mapping[str, Any], num_labels: int) -> "Labels":
        """From config.json; labels without a name are LABEL_0, LABEL_1, ...

        Raises: UnknownLabels for names that are not one text a number, or a problem type that nobody knows.
        """
        problem_type = config.get("problem_type")
        if problem_type not in _PROBLEM_TYPES:
            raise UnknownLabels(f"config.json: the problem_type {problem_type!r} is not served")
        numbers = [str(number) for number in range(num_labels)]
        named = config.get("id2label") or {number: f"LABEL_{number}" for number in numbers}
        if not isinstance(named, Mapping) or named.keys() != set(numbers):
            raise UnknownLabels(f"config.json: id2label does not name the labels 0 to {num_labels - 1}")
        names = [named[number] for number in numbers]
        if not all(isinstance(name, str) for name in names):
            raise UnknownLabels("config.json: id2label has a name that is no text")
        return replace(cls.of(names, problem_type), entailment=_entailment(names, config.get("label2id")))

    @classmethod
    def of(cls, names: Sequence[str], problem_type: str | None) -> "Labels":
        """The problem type decides first, then the number of labels."""
        if problem_type == "regression":
            function: Function = "none"
        elif problem_type == "multi_label_classification" or len(names) == 1:
            function = "sigmoid"
        else:
            function = "softmax"
        return cls(tuple(names), function)

    def scores(self, logits: Scores, function: Function | None = None) -> WideScores:
        """Shape: `[inputs, labels]`, both."""
        return _FUNCTIONS[function or self.function](logits.astype(numpy.float64))

    def ranked(
        self, logits: Scores, function: Function | None = None, *, top_k: int | None = None
    ) -> list[list[tuple[str, float]]]:
        """(label, score) for each input, best first; equal scores in the head's order.

        Shape: `[inputs, labels]`.
        """
        scores = self.scores(logits, function)
        order = numpy.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
        best = numpy.take_along_axis(scores, order, axis=-1)
        return [
            [(self.names[label], score) for label, score in zip(labels, of_labels, strict=True)]
            for labels, of_labels in zip(order.tolist(), best.tolist(), strict=True)
        ]


def _entailment(names: Sequence[str], numbers: Any) -> int | None:
    """The first label that begins so: by label2id, which has an order of its own, else by the labels themselves."""
    told = numbers if isinstance(numbers, Mapping) else {}
    for name, number in [*told.items(), *zip(names, range(len(names)), strict=True)]:
        if len(names) > 1 and name.lower().startswith("entail") and number in range(len(names)):
            return int(number)
    return None


def _sigmoid(logits: WideScores) -> WideScores:
    # Of two equal forms, the one that can't overflow.
    small = numpy.exp(-numpy.abs(logits))
    shares: WideScores = numpy.where(logits >= 0, 1, small) / (1 + small)
    return shares


_FUNCTIONS: dict[Function, Callable[[WideScores], WideScores]] = {
    "none": lambda logits: logits,
    "sigmoid": _sigmoid,
    "softmax": softmax,
}
