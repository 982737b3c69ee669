"""A weight as the products read it: a matrix in tiles, packed once from a checkpoint's own bytes.

`weights.h` says how the tiles lie, `pack.cpp` fills them; the structures mirror theirs.
"""

import ctypes
import functools
from collections.abc import Sequence
from ctypes import c_char_p, c_int32, c_int64, c_void_p
from dataclasses import dataclass, replace
from typing import Literal

import numpy
import torch
from torch import Tensor

from model.errors import CheckpointError
from model.kernels.native.arena import Arena
from model.kernels.native.library import NativeLibrary, native_library

Form = Literal["four_bit", "eight_bit", "bf16", "float32"]
_FORMS: tuple[Form, ...] = ("four_bit", "eight_bit", "bf16", "float32")
_TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
_DENSE_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_TILE_OUTPUTS, _GROUP_INPUTS = 32, 32
_ERRORS = {
    -1: "has no shape of a matrix in this form",
    -2: "ends before its last row",
    -3: "has no such row",
    -4: "does not go into this form",
    -5: "holds a number that is none, or that is too large for 8-bit codes",
}


class MatrixStruct(ctypes.Structure):
    """`Matrix` of weights.h."""

    _fields_ = (
        ("bytes", c_void_p),
        ("form", c_int32),
        ("num_outputs", c_int32),
        ("num_inputs", c_int32),
        ("zero_point", c_int32),
        ("has_minimum", c_int32),
    )


class _SourceStruct(ctypes.Structure):
    _fields_ = (
        ("bytes", c_void_p),
        ("num_bytes", c_int64),
        ("order", c_void_p),
        ("num_rows", c_int64),
        ("num_columns", c_int64),
        ("type", c_int32),
        ("is_transposed", c_int32),
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """A form, and what its codes mean: scale * (code - zero_point), plus a minimum where it has them."""

    form: Form
    zero_point: int = 0
    has_minimum: bool = False

    def num_bytes(self, num_outputs: int, num_inputs: int) -> int:
        """What a matrix takes. `num_inputs` of a quantised form are whole groups of 32."""
        num_tiles = -(-num_outputs // _TILE_OUTPUTS)
        if self.form == "float32":
            return num_tiles * num_inputs * 4 * _TILE_OUTPUTS
        if self.form == "bf16":
            return num_tiles * -(-num_inputs // 2) * 4 * _TILE_OUTPUTS
        codes = 512 if self.form == "four_bit" else 1024
        halves = 2 * _TILE_OUTPUTS * (2 if self.has_minimum else 1)
        return num_tiles * (num_inputs // _GROUP_INPUTS) * (codes + halves)


FLOAT32, BF16 = Layout("float32"), Layout("bf16")
INT8 = Layout("eight_bit", zero_point=128)
EXACT: dict[str, Layout] = {
    "Q4_0": Layout("four_bit", zero_point=8),
    "Q4_1": Layout("four_bit", has_minimum=True),
    "Q5_0": Layout("eight_bit", zero_point=16),
    "Q5_1": Layout("eight_bit", has_minimum=True),
    "Q8_0": INT8,
}
"""The block types of a GGUF file that are packed code for code."""


@dataclass(frozen=True, slots=True)
class Source:
    """A matrix as a checkpoint stores it. Shape: `[num_rows, num_columns]`, or as `is_transposed` stored the other way.

    `order` names the row for each output of what is packed, `[O]` int64; without one they are all, as they stand.
    """

    content: memoryview | Tensor
    type: str
    num_rows: int
    num_columns: int
    order: Tensor | None = None
    is_transposed: bool = False

    @classmethod
    def of(cls, values: Tensor, *, is_transposed: bool = False) -> "Source":
        """A dense matrix in memory; a type that has no form is brought to float32."""
        known = values if values.dtype in _DENSE_TYPES else values.to(torch.float32)
        num_rows, num_columns = reversed(known.shape) if is_transposed else known.shape
        return cls(known.contiguous(), _DENSE_TYPES[known.dtype], num_rows, num_columns, None, is_transposed)

    @property
    def is_dense(self) -> bool:
        return self.type not in EXACT

    @property
    def num_outputs(self) -> int:
        return self.num_rows if self.order is None else len(self.order)

    def transposed(self) -> "Source":
        """The other way around: of a dense one, for a checkpoint that stores its matrices input by input."""
        return replace(self, num_rows=self.num_columns, num_columns=self.num_rows, is_transposed=not self.is_transposed)

    def taking(self, rows: slice) -> "Source":
        """Some of its outputs alone."""
        order = torch.arange(self.num_rows) if self.order is None else self.order
        return replace(self, order=order[rows].contiguous())

    def is_exact_in_bf16(self) -> bool:
        """Whether bf16 has every value of a dense one."""
        library = _library()
        answer = c_int32()
        source = self._struct()
        _check(library.functions.janus_is_exact_in_bf16(library.threads, ctypes.byref(source), ctypes.byref(answer)))
        return bool(answer.value)

    def _struct(self) -> _SourceStruct:
        """Valid until: this source is gone."""
        if isinstance(self.content, Tensor):
            address, num_bytes = self.content.data_ptr(), self.content.nbytes
        else:
            array = numpy.frombuffer(self.content, dtype=numpy.uint8)
            address, num_bytes = array.ctypes.data, array.nbytes
        order = None if self.order is None else self.order.data_ptr()
        kind = _TYPES.index(self.type)
        return _SourceStruct(address, num_bytes, order, self.num_rows, self.num_columns, kind, self.is_transposed)


class PackedMatrix:
    """W of y = W x in tiles, and the memory that it lies in. Shape: `[O, I]`."""

    def __init__(self, source: Source, layout: Layout, arena: Arena) -> None:
        """Raises: CheckpointError for a source that is not what it says, or doesn't go into the layout; MemoryError."""
        self.shape = (source.num_outputs, source.num_columns)
        self.layout = layout
        self._memory = arena.take(layout.num_bytes(*self.shape))
        self.num_bytes = len(self._memory)
        self.struct = MatrixStruct(
            ctypes.addressof(self._memory),
            _FORMS.index(layout.form),
            *self.shape,
            layout.zero_point,
            layout.has_minimum,
        )
        library = _library()
        described = source._struct()
        _check(
            library.functions.janus_pack(
                library.threads, ctypes.byref(self.struct), ctypes.byref(described), self._memory, self.num_bytes
            )
        )

    @property
    def form(self) -> Form:
        return self.layout.form

    def unpack(self) -> Tensor:
        """Every value. Shape: `[O, I]`, float32."""
        return self._values(None, self.shape[0])

    def rows(self, ids_T: Tensor) -> Tensor:
        """The values of some rows. Shape: ids `[T]` -> `[T, I]`, float32. Raises: IndexError."""
        ids = ids_T.to(torch.int64).contiguous()
        return self._values(ids, len(ids))

    def _values(self, ids: Tensor | None, num_rows: int) -> Tensor:
        library = _library()
        values = torch.empty(num_rows, self.shape[1])
        address = None if ids is None else ids.data_ptr()
        # A few rows are there before other threads would be awake.
        threads = library.threads if ids is None else None
        status = library.functions.janus_unpack(
            threads, ctypes.byref(self.struct), address, num_rows, values.data_ptr()
        )
        if status:
            raise IndexError(f"a row beyond the {self.shape[0]} of a packed matrix")
        return values


def product(matrices: Sequence[PackedMatrix], bias_O: Tensor | None, x_TI: Tensor) -> Tensor:
    """One matrix' outputs after another's, on the threads of the process.

    Shape: x `[T, I]`, bias `[O]` -> `[T, O]`, float32. Raises: MemoryError.
    """
    library = _library()
    structs = (MatrixStruct * len(matrices))(*(matrix.struct for matrix in matrices))
    x = x_TI.to(torch.float32).contiguous()
    y_TO = torch.empty(len(x), sum(matrix.shape[0] for matrix in matrices))
    bias = None if bias_O is None else bias_O.data_ptr()
    status = library.functions.janus_product(
        library.variant.encode(), library.threads, structs, len(matrices), bias, len(x), x.data_ptr(), y_TO.data_ptr()
    )
    if status:
        raise MemoryError(f"no memory for a product of {len(x)} rows")
    return y_TO


@functools.cache
def _library() -> NativeLibrary:
    library = native_library()
    library.declare("janus_pack", c_int32, c_void_p, c_void_p, c_void_p, c_void_p, c_int64)
    library.declare("janus_is_exact_in_bf16", c_int32, c_void_p, c_void_p, c_void_p)
    library.declare("janus_unpack", c_int32, c_void_p, c_void_p, c_void_p, c_int64, c_void_p)
    library.declare(
        "janus_product", c_int32, c_char_p, c_void_p, c_void_p, c_int32, c_void_p, c_int32, c_void_p, c_void_p
    )
    return library


def _check(status: int) -> None:
    if status:
        raise CheckpointError(f"a matrix that {_ERRORS.get(status, f'fails with {status}')}")
