"""Attention kernels: one contract, one kernel a kind of device.

A kernel computes softmax(scale * q k^T) v for each sequence of a packed batch (Vaswani et al., "Attention Is All You
Need", 2017, §3.2.1). Causal means aligned bottom-right: the last query sees the last key, query i of n sees keys up to
`key_length - n + i`. (torch's `is_causal` aligns top-left, which differs as soon as there is a past.)
"""

from typing import Protocol

import torch
from torch import Tensor

from model.kv_cache import LayerCache
from model.metadata import AttentionMetadata, AttentionSpec


class AttentionKernel(Protocol):
    """Owns the layout of the cache it makes; every kernel passes the same contract test."""

    name: str

    def new_cache(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> LayerCache:
        """Empty pages for one layer."""
        ...

    def write(self, cache: LayerCache, k_UGE: Tensor, v_UGE: Tensor, slot_mapping_U: Tensor) -> None:
        """Puts each token's key and value into its slot. Mutates: `cache`."""
        ...

    def __call__(self, q_THE: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata, spec: AttentionSpec) -> Tensor:
        """Attends.

        Shape: q `[T, H, E]`; k and v `[U, G, E]` packed, or a layer's cache when there is a block table -> `[T, H, E]`.
        """
        ...


def select_kernel(device: torch.device) -> AttentionKernel:
    """The kernel that serves on a device: the portable one, which torch runs on CPU and CUDA alike."""
    from model.kernels.portable import PortableKernel

    return PortableKernel()
