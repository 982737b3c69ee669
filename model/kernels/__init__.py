"""Attention kernels: one contract, one kernel a kind of device.

A kernel computes softmax(scale * q k^T + bias) v for each sequence of a packed batch (Vaswani et al., "Attention Is All
You Need", 2017, §3.2.1). Queries are aligned bottom-right: the last stands where the last key does, query i of n at
position `key_length - n + i`. Causal means that it sees keys up to there, a window that it sees those near it. (torch's
`is_causal` aligns top-left, which differs as soon as there is a past.)

A bias depends on the head and on the distance from query to key alone. It comes as a row a head, `[H, J]` with J odd:
the middle is for the key at the query's own position, one column to the right for the key after it, and so on.
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

    def __call__(
        self,
        q_THE: Tensor,
        k: Tensor,
        v: Tensor,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        bias_HJ: Tensor | None = None,
    ) -> Tensor:
        """Attends.

        Shape: q `[T, H, E]`; k and v `[U, G, E]` packed, or a layer's cache when there is a block table; the bias
        reaches at least as far as two tokens of a sequence stand apart -> `[T, H, E]`.
        """
        ...


def select_kernel(device: torch.device) -> AttentionKernel:
    """The kernel that serves on a device: the portable one, which torch runs on CPU and CUDA alike."""
    from model.kernels.portable import PortableKernel

    return PortableKernel()
