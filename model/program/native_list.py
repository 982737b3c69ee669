"""A fused program as the native library reads it: structures in memory, and the weights that they point to.

A value between operations has the representations that its readers ask for: 8-bit codes where a quantised product reads
it, bf16 for one in bf16, float32 for everything else. The structures mirror `model/kernels/native/program.h`.
"""

import ctypes
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from model.attention import Attend
from model.embeddings import Embedding
from model.errors import CannotLower
from model.feed_forward import Activation, Gate
from model.kernels.native.attention import AttentionSpecStruct
from model.kernels.native.matrix import MatrixStruct, PackedMatrix
from model.linear import Linear
from model.metadata import AttentionSpec
from model.normalization import LayerNorm, RMSNorm
from model.program.buffers import assign
from model.program.operation import Field, Operation, Program, Slot, Value
from model.rotary import Rotary

_TABLE, _ADD, _NORM, _PRODUCT, _ATTEND, _TAKE_ROWS = range(6)
_FLOATS, _CODES, _HALVES = 1, 2, 4
_INDICES = {"token_ids_T": 0, "metadata.positions_T": 1}
_ACTIVATIONS = {"": 0, "gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "relu": 3, "silu": 4, "tanh": 5}
_READS = {"four_bit": _CODES, "eight_bit": _CODES, "bf16": _HALVES, "float32": _FLOATS}
M = TypeVar("M", bound=nn.Module)
_int64_p = ctypes.POINTER(ctypes.c_int64)
_float_p = ctypes.POINTER(ctypes.c_float)


class _ValueStruct(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("representations", ctypes.c_int32),
        ("buffer", ctypes.c_int32),
    )


class _OperationStruct(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("input", ctypes.c_int32),
        ("addend", ctypes.c_int32),
        ("output", ctypes.c_int32),
        ("index", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("is_gated", ctypes.c_int32),
        ("takes_mean", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("num_matrices", ctypes.c_int32),
        ("matrices", ctypes.POINTER(MatrixStruct)),
        ("weight", _float_p),
        ("bias", _float_p),
        ("cosines", _float_p),
        ("sines", _float_p),
        ("num_positions", ctypes.c_int64),
        ("attention", AttentionSpecStruct),
        ("layer", ctypes.c_int32),
    )


class NativeList:
    """The structures of a program, and the memory that they point to.

    `operations` and `values` are what the library reads, `num_scores` is the width of what leaves the program, and
    `attention` has the spec of each layer of the cache.
    """

    def __init__(self, program: Program, model: nn.Module) -> None:
        """Raises: CannotLower, with its name, for an operation that the library doesn't have."""
        self._model = model
        self._kept: list[Any] = []
        self.attention: list[AttentionSpec] = []
        self._numbers: dict[Slot, int] = {}
        self._representations: dict[Slot, int] = defaultdict(int)
        last = program.operations[-1]
        if last.name != "Linear" or last.result != program.result:
            raise CannotLower(f"the program ends in {last.name} at {last.path!r}, not in a product")
        for operation in program.operations:
            if operation.result is not None:
                self._numbers[operation.result] = len(self._numbers)
        structs = [self._operation(operation) for operation in program.operations]
        structs[-1].output = -1
        self.num_scores = program.operations[-1].result.width if program.operations[-1].result else 0
        self.operations = (_OperationStruct * len(structs))(*structs)
        self.values = self._values(program)

    def _values(self, program: Program) -> ctypes.Array[_ValueStruct]:
        places = assign(program).places
        structs = [
            _ValueStruct(
                rows=0 if slot.rows == "T" else 1,
                width=slot.width,
                representations=self._representations[slot],
                buffer=-1 if slot == program.result else places[slot],
            )
            for slot in self._numbers
        ]
        return (_ValueStruct * len(structs))(*structs)

    def _operation(self, operation: Operation) -> _OperationStruct:
        kinds = {
            "Embedding": self._table,
            "Add": self._add,
            "RMSNorm": self._norm,
            "LayerNorm": self._norm,
            "Linear": self._product,
            "Rotary": self._attend,
            "Attend": self._attend,
            "TakeRows": self._take_rows,
        }
        compile_one = kinds.get(operation.name)
        if compile_one is None or operation.result is None:
            raise _unknown(operation)
        struct = compile_one(operation)
        struct.output = self._numbers[operation.result]
        return struct

    def _table(self, operation: Operation) -> _OperationStruct:
        (index,) = operation.inputs
        if not isinstance(index, Field) or index.name not in _INDICES:
            raise _unknown(operation)
        self._writes_floats(operation)
        table = self._module(operation.path, Embedding).packed
        if table is None:
            raise CannotLower(f"{operation.path} is not packed")
        return _OperationStruct(kind=_TABLE, index=_INDICES[index.name], input=-1, addend=-1, **self._matrices([table]))

    def _add(self, operation: Operation) -> _OperationStruct:
        first, second = operation.inputs
        self._writes_floats(operation)
        return _OperationStruct(kind=_ADD, input=self._reads(first), addend=self._reads(second))

    def _norm(self, operation: Operation) -> _OperationStruct:
        takes_mean = operation.name == "LayerNorm"
        norm = self._module(operation.path, LayerNorm) if takes_mean else self._module(operation.path, RMSNorm)
        self._writes_floats(operation)
        return _OperationStruct(
            kind=_NORM,
            input=self._reads(operation.inputs[0]),
            addend=-1,
            takes_mean=takes_mean,
            epsilon=norm.epsilon,
            weight=self._floats(norm.weight),
            bias=self._floats(norm.bias if isinstance(norm, LayerNorm) else None),
        )

    def _product(self, operation: Operation) -> _OperationStruct:
        linear = self._module(operation.path, Linear)
        if linear.adapters is not None:
            raise CannotLower(f"{operation.path} has adapters")
        if linear.packed is None:
            raise CannotLower(f"{operation.path} is not packed")
        matrices = linear.packed
        reads = 0
        for matrix in matrices:
            reads |= _READS[matrix.form]
        epilogues = {part.name: part for part in operation.epilogues}
        names = [part.name for part in operation.epilogues if part.name != "Widen"]
        if names not in ([], ["Activation"], ["Gate"], ["Add"], ["Activation", "Add"], ["Gate", "Add"]):
            raise CannotLower(f"{operation.path} is followed by {' and '.join(names)}")
        activation, is_gated, addend = "", False, -1
        if "Gate" in epilogues:
            is_gated = True
            activation = self._module(epilogues["Gate"].path, Gate).activation.name
            if len(matrices) != 2:
                raise CannotLower(f"{operation.path} is gated and has {len(matrices)} parts, not two")
        elif "Activation" in epilogues:
            activation = self._module(epilogues["Activation"].path, Activation).name
        if "Add" in epilogues:
            inner = {part.output for part in operation.parts}
            (other,) = (value for value in epilogues["Add"].inputs if value not in inner)
            addend = self._reads(other)
        return _OperationStruct(
            kind=_PRODUCT,
            input=self._reads(operation.inputs[0], reads),
            addend=addend,
            activation=_ACTIVATIONS[activation],
            is_gated=is_gated,
            bias=self._floats(linear.bias),
            **self._matrices(matrices),
        )

    def _attend(self, operation: Operation) -> _OperationStruct:
        attend = operation.parts[-1]
        is_rotary = operation.name == "Rotary"
        _, _, cache, memory, bias = (*attend.inputs, None, None)[:5]
        is_known = attend.name == "Attend" and len(operation.parts) == 1 + is_rotary
        if (
            not is_known
            or not isinstance(cache, Field)
            or cache.layer is None
            or memory is not None
            or bias is not None
        ):
            raise _unknown(attend)
        self._writes_floats(operation)
        spec = self._module(attend.path, Attend).spec
        assert cache.layer == len(self.attention)
        self.attention.append(spec)
        struct = _OperationStruct(
            kind=_ATTEND,
            input=self._reads(operation.inputs[0]),
            addend=-1,
            attention=AttentionSpecStruct.of(spec),
            layer=cache.layer,
        )
        if is_rotary:
            rotary = self._module(operation.path, Rotary)
            struct.cosines, struct.sines = self._floats(rotary.cosines), self._floats(rotary.sines)
            struct.num_positions = len(rotary.cosines)
        return struct

    def _take_rows(self, operation: Operation) -> _OperationStruct:
        self._writes_floats(operation)
        return _OperationStruct(kind=_TAKE_ROWS, input=self._reads(operation.inputs[0]), addend=-1)

    def _reads(self, value: Value, representation: int = _FLOATS) -> int:
        assert isinstance(value, Slot)
        self._representations[value] |= representation
        return self._numbers[value]

    def _writes_floats(self, operation: Operation) -> None:
        assert operation.result is not None
        self._representations[operation.result] |= _FLOATS

    def _module(self, path: str, kind: type[M]) -> M:
        """The leaf there, of this very kind: another computes something else."""
        module = self._model.get_submodule(path)
        if type(module) is not kind:
            raise CannotLower(f"the native library has no {type(module).__name__}, at {path!r}")
        return module

    def _matrices(self, matrices: Sequence[PackedMatrix]) -> dict[str, Any]:
        structs = (MatrixStruct * len(matrices))(*(matrix.struct for matrix in matrices))
        self._kept += [structs, *matrices]
        return {"matrices": structs, "num_matrices": len(matrices)}

    def _floats(self, tensor: Tensor | None) -> Any:
        """The numbers in float32, kept for as long as the program is."""
        if tensor is None:
            return None
        dense = tensor.detach().to(torch.float32).contiguous()
        self._kept.append(dense)
        return ctypes.cast(dense.data_ptr(), _float_p)


def _unknown(operation: Operation) -> CannotLower:
    return CannotLower(f"the native library has no {operation.name}, at {operation.path!r}")
