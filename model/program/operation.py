"""What a program is: operations in the order in which they run, and the values between them.

Neither dtypes nor buffers are decided here; who compiles a program chooses them, from the weights and from `buffers`.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

# What the rows of a value stand for, in the legend's letters: tokens, memory tokens, logit rows, sequences, distances.
Rows = Literal["T", "U", "L", "S", "J"]


@dataclass(frozen=True, slots=True)
class Slot:
    """A value that one operation writes and later ones read, `width` numbers a row; numbered as they are made."""

    number: int
    rows: Rows
    width: int


@dataclass(frozen=True, slots=True)
class Field:
    """What a batch brings, by the names of `forward`; with a `layer`, that layer's part of it.

    It is none where the batch doesn't bring it: without a cache, no layer has one.
    """

    name: str
    layer: int | None = None


Value: TypeAlias = Slot | Field | None


@dataclass(frozen=True, slots=True)
class Operation:
    """One leaf on its inputs: `name` is its class, `path` the module with its weights and its adapters.

    A sum, `Add`, has no module. `epilogues` run on the value while it is at hand: each reads what the one before it
    gave, which nothing else reads and which needs no place in memory. An operation that `quantises` writes what a
    product reads, so the rows can be quantised on their way.
    """

    name: str
    path: str
    inputs: tuple[Value, ...]
    output: Slot | None
    epilogues: tuple["Operation", ...] = ()
    quantises: bool = False

    @property
    def parts(self) -> tuple["Operation", ...]:
        return (self, *self.epilogues)

    @property
    def result(self) -> Slot | None:
        """The one value that leaves."""
        return self.parts[-1].output

    @property
    def reads(self) -> tuple[Slot, ...]:
        """The values that enter, as often as they are read."""
        inner = [part.output for part in self.parts]
        return tuple(
            value for part in self.parts for value in part.inputs if isinstance(value, Slot) and value not in inner
        )


@dataclass(frozen=True, slots=True)
class Program:
    """Each slot is written once, before it is read. `result` is what `forward` gives, if it gives something."""

    operations: tuple[Operation, ...]
    result: Slot | None
