"""Runs a program by the model's own leaves: the plain meaning of one, and what any faster way to run it is held to."""

from typing import Any

from torch import Tensor, nn

from model.program.operation import Field, Operation, Program, Slot, Value


def run(program: Program, model: nn.Module, **batch: Any) -> Tensor | None:
    """What the traced function gives for the same arguments, by their names. Mutates: a cache among them, as it does.

    Shape: the function's own.
    """
    values: dict[Slot, Tensor] = {}
    for operation in program.operations:
        for part in operation.parts:
            given = _compute(part, model, [_read(value, values, batch) for value in part.inputs])
            if part.output is not None:
                values[part.output] = given
    return None if program.result is None else values[program.result]


def _compute(part: Operation, model: nn.Module, inputs: list[Any]) -> Tensor:
    if part.name == "Add":
        first, second = inputs
        return first + second
    return model.get_submodule(part.path)(*inputs)


def _read(value: Value, values: dict[Slot, Tensor], batch: dict[str, Any]) -> Any:
    if isinstance(value, Slot):
        return values[value]
    return None if value is None else _field(value, batch)


def _field(field: Field, batch: dict[str, Any]) -> Any:
    name, _, part = field.name.partition(".")
    found = batch.get(name)
    if part and found is not None:
        found = getattr(found, part)
    return found if field.layer is None or found is None else found[field.layer]
