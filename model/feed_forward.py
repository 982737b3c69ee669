"""The position-wise feed-forward layer (Vaswani et al., 2017, §3.3) and its gated form (Shazeer, 2020)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from model.errors import CheckpointError
from model.linear import Linear
from model.metadata import AttentionMetadata

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_new": lambda x: gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "silu": silu,
    "tanh": torch.tanh,
}


class Activation(nn.Module):
    """A non-linearity by its name in a checkpoint's config. Raises: CheckpointError for an unknown name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in ACTIVATIONS:
            raise CheckpointError(f"activation {name!r} is not known; known: {', '.join(sorted(ACTIVATIONS))}")
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.name](x)


class Gate(nn.Module):
    """activation(gate) * up, side by side in one row. Shape: `[T, 2F] -> [T, F]`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.activation = Activation(name)

    def forward(self, row_TX: Tensor) -> Tensor:
        gate_TF, up_TF = row_TX.chunk(2, dim=1)
        return self.activation(gate_TF) * up_TF


class FeedForward(nn.Module):
    """down(activation(up(x))): the same two products for every token."""

    def __init__(self, width: int, inner_width: int, activation: str, *, has_bias: bool) -> None:
        super().__init__()
        self.up = Linear(width, inner_width, has_bias=has_bias)
        self.activation = Activation(activation)
        self.down = Linear(inner_width, width, has_bias=has_bias)

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.down(self.activation(self.up(x_TD, metadata)), metadata)


class GatedFeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)), gate and up as one product."""

    def __init__(self, width: int, inner_width: int, activation: str, *, has_bias: bool) -> None:
        super().__init__()
        self.gate_up = Linear(width, {"gate": inner_width, "up": inner_width}, has_bias=has_bias)
        self.gate = Gate(activation)
        self.down = Linear(inner_width, width, has_bias=has_bias)

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.down(self.gate(self.gate_up(x_TD, metadata)), metadata)
