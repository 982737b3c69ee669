"""Packed matrices hold what the checkpoint holds: bit for bit, in any form, of any size, in any order of rows."""

import ctypes
from collections.abc import Callable
from dataclasses import replace

import numpy
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import Tensor

from model.errors import CheckpointError
from model.kernels.native import matrix as packing
from model.kernels.native.arena import CHUNK_BYTES, Arena
from model.kernels.native.matrix import BF16, EXACT, FLOAT32, INT8, MatrixStruct, PackedMatrix, Source, product

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Halves that are odd: zeros, the smallest, subnormal, the largest, infinite, not a number.
EXTREMES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFFFF, 0x7C01]


def blocks_of(name: str, num_rows: int, num_columns: int, *, seed: int = 0) -> NDArray[numpy.uint8]:
    """Random bytes are blocks; every other scale, and minimum, is an extreme one. Shape: `[rows, bytes of a row]`."""
    num_elements, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    random = numpy.random.default_rng(seed)
    blocks = random.integers(0, 256, (num_rows, num_columns // num_elements, num_bytes), dtype=numpy.uint8)
    for begin in range(0, 4 if EXACT[name].has_minimum else 2, 2):
        halves = random.choice(numpy.array(EXTREMES, dtype=numpy.uint16), blocks.shape[:2])
        is_plain = random.random(blocks.shape[:2]) < 0.5
        halves[is_plain] = random.integers(0, 0x7C00, is_plain.sum(), dtype=numpy.uint16)
        blocks[:, :, begin : begin + 2] = halves[:, :, None].view(numpy.uint8)
    return blocks.reshape(num_rows, -1)


def source_of(name: str, blocks: NDArray[numpy.uint8], num_columns: int, order: Tensor | None = None) -> Source:
    return Source(memoryview(blocks.tobytes()), name, len(blocks), num_columns, order)


def values_of(name: str, blocks: NDArray[numpy.uint8]) -> Tensor:
    with numpy.errstate(all="ignore"):
        return torch.from_numpy(dequantize(blocks, GGMLQuantizationType[name]))


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    """What is no number may be any that is none."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == torch.float32
    is_same = (found.view(torch.int32) == expected.view(torch.int32)) | (found.isnan() & expected.isnan())
    assert is_same.all()


@pytest.mark.parametrize("num_rows", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("num_columns", [32, 96])
@pytest.mark.parametrize("name", EXACT)
def test_blocks_are_the_library_s_to_the_bit(name: str, num_rows: int, num_columns: int) -> None:
    blocks = blocks_of(name, num_rows, num_columns)
    expected = values_of(name, blocks)
    assert not expected.isfinite().all() or num_rows == 1
    packed = PackedMatrix(source_of(name, blocks, num_columns), EXACT[name], Arena())
    assert_same_bits(packed.unpack(), expected)
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(1))
    assert_same_bits(packed.rows(order), expected[order])
    reordered = PackedMatrix(source_of(name, blocks, num_columns, order), EXACT[name], Arena())
    assert_same_bits(reordered.unpack(), expected[order])


@pytest.mark.parametrize("name", EXACT)
def test_blocks_in_other_forms_are_their_values(name: str) -> None:
    blocks = blocks_of(name, 40, 64)
    expected = values_of(name, blocks)
    source = source_of(name, blocks, 64)
    assert_same_bits(PackedMatrix(source, FLOAT32, Arena()).unpack(), expected)
    assert_same_bits(PackedMatrix(source, BF16, Arena()).unpack(), expected.bfloat16().float())


def dense(dtype: torch.dtype, *shape: int) -> Tensor:
    """Random numbers of all sizes, some odd ones among them."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(shape, generator=generator) * 10.0 ** torch.randint(-6, 3, shape, generator=generator)
    odd = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, -6e-8, 3e38])
    places = torch.randperm(values.numel(), generator=generator)[: len(odd)]
    values.view(-1)[places] = odd[: len(places)]
    return values.to(dtype)


@pytest.mark.parametrize("is_transposed", [False, True], ids=["", "transposed"])
@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (33, 31), (5, 100), (70, 33)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dense_values_are_kept_or_rounded_once(dtype: torch.dtype, shape: tuple[int, int], is_transposed: bool) -> None:
    values = dense(dtype, *shape)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(1))
    source = Source.of(values.T if is_transposed else values, is_transposed=is_transposed)
    for layout, expected in ((FLOAT32, values.float()), (BF16, values.float().bfloat16().float())):
        packed = PackedMatrix(source, layout, Arena())
        assert_same_bits(packed.unpack(), expected)
        assert_same_bits(packed.rows(order[:3]), expected[order[:3]])
        assert_same_bits(PackedMatrix(source.taking(slice(0, 1)), layout, Arena()).unpack(), expected[:1])
        shuffled = replace(source, order=order)
        assert_same_bits(PackedMatrix(shuffled, layout, Arena()).unpack(), expected[order])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exactness_in_bf16(dtype: torch.dtype) -> None:
    values = dense(torch.bfloat16, 300, 50).nan_to_num(1.0)
    # What bf16 has beyond the range of halves is none of theirs.
    values = values.clamp(-1000, 1000).where(values.abs() > 1e-4, 0.0).to(dtype)
    assert Source.of(values).is_exact_in_bf16()
    if dtype != torch.bfloat16:
        values[-1, -1] = 1 + 2**-9
        assert not Source.of(values).is_exact_in_bf16()


@pytest.mark.parametrize("scale", [1e4, 1.0, 1e-3, 1e-5, 1e-7, 0.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_eight_bits_lose_half_a_step_at_most(dtype: torch.dtype, scale: float) -> None:
    values = (torch.randn(45, 64, generator=torch.Generator().manual_seed(0)) * scale).to(dtype).float()
    packed = PackedMatrix(Source.of(values), INT8, Arena())
    groups = values.unflatten(1, (-1, 32))
    exact = groups.abs().amax(dim=2, keepdim=True) / 127
    # A scale is the next half above, so a step is as wide as a half's own at most, or the smallest half.
    step = torch.maximum(exact * (1 + 2**-10), exact + 2**-24)
    lost = (packed.unpack().unflatten(1, (-1, 32)) - groups).abs()
    assert (lost <= 0.5001 * step).all()
    assert packed.num_bytes == 2 * 2 * (1024 + 64)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e30])
def test_eight_bits_refuse_what_they_can_not_hold(wrong: float) -> None:
    values = torch.ones(40, 64)
    values[37, 40] = wrong
    with pytest.raises(CheckpointError, match="a number that is none, or that is too large"):
        PackedMatrix(Source.of(values), INT8, Arena())


def test_segments_of_one_tensor() -> None:
    values = dense(torch.float32, 70, 32)
    parts = [PackedMatrix(Source.of(values).taking(rows), FLOAT32, Arena()) for rows in (slice(0, 33), slice(33, 70))]
    assert_same_bits(torch.cat([part.unpack() for part in parts]), values)


def test_what_is_behind_the_last_output_is_zero() -> None:
    for layout, source in (
        (FLOAT32, Source.of(torch.ones(33, 3))),
        (BF16, Source.of(torch.ones(33, 3))),
        (INT8, Source.of(torch.ones(33, 32))),
        (EXACT["Q4_1"], source_of("Q4_1", blocks_of("Q4_1", 33, 32), 32)),
    ):
        packed = PackedMatrix(source, layout, Arena())
        rest = MatrixStruct.from_buffer_copy(packed.struct)
        rest.num_outputs = 64
        values = torch.ones(64, source.num_columns)
        status = packing._library().functions.janus_unpack(None, ctypes.byref(rest), None, 64, values.data_ptr())
        assert status == 0
        assert not values[33:].any()


def broken(**changes: object) -> Callable[[], PackedMatrix]:
    blocks = blocks_of("Q4_1", 40, 64)
    arguments = {"content": memoryview(blocks.tobytes()), "type": "Q4_1", "num_rows": 40, "num_columns": 64, **changes}
    layout = arguments.pop("layout", EXACT["Q4_1"])
    return lambda: PackedMatrix(Source(**arguments), layout, Arena())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rows": 41}, "ends before its last row"),
        ({"num_columns": 96}, "ends before its last row"),
        ({"content": memoryview(b"1")}, "ends before its last row"),
        ({"order": torch.tensor([0, 40])}, "has no such row"),
        ({"order": torch.tensor([-1])}, "has no such row"),
        ({"num_columns": 48}, "has no shape of a matrix in this form"),
        ({"num_columns": 48, "layout": BF16}, "does not go into this form"),
        ({"num_rows": 0}, "has no shape"),
        ({"layout": EXACT["Q4_0"]}, "does not go into this form"),
        ({"layout": EXACT["Q5_1"]}, "does not go into this form"),
        ({"is_transposed": True}, "does not go into this form"),
        ({"type": "F32", "num_rows": 1 << 40, "layout": BF16, "order": torch.tensor([0])}, "has no shape"),
        ({"type": "F32", "num_rows": (1 << 31) - 1, "layout": BF16, "order": torch.tensor([0])}, "ends before"),
    ],
)
def test_a_source_that_is_not_what_it_says_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        broken(**changes)()


def test_rows_that_there_are_not() -> None:
    packed = PackedMatrix(Source.of(torch.ones(33, 3)), FLOAT32, Arena())
    for row in (-1, 33, 1 << 40):
        with pytest.raises(IndexError, match="beyond the 33"):
            packed.rows(torch.tensor([0, row]))
    assert packed.rows(torch.tensor([], dtype=torch.int64)).shape == (0, 3)


def test_products_of_mixed_segments() -> None:
    """A product of each form, beside its own float64: 8-bit activations lose what they lose."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 64, generator=generator)
    weights = [torch.randn(rows, 64, generator=generator) for rows in (40, 33, 5)]
    bias = torch.randn(78, generator=generator)
    packed = [
        PackedMatrix(Source.of(w), layout, Arena()) for w, layout in zip(weights, (FLOAT32, BF16, INT8), strict=True)
    ]
    y = product(packed, bias, x)
    exact = torch.cat([x.double() @ matrix.unpack().double().T for matrix in packed], dim=1) + bias
    for part, bound in ((slice(0, 40), 1e-5), (slice(40, 73), 0.1), (slice(73, 78), 0.3)):
        torch.testing.assert_close(y[:, part].double(), exact[:, part], rtol=0, atol=bound)
    assert torch.equal(product(packed, bias, x[3:4]), y[3:4])
    assert product(packed, None, x[:0]).shape == (0, 78)


def test_memory_is_aligned_and_never_shared() -> None:
    arena = Arena()
    parts = [arena.take(size) for size in (1, 65, 4096, CHUNK_BYTES - 64, CHUNK_BYTES, CHUNK_BYTES + 1, 3)]
    for number, part in enumerate(parts):
        assert ctypes.addressof(part) % 64 == 0
        part[0] = part[len(part) - 1] = number + 1
    assert [(part[0], part[len(part) - 1]) for part in parts] == [(n, n) for n in range(1, 8)]


def test_no_memory_at_all() -> None:
    with pytest.raises(MemoryError, match=f"no {1 << 62} bytes"):
        Arena().take(1 << 62)
