"""What an objective is: it reads examples, prepares a head, and gives a loss of a batch and figures of many."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from torch import Tensor, nn

from model.decoder import CausalLanguageModel
from model.encoder import EncoderModel

Trainable: TypeAlias = EncoderModel | CausalLanguageModel


class Example(Protocol):
    """One packed sequence and what it teaches."""

    @property
    def token_ids(self) -> Sequence[int]: ...


ExampleT = TypeVar("ExampleT", bound=Example)


class Objective(Protocol[ExampleT]):
    """`task` is what an adapter that it trains can do; the labels are a classifier's, and empty elsewhere."""

    @property
    def task(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    def read(self, path: Path) -> list[ExampleT]:
        """Raises: ValueError, with file and line, for what can't be read."""
        ...

    def prepare(self, model: Trainable, head: nn.Module, examples: Sequence[ExampleT]) -> None:
        """Gives a new head a good start, where random weights are none. Mutates: `head`."""
        ...

    def loss(self, model: Trainable, head: nn.Module, batch: Sequence[ExampleT], chance: random.Random) -> Tensor:
        """The mean loss of a batch. Whatever is drawn is drawn from `chance`, so that a step can be repeated."""
        ...

    def figures(self, model: Trainable, head: nn.Module, examples: Sequence[ExampleT]) -> dict[str, float]:
        """How well the examples are done, "loss" among it; runs without gradients."""
        ...
