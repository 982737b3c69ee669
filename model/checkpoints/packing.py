"""In which form a matrix of a checkpoint is packed: a rule a name, as settings give it."""

from typing import Literal, get_args

from model.kernels.native.matrix import BF16, EXACT, FLOAT32, INT8, Layout, Source

Packing = Literal["as_stored", "bf16", "int8", "float32"]
"""
as_stored   the values of the file: blocks code for code, bf16 as bf16, float32 and float16 as float32, float16 that
            bf16 holds without rounding as bf16
bf16        each value rounded to bf16
int8        blocks as they are, all else to 8-bit codes with a scale for each 32 inputs
float32     each value in float32
"""
PACKINGS: tuple[Packing, ...] = get_args(Packing)


def layout_of(source: Source, packing: Packing) -> Layout:
    if packing in ("float32", "bf16"):
        return FLOAT32 if packing == "float32" else BF16
    if not source.is_dense:
        return EXACT[source.type]
    if packing == "int8" and source.num_columns % 32 == 0:
        return INT8
    is_bf16 = source.type == "BF16" or (source.type == "F16" and source.is_exact_in_bf16())
    return BF16 if is_bf16 else FLOAT32
