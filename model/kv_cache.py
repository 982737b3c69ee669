"""The cache tensors, and nothing else: which block belongs to whom is the scheduler's arithmetic.

Paged after Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (2023), §4.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class LayerCache(NamedTuple):
    """Keys and values of one layer; the kernel that made them owns their layout."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of every layer.

    `layers` hold a decoder's own tokens, `memory_layers` what it looks across at (empty without cross-attention).
    """

    layers: tuple[LayerCache, ...]
    memory_layers: tuple[LayerCache, ...] = ()

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for layer in (*self.layers, *self.memory_layers) for tensor in layer)
