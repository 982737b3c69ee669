"""Joins operations of a program that need no trip through memory between them; what it computes stays the same.

- An activation, a gate, a residual or a widening goes into the product that made its youngest input, if nothing else
  reads that. So the vocabulary's product comes last, where a sampler may want less of it than all scores.
- Rotated rows are written to the cache and looked at by one operation.
- A norm is marked where a product reads it: the place to quantise its rows.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from model.program.operation import Operation, Program, Slot

_EPILOGUES = {"Linear": ("Activation", "Gate", "Add", "Widen"), "Rotary": ("Attend",)}
_NORMS = ("LayerNorm", "RMSNorm")


def fuse(program: Program) -> Program:
    num_reads = Counter(slot for operation in program.operations for slot in operation.reads)
    if program.result is not None:
        num_reads[program.result] += 1
    fused: list[Operation] = []
    writers: dict[Slot, int] = {}
    for operation in program.operations:
        place = _host(operation, fused, writers, num_reads)
        if place is None:
            place = len(fused)
            fused.append(operation)
        else:
            host = fused[place]
            fused[place] = replace(host, epilogues=(*host.epilogues, *operation.parts))
        if operation.result is not None:
            writers[operation.result] = place
    return Program(tuple(_mark(fused)), program.result)


def _host(
    operation: Operation, fused: Sequence[Operation], writers: dict[Slot, int], num_reads: Counter[Slot]
) -> int | None:
    """The place of what wrote the youngest input, if the operation may join it.

    By then everything else that it reads is written, also where earlier joins moved that.
    """
    place = max((writers[slot] for slot in operation.reads), default=None)
    if place is None:
        return None
    host = fused[place]
    may_join = operation.name in _EPILOGUES.get(host.name, ())
    return place if may_join and host.result is not None and num_reads[host.result] == 1 else None


def _mark(operations: Sequence[Operation]) -> list[Operation]:
    multiplied = {operation.inputs[0] for operation in operations if operation.name == "Linear"}
    return [
        replace(operation, quantises=operation.name in _NORMS and operation.result in multiplied)
        for operation in operations
    ]
