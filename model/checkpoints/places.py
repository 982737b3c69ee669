"""Where the tensors of a checkpoint go: into a model's parameters, or packed into matrices that stand for them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.packing import Packing, layout_of
from model.embeddings import Embedding
from model.errors import CheckpointError
from model.kernels.native.arena import Arena
from model.kernels.native.matrix import PackedMatrix
from model.linear import Linear


class Place(Protocol):
    """What one tensor fills: a parameter, or some rows of one."""

    shape: tuple[int, ...]

    def fill(self, checkpoint: Checkpoint, name: str, *, is_transposed: bool) -> None:
        """Raises: CheckpointError; MemoryError."""
        ...


def dense_places(model: nn.Module) -> dict[str, Place]:
    """Each parameter under its first name, and each row segment of a Linear: `...project_in.weight[query]`."""
    places: dict[str, Place] = {}
    for name, owners, parameter in _parameters(model):
        places[name] = _DensePlace(parameter.data)
        for segment, rows in _named_segments(name, owners[0]).items():
            places[f"{name}[{segment}]"] = _DensePlace(parameter.data[rows])
    return places


def packed_places(model: nn.Module, packing: Packing, device: torch.device) -> dict[str, Place]:
    """The same for a model built `without_memory`: the weights of Linears and tables are packed, all else is dense.

    Mutates: `model`, whose dense parameters get their memory.
    """
    arena = Arena()
    places: dict[str, Place] = {}
    for name, owners, parameter in _parameters(model):
        if name.endswith(".weight") and all(isinstance(owner, Linear) or type(owner) is Embedding for owner in owners):
            weight = _PackedWeight(owners, arena, packing)
            places[name] = _PackedPlace(weight, tuple(parameter.shape), list(weight.segments))
            for segment, rows in _named_segments(name, owners[0]).items():
                shape = (rows.stop - rows.start, *parameter.shape[1:])
                places[f"{name}[{segment}]"] = _PackedPlace(weight, shape, [segment])
        else:
            # (An operation on a tensor without memory would import half of torch's compiler.)
            own = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device=device))
            for owner in owners:
                setattr(owner, name.rpartition(".")[2], own)
            places[name] = _DensePlace(own.data)
            for segment, rows in _named_segments(name, owners[0]).items():
                places[f"{name}[{segment}]"] = _DensePlace(own.data[rows])
    return places


@contextmanager
def without_memory() -> Iterator[None]:
    """Parameters that are made in here, which `torch.empty` does, are shapes alone; what is computed is there."""
    with _EmptyIsMeta():
        yield


class _EmptyIsMeta(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        where = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **where})


class _DensePlace:
    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.shape = tuple(tensor.shape)

    def fill(self, checkpoint: Checkpoint, name: str, *, is_transposed: bool) -> None:
        tensor = checkpoint.read(name)
        self._tensor.copy_(tensor.T if is_transposed else tensor)


class _PackedWeight:
    """A weight to be, with all who share it: a tied head and its table get the very same matrices."""

    def __init__(self, owners: Sequence[nn.Module], arena: Arena, packing: Packing) -> None:
        self._owners = owners
        self._arena = arena
        self._packing = packing
        self._matrices: dict[str, PackedMatrix] = {}
        first = owners[0]
        self.segments = dict(first.segments) if isinstance(first, Linear) else {"": 0}

    def take(self, checkpoint: Checkpoint, name: str, segments: Sequence[str], *, is_transposed: bool) -> None:
        source = checkpoint.source(name)
        if is_transposed:
            source = source.transposed()
        layout = layout_of(source, self._packing)
        begin = 0
        for segment in segments:
            end = begin + self.segments[segment]
            part = source if len(segments) == 1 else source.taking(slice(begin, end))
            self._matrices[segment] = PackedMatrix(part, layout, self._arena)
            begin = end
        if len(self._matrices) == len(self.segments):
            for owner in self._owners:
                assert isinstance(owner, Linear | Embedding)
                owner.pack([self._matrices[segment] for segment in self.segments])


class _PackedPlace:
    def __init__(self, weight: _PackedWeight, shape: tuple[int, ...], segments: Sequence[str]) -> None:
        self._weight = weight
        self._segments = segments
        self.shape = shape

    def fill(self, checkpoint: Checkpoint, name: str, *, is_transposed: bool) -> None:
        try:
            self._weight.take(checkpoint, name, self._segments, is_transposed=is_transposed)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.path}: {name}: {error}") from error


def _parameters(model: nn.Module) -> Iterator[tuple[str, list[nn.Module], nn.Parameter]]:
    """Each parameter once, under its first name, with every module that has it."""
    owners: dict[int, list[nn.Module]] = {}
    first: dict[int, tuple[str, nn.Parameter]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            owners.setdefault(id(parameter), []).append(module)
            first.setdefault(id(parameter), (name, parameter))
    for number, (name, parameter) in first.items():
        yield name, owners[number], parameter


def _named_segments(name: str, owner: nn.Module) -> dict[str, slice]:
    """The row segments of a Linear's weight or bias, where it has names for them."""
    if not isinstance(owner, Linear) or "" in owner.segments:
        return {}
    return {segment: owner.rows(segment) for segment in owner.segments}
