"""Linear: the only owner of a weight, written and read as named row segments.

Projections that read the same input are one product (q, k and v; gate and up): each keeps its rows, and the family's
weight map says which tensor of a checkpoint fills which segment. A weight is dense, for a GPU, for training and for
encoders, or packed, a matrix a segment: then every path reads the packed bytes, and there is no other copy.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from model.kernels.native.matrix import PackedMatrix, product
from model.metadata import AttentionMetadata


class LowRankAdapters(nn.Module):
    """Adapters of one Linear, applied by row: y += up(down(x)) where the row's adapter is a, nothing where it is 0.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), §4.1; the scale is part of `up`.
    Shape: down `[A, R, I]`, up `[A, O, R]`.
    """

    def __init__(self, down_ARI: Tensor, up_AOR: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(down_ARI)
        self.up = nn.Parameter(up_AOR)

    def forward(self, x_TI: Tensor, adapter_T: Tensor) -> Tensor:
        num_adapters, rank, _ = self.down.shape
        low_TAR = linear(x_TI, self.down.flatten(0, 1)).unflatten(1, (num_adapters, rank))
        is_mine_TA = adapter_T[:, None] == torch.arange(1, num_adapters + 1, device=adapter_T.device)
        low_TX = (low_TAR * is_mine_TA[:, :, None].to(low_TAR.dtype)).flatten(1, 2)
        return linear(low_TX, self.up.transpose(0, 1).flatten(1, 2))


class Linear(nn.Module):
    """y = W x + b, and what the row's adapter adds. Shape: `[T, I] -> [T, O]`.

    `segments` names the row ranges of W in order; a plain number is one segment without a name. A packed one has a
    matrix for each in `packed`, in their order, and no `weight`.
    """

    def __init__(self, in_width: int, segments: int | Mapping[str, int], *, has_bias: bool) -> None:
        super().__init__()
        self.segments = {"": segments} if isinstance(segments, int) else dict(segments)
        self.in_width = in_width
        self.out_width = sum(self.segments.values())
        self.weight = nn.Parameter(torch.empty(self.out_width, in_width))
        self.bias = nn.Parameter(torch.empty(self.out_width)) if has_bias else None
        self.packed: tuple[PackedMatrix, ...] | None = None
        self.adapters: LowRankAdapters | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of what comes out; packed weights of all types give float32."""
        return self.weight.dtype if self.packed is None else torch.float32

    @property
    def device(self) -> torch.device:
        return self.weight.device if self.packed is None else torch.device("cpu")

    def pack(self, matrices: Sequence[PackedMatrix]) -> None:
        """Takes a matrix a segment in the place of the dense weight, which is gone. Mutates: this module."""
        assert [matrix.shape for matrix in matrices] == [(rows, self.in_width) for rows in self.segments.values()]
        del self.weight
        self.packed = tuple(matrices)

    def rows(self, segment: str) -> slice:
        """Where a segment lies. Raises: KeyError for a name that there isn't."""
        start = 0
        for name, width in self.segments.items():
            if name == segment:
                return slice(start, start + width)
            start += width
        raise KeyError(segment)

    def forward(self, x_TI: Tensor, metadata: AttentionMetadata) -> Tensor:
        packed, bias = self.packed, self.bias
        y_TO = linear(x_TI, self.weight, bias) if packed is None else product(packed, bias, x_TI)
        if self.adapters is not None and metadata.adapter_T is not None:
            y_TO = y_TO + self.adapters(x_TI, metadata.adapter_T)
        return y_TO

    def segment(self, name: str, x_TI: Tensor) -> Tensor:
        """The outputs of one segment alone, without adapters. Raises: KeyError for a name that there isn't."""
        rows = self.rows(name)
        bias = None if self.bias is None else self.bias[rows]
        if self.packed is None:
            return linear(x_TI, self.weight[rows], bias)
        return product([self.packed[list(self.segments).index(name)]], bias, x_TI)
