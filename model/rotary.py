"""Rotary positions: each pair of features of q and k turns by an angle that grows with the token's position.

Source: Su et al., "RoFormer" (2021), §3.2.2, in the half-split layout of the Llama checkpoints: feature i pairs with
feature i + E/2. q k^T then depends on the distance of two tokens, not on where they stand.
"""

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.errors import CheckpointError
from model.metadata import AttentionMetadata, AttentionSpec


class Rotary(nn.Module):
    """Turns the q and k parts of fused rows; v passes. Shape: `[T, (H+2G)E] -> [T, (H+2G)E]`."""

    def __init__(self, spec: AttentionSpec, frequencies: Tensor, max_positions: int) -> None:
        super().__init__()
        self.spec = spec
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequencies.to(torch.float32))
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)
        self.cosines: Tensor
        self.sines: Tensor

    def forward(self, row_TX: Tensor, metadata: AttentionMetadata) -> Tensor:
        query_width, key_width, value_width = self.spec.row_widths
        turned_TX, values_TX = row_TX.split((query_width + key_width, value_width), dim=1)
        heads = turned_TX.unflatten(1, (-1, 2, self.spec.head_width // 2))
        cosines = self.cosines[metadata.positions_T][:, None, :].to(row_TX.dtype)
        sines = self.sines[metadata.positions_T][:, None, :].to(row_TX.dtype)
        first, second = heads[:, :, 0], heads[:, :, 1]
        turned = torch.stack((first * cosines - second * sines, second * cosines + first * sines), dim=2)
        return torch.cat((turned.flatten(1), values_TX), dim=1)


def rotary_frequencies(head_width: int, parameters: Mapping[str, Any]) -> Tensor:
    """Radians a position for each pair of features, from a checkpoint's rope parameters.

    Shape: `[E/2]`. Raises: CheckpointError for a rope type other than default, linear or llama3, a number that is
    missing or not above 0, or an odd width.
    """
    if head_width % 2:
        raise CheckpointError(f"rotary positions turn pairs of features, and a head has {head_width}")
    theta = _number(parameters, "rope_theta", 10_000.0)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    frequencies = 1.0 / theta ** (torch.arange(0, head_width, 2, dtype=torch.int64).float() / head_width)
    if kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / _number(parameters, "factor")
    if kind == "llama3":
        return _llama3(frequencies, parameters)
    raise CheckpointError(f"rope type {kind!r} is not known; known: default, linear, llama3")


def _llama3(frequencies: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    """Llama 3.1's stretch: slow pairs by the full factor, fast ones not at all, a ramp between."""
    factor = _number(parameters, "factor")
    low, high = _number(parameters, "low_freq_factor"), _number(parameters, "high_freq_factor")
    if low >= high:
        raise CheckpointError(f"the checkpoint's rope parameter high_freq_factor is {high}, not above {low}")
    turns = _number(parameters, "original_max_position_embeddings") * frequencies / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies / factor * (1 - share) + frequencies * share


def _number(parameters: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = parameters.get(key, default)
    if value is None:
        raise CheckpointError(f"the checkpoint's rope parameters lack {key!r}")
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
        raise CheckpointError(f"the checkpoint's rope parameter {key} is not a number above 0")
    return float(value)
