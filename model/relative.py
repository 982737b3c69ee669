"""What attention learns about the distance of two tokens, in buckets: one each for near ones, wider ones further off.

A distance counts from the query to the key: negative is before it, positive after.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from model.metadata import AttentionMetadata


class RelativeBias(nn.Module):
    """A number a head and bucket, added to the scores of two tokens so far apart (Raffel et al., 2020, §2.1).

    Shape: the batch -> `[H, J]`, a row a head as the kernels read it, as far as the longest sequence reaches.
    """

    def __init__(self, num_buckets: int, max_distance: int, num_heads: int, max_positions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_buckets, num_heads))
        distances_J = torch.arange(1 - max_positions, max_positions)
        self.register_buffer("bucket_J", _buckets(distances_J, num_buckets, max_distance), persistent=False)
        self.bucket_J: Tensor

    def forward(self, metadata: AttentionMetadata) -> Tensor:
        middle, reach = len(self.bucket_J) // 2, max(metadata.key_lengths) - 1
        return embedding(self.bucket_J[middle - reach : middle + reach + 1], self.weight).T


def _buckets(distances_J: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Half of the buckets for either side; half of those for one distance each, the rest grow to `max_distance`."""
    num_buckets //= 2
    num_exact = num_buckets // 2
    far_J = distances_J.abs()
    steps_J = (far_J.float() / num_exact).log() / math.log(max_distance / num_exact) * (num_buckets - num_exact)
    wide_J = (num_exact + steps_J.clamp(min=0).long()).clamp(max=num_buckets - 1)
    return torch.where(far_J < num_exact, far_J, wide_J) + (distances_J > 0) * num_buckets
