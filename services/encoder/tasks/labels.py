"""A classifier's labels, and how its scores become answers: as transformers' text-classification pipeline decides."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Function: TypeAlias = Literal["none", "sigmoid", "softmax"]
_PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")


class UnknownLabels(Exception):
    """A checkpoint's config does not tell its labels, or what its scores are."""


@dataclass(frozen=True, slots=True)
class Labels:
    """A head's labels in order, and what is applied to its scores when a request does not say."""

    names: tuple[str, ...]
    function: Function

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
        return cls.of(names, problem_type)

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

    @property
    def entailment(self) -> int | None:
        """The label of a natural language inference model that says "this follows"; None for other models."""
        found = [number for number, name in enumerate(self.names) if name.lower().startswith("entail")]
        return found[0] if found and len(self.names) > 1 else None

    def ranked(self, logits: Sequence[float], function: Function | None = None) -> list[tuple[str, float]]:
        """(label, score), best first; equal scores in the head's order."""
        scores = _FUNCTIONS[function or self.function](logits)
        return sorted(zip(self.names, scores, strict=True), key=lambda pair: -pair[1])


def softmax(logits: Sequence[float]) -> list[float]:
    best = max(logits)
    weights = [math.exp(x - best) for x in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def _sigmoid(logits: Sequence[float]) -> list[float]:
    # Of two equal forms, the one that can't overflow.
    return [1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x)) for x in logits]


_FUNCTIONS: dict[Function, Callable[[Sequence[float]], list[float]]] = {
    "none": list,
    "sigmoid": _sigmoid,
    "softmax": softmax,
}
