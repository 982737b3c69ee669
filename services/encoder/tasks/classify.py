"""Text classification: scores of a head's labels, best first, as the reference pipeline computes them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from services.common.errors import InvalidRequest

Function: TypeAlias = Literal["none", "sigmoid", "softmax"]


@dataclass(frozen=True, slots=True)
class Labels:
    """A head's labels in order, and how its scores become answers when a request does not say."""

    names: tuple[str, ...]
    function: Function

    @classmethod
    def of(cls, names: Sequence[str], problem_type: str | None) -> "Labels":
        """As transformers' pipeline decides: the problem type first, then the number of labels."""
        if problem_type == "regression":
            function: Function = "none"
        elif problem_type == "multi_label_classification" or len(names) == 1:
            function = "sigmoid"
        else:
            function = "softmax"
        return cls(tuple(names), function)


def scored(
    logits: Sequence[float], labels: Labels, *, function: Function | None, top_k: int | None
) -> list[tuple[str, float]]:
    """(label, score), best first. Raises: InvalidRequest for a `top_k` below 1."""
    check_top_k(top_k)
    scores = _FUNCTIONS[function or labels.function](logits)
    ranked = sorted(zip(labels.names, scores, strict=True), key=lambda pair: -pair[1])
    return ranked[:top_k]


def check_top_k(top_k: int | None) -> None:
    if top_k is not None and top_k < 1:
        raise InvalidRequest("parameters.top_k must be at least 1", param="parameters.top_k")


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
