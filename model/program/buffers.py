"""How long a program's values live, and the buffers that hold them one after another."""

from collections.abc import Mapping
from dataclasses import dataclass

from model.program.operation import Program, Rows, Slot


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory for one value at a time: `width` numbers for each of its rows."""

    rows: Rows
    width: int


@dataclass(frozen=True, slots=True)
class Buffers:
    """`places` has the number of the buffer of each slot that leaves its operation."""

    buffers: tuple[Buffer, ...]
    places: Mapping[Slot, int]

    def width(self, rows: Rows) -> int:
        """How many numbers a row of this kind needs, over all buffers."""
        return sum(buffer.width for buffer in self.buffers if buffer.rows == rows)


def lives(program: Program) -> dict[Slot, range]:
    """The operations, by number, during which a slot is there: from its writer to its last reader.

    The result outlives them all. What an operation's epilogues consume is never there.
    """
    first = {operation.result: number for number, operation in enumerate(program.operations)}
    last = {slot: number for number, operation in enumerate(program.operations) for slot in operation.reads}
    last |= {} if program.result is None else {program.result: len(program.operations)}
    return {slot: range(start, last.get(slot, start) + 1) for slot, start in first.items() if slot is not None}


def assign(program: Program) -> Buffers:
    """A buffer for each slot, to itself as long as it lives. The widest choose first, so that few buffers are wide."""
    alive = lives(program)
    tenants: list[list[Slot]] = []
    for slot in sorted(alive, key=lambda slot: -slot.width):
        free = (
            others
            for others in tenants
            if others[0].rows == slot.rows and not any(_meet(alive[slot], alive[other]) for other in others)
        )
        home = next(free, None)
        if home is None:
            tenants.append([slot])
        else:
            home.append(slot)
    places = {slot: number for number, others in enumerate(tenants) for slot in others}
    return Buffers(tuple(Buffer(others[0].rows, others[0].width) for others in tenants), places)


def _meet(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop
