"""Attention in the native library, over pages that lie as its instructions read them (`attention.h`).

Scores and shares are computed for sixteen keys at a time. A float32 cache is exact to float32's own rounding; with one
in bf16, queries and shares may be rounded to bf16 too, and sums are in float32. A row's result is the same, to the bit,
whatever shares its batch or its chunk, and with any number of threads.
"""

import ctypes
import math
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.errors import CannotLower, NativeLibraryError
from model.kernels.native.arena import Arena
from model.kernels.native.library import NativeLibrary, native_library
from model.kv_cache import KVCache, LayerCache
from model.metadata import AttentionMetadata, AttentionSpec

MOST_HEAD_WIDTH = 256
_LANES = 16
_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_int64_p = ctypes.POINTER(ctypes.c_int64)


class AttentionSpecStruct(ctypes.Structure):
    """How a layer attends, for C."""

    _fields_ = (
        ("num_query_heads", ctypes.c_int32),
        ("num_key_value_heads", ctypes.c_int32),
        ("head_width", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("is_causal", ctypes.c_int32),
        ("window", ctypes.c_int32),
    )

    @classmethod
    def of(cls, spec: AttentionSpec) -> "AttentionSpecStruct":
        """Raises: CannotLower for heads that are too wide."""
        if spec.head_width > MOST_HEAD_WIDTH:
            raise CannotLower(
                f"a head of {spec.head_width} numbers; the native library takes {MOST_HEAD_WIDTH} at most"
            )
        return cls(
            spec.num_query_heads,
            spec.num_key_value_heads,
            spec.head_width,
            spec.scale,
            spec.is_causal,
            -1 if spec.window is None else min(spec.window, 2**31 - 1),
        )


class LayerPagesStruct(ctypes.Structure):
    """One layer's pages, for C."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("block_size", ctypes.c_int32),
    )

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> "LayerPagesStruct":
        return cls(keys.data_ptr(), values.data_ptr(), _TYPES[keys.dtype], _block_size(keys))


class _RowsStruct(ctypes.Structure):
    _fields_ = (
        ("floats", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("totals", ctypes.c_void_p),
        ("halves", ctypes.c_void_p),
        ("width", ctypes.c_int32),
    )


class _BatchStruct(ctypes.Structure):
    _fields_ = (
        ("queries", ctypes.c_void_p),
        ("query_stride", ctypes.c_int64),
        ("mixed", _RowsStruct),
        ("num_sequences", ctypes.c_int32),
        ("first_rows", _int64_p),
        ("key_lengths", _int64_p),
        ("block_table", _int64_p),
        ("table_stride", ctypes.c_int64),
        ("partials", ctypes.c_void_p),
        ("max_stretches", ctypes.c_int32),
        ("bias", ctypes.c_void_p),
        ("bias_width", ctypes.c_int64),
    )


def layer_pages(cache: KVCache) -> ctypes.Array[LayerPagesStruct]:
    """The pages of a decoder's own tokens, a layer each; valid as long as the cache is."""
    structs = [LayerPagesStruct.of(layer.keys, layer.values) for layer in cache.layers]
    return (LayerPagesStruct * len(structs))(*structs)


class NativeKernel:
    """Attention on a CPU's vector instructions. It has no gradient.

    Cache layout, in steps of N keys or inputs (bf16: pairs, float32: one): keys `[P, G, E/N, B, N]` and values
    `[P, G, B/N, E, N]`, the keys' E rounded up to whole steps, the values' to a multiple of 16.
    """

    def __init__(self, library: NativeLibrary | None = None) -> None:
        """Raises: NativeLibraryError where there is no library."""
        self._library = library or native_library()
        self.name = f"native {self._library.variant}"
        pointer, int64 = ctypes.c_void_p, ctypes.c_int64
        self._library.declare(
            "janus_attention_write",
            ctypes.c_int32,
            *[pointer] * 5,
            int64,
            pointer,
            int64,
            _int64_p,
            int64,
        )
        self._library.declare("janus_attention_run", ctypes.c_int32, *[pointer] * 5)

    def new_cache(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> LayerCache:
        """Raises: CannotLower for what the library has no pages for; the portable kernel takes it."""
        if device.type != "cpu":
            raise CannotLower(f"pages on {device}; the native library's are in a CPU's memory")
        if dtype not in _TYPES:
            raise CannotLower(f"pages in {dtype}; the native library's are in float32 or bfloat16")
        if block_size % _LANES:
            raise CannotLower(f"blocks of {block_size} tokens; the native library's are multiples of {_LANES}")
        AttentionSpecStruct.of(spec)
        return _new_pages(_in_large_pages, spec, num_blocks, block_size, dtype)

    def write(self, cache: LayerCache, k_UGE: Tensor, v_UGE: Tensor, slot_mapping_U: Tensor) -> None:
        num_blocks, num_heads = cache.keys.shape[:2]
        assert k_UGE.shape == v_UGE.shape
        assert k_UGE.shape[1] == num_heads
        slots = _integers(slot_mapping_U)
        if len(slots) and not 0 <= slots.min() <= slots.max() < num_blocks * _block_size(cache.keys):
            raise IndexError(f"slots {slots.min()} to {slots.max()} of {num_blocks} blocks")
        # Only the heads' numbers and widths count here.
        spec = AttentionSpecStruct(num_heads, num_heads, k_UGE.shape[2])
        self._write(spec, LayerPagesStruct.of(*cache), k_UGE, v_UGE, slots)

    def __call__(
        self,
        q_THE: Tensor,
        k: Tensor,
        v: Tensor,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        bias_HJ: Tensor | None = None,
    ) -> Tensor:
        """Raises: CannotLower where a gradient is asked for, or heads are too wide."""
        if torch.is_grad_enabled() and any(each.requires_grad for each in (q_THE, k, v)):
            raise CannotLower("a gradient is asked for; the native kernel has none")
        struct = AttentionSpecStruct.of(spec)
        if metadata.block_table_SM is None:
            cache, table = self._packed_pages(struct, k, v, metadata, spec)
        else:
            cache, table = LayerCache(k, v), _integers(metadata.block_table_SM)
        block_size = _block_size(cache.keys)
        lengths = numpy.array(metadata.key_lengths, dtype=numpy.int64)
        assert lengths.min() > 0
        assert table.shape[1] * block_size >= lengths.max()
        assert 0 <= table.min() <= table.max() < len(cache.keys)
        # Each query stands on a key or sees all of them, so that there is something to mix.
        assert (spec.window is None and not spec.is_causal) or (lengths >= metadata.query_lengths).all()
        firsts = numpy.cumsum([0, *metadata.query_lengths], dtype=numpy.int64)
        queries = _rows(q_THE)
        mixed_THE = torch.empty(q_THE.shape)
        batch = _BatchStruct(
            queries=queries.data_ptr(),
            query_stride=queries.stride(0),
            mixed=_RowsStruct(floats=mixed_THE.data_ptr(), width=mixed_THE.shape[1] * mixed_THE.shape[2]),
            num_sequences=len(lengths),
            first_rows=firsts.ctypes.data_as(_int64_p),
            key_lengths=lengths.ctypes.data_as(_int64_p),
            block_table=table.ctypes.data_as(_int64_p),
            table_stride=table.shape[1],
        )
        if bias_HJ is not None:
            bias_HJ = bias_HJ.to(torch.float32).contiguous()
            batch.bias, batch.bias_width = bias_HJ.data_ptr(), bias_HJ.shape[1]
        self._run("janus_attention_run", struct, LayerPagesStruct.of(*cache), ctypes.byref(batch))
        return mixed_THE.to(q_THE.dtype)

    def _packed_pages(
        self,
        struct: AttentionSpecStruct,
        k_UGE: Tensor,
        v_UGE: Tensor,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
    ) -> tuple[LayerCache, NDArray[numpy.int64]]:
        """Pages for this call alone, each text's one after another, and their table."""
        counts = [-(-length // _LANES) for length in metadata.key_lengths]
        firsts = numpy.cumsum([0, *counts], dtype=numpy.int64)
        dtype = k_UGE.dtype if k_UGE.dtype in _TYPES else torch.float32
        cache = _new_pages(torch.empty, spec, int(firsts[-1]), _LANES, dtype)
        slots = numpy.concatenate(
            [
                numpy.arange(first * _LANES, first * _LANES + length)
                for first, length in zip(firsts, metadata.key_lengths, strict=False)
            ]
        )
        self._write(struct, LayerPagesStruct.of(*cache), k_UGE, v_UGE, slots)
        # What lies beyond a text's last page is never looked at, only has to be a page.
        table_SM = numpy.minimum(firsts[:-1, None] + numpy.arange(max(counts)), firsts[-1] - 1)
        return cache, table_SM

    def _write(
        self,
        spec: AttentionSpecStruct,
        pages: LayerPagesStruct,
        k_UGE: Tensor,
        v_UGE: Tensor,
        slots: NDArray[numpy.int64],
    ) -> None:
        keys, values = _rows(k_UGE), _rows(v_UGE)
        assert len(keys) == len(slots)
        self._run(
            "janus_attention_write",
            spec,
            pages,
            keys.data_ptr(),
            keys.stride(0),
            values.data_ptr(),
            values.stride(0),
            slots.ctypes.data_as(_int64_p),
            len(slots),
        )

    def _run(self, function: str, spec: AttentionSpecStruct, pages: LayerPagesStruct, *arguments: Any) -> None:
        library = self._library
        call = getattr(library.functions, function)
        if call(library.kernels, library.threads, ctypes.byref(spec), ctypes.byref(pages), *arguments):
            raise NativeLibraryError("no memory for attention over these rows")


def _new_pages(make: Any, spec: AttentionSpec, num_blocks: int, block_size: int, dtype: torch.dtype) -> LayerCache:
    step = 2 if dtype == torch.bfloat16 else 1
    num_heads, width = spec.num_key_value_heads, spec.head_width
    padded = -(-width // _LANES) * _LANES
    return LayerCache(
        make(num_blocks, num_heads, -(-width // step), block_size, step, dtype=dtype),
        make(num_blocks, num_heads, block_size // step, padded, step, dtype=dtype),
    )


def _in_large_pages(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros in memory of their own; what nobody has written takes none."""
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.frombuffer(Arena().take(num_bytes), dtype=dtype).view(shape)


def _block_size(keys: Tensor) -> int:
    return keys.shape[3]


def _rows(x_THE: Tensor) -> Tensor:
    """In float32, a row's heads side by side; a part of a fused row is taken where it lies."""
    x_THE = x_THE.detach().to(torch.float32)
    return x_THE if x_THE.stride()[1:] == (x_THE.shape[2], 1) else x_THE.contiguous()


def _integers(tensor: Tensor) -> NDArray[numpy.int64]:
    return numpy.ascontiguousarray(tensor.numpy())
