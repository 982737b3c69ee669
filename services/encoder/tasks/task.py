"""What a task is: `encode` makes items of a request, a head reads the encoder, `decode` makes an answer of its outputs.

The head between the two runs in the runner, so that requests of all tasks share a pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from services.encoder.tasks.inputs import EncodedInputs, TextEncoder
from services.encoder.tasks.labels import Labels


@dataclass(frozen=True, eq=False, slots=True)
class Head:
    """What reads the shared encoder for one task of one model, through which adapter (0: none).

    A classifier has labels, and what makes vectors has their width.
    """

    module: Any
    adapter: int = 0
    labels: Labels | None = None
    width: int = 0


Request = TypeVar("Request", contravariant=True)
Response = TypeVar("Response", covariant=True)


class Task(Protocol[Request, Response]):
    """One job of an encoder; it keeps nothing between requests."""

    @property
    def name(self) -> str:
        """As the REST routes name it."""
        ...

    async def encode(self, request: Request, head: Head, encoder: TextEncoder) -> EncodedInputs:
        """Raises: InvalidRequest, ContextLengthExceeded; before any work where that can be told."""
        ...

    def decode(self, request: Request, head: Head, outputs: Sequence[Sequence[Any]]) -> Response:
        """The answer's own fields; what all answers have (id, usage, ...) is the servicer's.

        `outputs` has a row for each input, with an output for each of its items, in order.
        """
        ...
