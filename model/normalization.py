"""Layer norm (Ba et al., 2016) and RMS norm (Zhang and Sennrich, 2019). Shape: `[T, D] -> [T, D]`."""

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, over a token's own features; some families add no bias."""

    def __init__(self, width: int, epsilon: float, *, has_bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if has_bias else None
        self.epsilon = epsilon

    def forward(self, x_TD: Tensor) -> Tensor:
        return layer_norm(x_TD, self.weight.shape, self.weight, self.bias, self.epsilon)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight: layer norm without the mean and the bias."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, x_TD: Tensor) -> Tensor:
        return rms_norm(x_TD, self.weight.shape, self.weight, self.epsilon)
