"""A classifier's labels, and how its scores become answers: as transformers' text-classification pipeline decides."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Function: TypeAlias = Literal["none", "sigmoid", "softmax"]


@dataclass(frozen=True, slots=True)
class Labels:
    """A head's labels in order, and what is applied to its scores when a request does not say."""

    names: tuple[str, ...]
    function: Function

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

    def ranked(self, logits: Sequence[float], function: Function | None = None) -> list[tuple[str, float]]:
        """(label, score), best first; equal scores in the head's order."""
        scores = _FUNCTIONS[function or self.function](logits)
        return sorted(zip(self.names, scores, strict=True), key=lambda pair: -pair[1])


def _softmax(logits: Sequence[float]) -> list[float]:
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
    "softmax": _softmax,
}
