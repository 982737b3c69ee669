"""The products of every variant against a plain oracle in float64, and the same bytes for a row in any company."""

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.kernels.native.arena import Arena
from model.kernels.native.library import ThreadPlan, native_library
from model.kernels.native.matrix import BF16, FLOAT32, INT8, Layout, PackedMatrix, Source, product

VARIANTS = native_library().kernel_names()
FOUR_BIT, FOUR_BIT_MINIMUM = Layout("four_bit", zero_point=8), Layout("four_bit", has_minimum=True)
FIVE_BIT, FIVE_BIT_MINIMUM = Layout("eight_bit", zero_point=16), Layout("eight_bit", has_minimum=True)
BLOCKS = {"Q4_0": FOUR_BIT, "Q4_1": FOUR_BIT_MINIMUM, "Q5_0": FIVE_BIT, "Q5_1": FIVE_BIT_MINIMUM, "Q8_0": INT8}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(native_library(), "variant", request.param)
    return request.param


@pytest.fixture(autouse=True)
def two_threads():
    plan = native_library().plan
    native_library().use_threads(ThreadPlan(2))
    yield
    native_library().use_threads(plan)


def quantised(kind: str, num_outputs: int, num_inputs: int, seed: int) -> PackedMatrix:
    """A random matrix in blocks of a GGUF type."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    values = numpy.random.default_rng(seed).standard_normal((num_outputs, num_inputs)).astype(numpy.float32)
    blocks = quantize(values, GGMLQuantizationType[kind])
    return PackedMatrix(Source(memoryview(blocks.tobytes()), kind, num_outputs, num_inputs), BLOCKS[kind], Arena())


def dense(layout: Layout, num_outputs: int, num_inputs: int, seed: int) -> PackedMatrix:
    values = torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(seed))
    if layout == BF16:
        values = values.to(torch.bfloat16)
    return PackedMatrix(Source.of(values), layout, Arena())


def random_rows(num_rows: int, width: int, seed: int = 9) -> Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed)) * 3


def as_read(matrix: PackedMatrix, x_TI: Tensor) -> Tensor:
    """The rows as the form reads them: rounded to bf16, or to 8-bit codes with a scale for 16 inputs."""
    if matrix.form == "bf16":
        return x_TI.to(torch.bfloat16).double()
    if matrix.form == "float32":
        return x_TI.double()
    groups = x_TI.unflatten(1, (-1, 16))
    peaks = groups.abs().amax(dim=2, keepdim=True)
    codes = (groups * torch.where(peaks > 0, 127 / peaks, 0)).round()
    return (codes.double() * (peaks / 127).double()).flatten(1)


def oracle(matrix: PackedMatrix, x_TI: Tensor) -> Tensor:
    return as_read(matrix, x_TI) @ matrix.unpack().double().T


def assert_near(y: Tensor, expected: Tensor, matrix: PackedMatrix, x_TI: Tensor) -> None:
    # Rounding grows with the size of what is summed, not with the sum.
    size = as_read(matrix, x_TI).abs() @ matrix.unpack().double().abs().T
    assert ((y.double() - expected).abs() <= 2e-6 * size + 1e-30).all()


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize(("num_outputs", "num_inputs", "num_rows"), [(32, 32, 1), (70, 64, 7), (129, 576, 50)])
def test_a_product_of_blocks_is_the_oracles(
    variant: str, kind: str, num_outputs: int, num_inputs: int, num_rows: int
) -> None:
    matrix, x_TI = quantised(kind, num_outputs, num_inputs, seed=1), random_rows(num_rows, num_inputs)
    assert_near(product([matrix], None, x_TI), oracle(matrix, x_TI), matrix, x_TI)


@pytest.mark.parametrize("layout", [BF16, FLOAT32], ids=lambda layout: layout.form)
@pytest.mark.parametrize(("num_outputs", "num_inputs", "num_rows"), [(1, 1, 1), (31, 33, 5), (129, 80, 50)])
def test_a_dense_product_is_the_oracles(
    variant: str, layout: Layout, num_outputs: int, num_inputs: int, num_rows: int
) -> None:
    matrix, x_TI = dense(layout, num_outputs, num_inputs, seed=2), random_rows(num_rows, num_inputs)
    assert_near(product([matrix], None, x_TI), oracle(matrix, x_TI), matrix, x_TI)


def test_parts_of_different_forms_are_one_product_with_a_bias(variant: str) -> None:
    parts = [
        quantised("Q4_1", 96, 64, 1),
        dense(BF16, 33, 64, 2),
        quantised("Q8_0", 40, 64, 3),
        dense(FLOAT32, 5, 64, 4),
    ]
    x_TI, bias_O = random_rows(9, 64), random_rows(1, 174, seed=5)[0]
    y_TO = product(parts, bias_O, x_TI)
    start = 0
    for part in parts:
        mine = slice(start, start + part.shape[0])
        assert_near(y_TO[:, mine] - bias_O[mine], oracle(part, x_TI), part, x_TI.abs() + bias_O.abs().max())
        start = mine.stop
    assert start == y_TO.shape[1]


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "bf16", "float32"])
def test_a_row_gets_the_same_bytes_in_any_batch_and_with_any_threads(variant: str, kind: str) -> None:
    make = {"bf16": lambda: dense(BF16, 100, 96, 6), "float32": lambda: dense(FLOAT32, 100, 96, 6)}
    matrix = make.get(kind, lambda: quantised(kind, 100, 96, 6))()
    x_TI = random_rows(61, 96)
    alone = torch.cat([product([matrix], None, x_TI[row : row + 1]) for row in range(len(x_TI))])
    for num_threads in (1, 2, 3, 4):
        native_library().use_threads(ThreadPlan(num_threads))
        for num_rows in (1, 2, 5, 6, 7, 13, 48, 49, 61):
            assert torch.equal(product([matrix], None, x_TI[-num_rows:]), alone[-num_rows:])


def test_rows_of_zeros_and_of_the_largest_numbers_stay_finite_or_say_so(variant: str) -> None:
    matrix = quantised("Q4_1", 32, 64, 7)
    x_TI = torch.zeros(3, 64)
    x_TI[1] = 1e-42
    x_TI[2] = 1e30
    y_TO = product([matrix], None, x_TI)
    assert (y_TO[0] == 0).all()
    assert torch.isfinite(y_TO).all()


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from([*BLOCKS, "bf16", "float32"]),
    name=st.sampled_from(VARIANTS),
    num_outputs=st.integers(1, 140),
    num_groups=st.integers(1, 5),
    num_rows=st.integers(1, 70),
    seed=st.integers(0, 1000),
)
def test_any_shape(kind: str, name: str, num_outputs: int, num_groups: int, num_rows: int, seed: int) -> None:
    library = native_library()
    before, library.variant = library.variant, name
    try:
        if kind in BLOCKS:
            matrix = quantised(kind, num_outputs, 32 * num_groups, seed)
        else:
            matrix = dense(BF16 if kind == "bf16" else FLOAT32, num_outputs, 32 * num_groups - seed % 32, seed)
        x_TI = random_rows(num_rows, matrix.shape[1], seed)
        assert_near(product([matrix], None, x_TI), oracle(matrix, x_TI), matrix, x_TI)
    finally:
        library.variant = before
