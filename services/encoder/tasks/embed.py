"""Embeddings: one normalised vector an input, as long as asked for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.common.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class GivenTokens:
    """Token ids that a caller brings instead of a text."""

    ids: list[int]
    type_ids: list[int]


def given_tokens(token_ids: Sequence[int], index: int, vocabulary_size: int) -> GivenTokens:
    """Raises: InvalidRequest for no token, or one that the vocabulary has not."""
    if not token_ids:
        raise InvalidRequest(f"input[{index}] has no token", param="input")
    for token_id in token_ids:
        if not 0 <= token_id < vocabulary_size:
            message = f"input[{index}] has {token_id}, which is no token: ids go from 0 to {vocabulary_size - 1}"
            raise InvalidRequest(message, param="input")
    return GivenTokens(list(token_ids), [0] * len(token_ids))


def check_dimensions(dimensions: int | None, width: int) -> None:
    """Raises: InvalidRequest for more components than there are, or none."""
    if dimensions is not None and not 1 <= dimensions <= width:
        raise InvalidRequest(f"dimensions must be between 1 and {width}", param="dimensions")


def shortened(vector: Sequence[float], dimensions: int | None) -> Sequence[float]:
    """The leading components, of length 1 again."""
    if dimensions is None or dimensions == len(vector):
        return vector
    leading = vector[:dimensions]
    length = math.sqrt(sum(x * x for x in leading)) or 1.0
    return [x / length for x in leading]
