"""Runs a fused program in one call of the native library: the same list, over the same weights, without torch."""

import ctypes
from collections.abc import Sequence

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.errors import StepError
from model.kernels.native.attention import LayerPagesStruct, NativeKernel, layer_pages
from model.kernels.native.library import NativeLibrary
from model.kv_cache import KVCache
from model.program.fusion import fuse
from model.program.lowering import lower
from model.program.native_list import NativeList
from model.program.operation import Program
from model.program.step import Step

_ERRORS = {
    -1: "no memory for a step of this size",
    -2: "a token or a position lies beyond its table",
    -3: "a row of scores holds no number",
}
_int64_p = ctypes.POINTER(ctypes.c_int64)
_float_p = ctypes.POINTER(ctypes.c_float)


class _BatchStruct(ctypes.Structure):
    _fields_ = (
        ("num_tokens", ctypes.c_int32),
        ("num_sequences", ctypes.c_int32),
        ("num_rows", ctypes.c_int32),
        ("num_scores", ctypes.c_int32),
        ("token_ids", _int64_p),
        ("positions", _int64_p),
        ("slots", _int64_p),
        ("first_rows", _int64_p),
        ("key_lengths", _int64_p),
        ("block_table", _int64_p),
        ("table_stride", ctypes.c_int64),
        ("rows", _int64_p),
        ("pages", ctypes.POINTER(LayerPagesStruct)),
        ("scores", _float_p),
        ("likeliest", ctypes.POINTER(ctypes.c_int32)),
    )


class NativeStep:
    """A program bound to a model's packed weights and to the library. Keys and values are kept in `cache_dtype`.

    Raises: CannotLower, with its name, for an operation that the library doesn't have.
    """

    def __init__(self, program: Program, model: nn.Module, library: NativeLibrary, cache_dtype: torch.dtype) -> None:
        self.kernel = f"native {library.variant}"
        self._list = NativeList(program, model)
        self._cache_dtype = cache_dtype
        self._library = library
        self._handle = library.new_program(self._list.operations, self._list.values)

    @classmethod
    def of(cls, model: nn.Module, library: NativeLibrary, cache_dtype: torch.dtype) -> "NativeStep":
        """From a model's own `forward`. No other thread may run a module meanwhile. Raises: CannotLower."""
        return cls(fuse(lower(model)), model, library, cache_dtype)

    def new_cache(self, num_blocks: int, block_size: int) -> KVCache:
        kernel, device = NativeKernel(self._library), torch.device("cpu")
        return KVCache(
            tuple(
                kernel.new_cache(spec, num_blocks, block_size, dtype=self._cache_dtype, device=device)
                for spec in self._list.attention
            )
        )

    def cache_bytes_per_token(self) -> int:
        return self.new_cache(1, 16).num_bytes // 16

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._library.free_program(self._handle)

    def run(self, step: Step, cache: KVCache) -> tuple[Tensor, list[int]]:
        """Scores of the rows `scored`, and the likeliest output of each row `greedy`. Mutates: `cache`.

        Shape: `[L, V]` float32. Raises: StepError for a token or a position that there isn't, for a row without a
        number, and for want of memory.
        """
        num_scores = len(step.scored)
        scores_LV = torch.empty(num_scores, self._list.num_scores)
        likeliest = numpy.empty(len(step.greedy), numpy.int32)
        width = max(len(row) for row in step.block_table)
        table = numpy.zeros((len(step.block_table), width), numpy.int64)
        for row, blocks in zip(table, step.block_table, strict=True):
            row[: len(blocks)] = blocks
        arrays = {
            "token_ids": _integers(step.token_ids),
            "positions": _integers(step.positions),
            "slots": _integers(step.slots),
            "first_rows": numpy.cumsum([0, *step.query_lengths], dtype=numpy.int64),
            "key_lengths": _integers(step.key_lengths),
            "block_table": table,
            "rows": _integers([*step.scored, *step.greedy]),
        }
        batch = _BatchStruct(
            num_tokens=len(step.token_ids),
            num_sequences=len(step.query_lengths),
            num_rows=num_scores + len(step.greedy),
            num_scores=num_scores,
            table_stride=width,
            pages=layer_pages(cache),
            scores=ctypes.cast(scores_LV.data_ptr(), _float_p),
            likeliest=likeliest.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            **{name: array.ctypes.data_as(_int64_p) for name, array in arrays.items()},
        )
        status = self._library.run_program(self._handle, batch)
        if status:
            raise StepError(_ERRORS.get(status, f"the native step failed with {status}"))
        return scores_LV, likeliest.tolist()


def _integers(values: Sequence[int]) -> NDArray[numpy.int64]:
    return numpy.array(values, dtype=numpy.int64)
