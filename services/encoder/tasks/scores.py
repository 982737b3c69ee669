"""Scores as heads give them, and what makes shares of them."""

from typing import Any, TypeAlias, TypeVar

import numpy

Scores: TypeAlias = "numpy.ndarray[Any, numpy.dtype[numpy.float32]]"
_Array = TypeVar("_Array", bound="numpy.ndarray[Any, numpy.dtype[numpy.floating[Any]]]")


def softmax(scores: _Array) -> _Array:
    """Over the last axis, in the arithmetic of the scores."""
    weights = numpy.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: _Array = weights / weights.sum(axis=-1, keepdims=True)
    return shares
