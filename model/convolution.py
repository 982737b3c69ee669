"""A convolution over the tokens of a sequence: each becomes a sum of products of itself and its nearest neighbours."""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d

from model.metadata import AttentionMetadata


class Convolution(nn.Module):
    """As many neighbours on either side; beyond a sequence's ends stand zeros. Shape: `[T, D] -> [T, D]`.

    `size`, odd, counts the tokens of one sum. With groups, features of a group see only their own group.
    """

    def __init__(self, width: int, size: int, num_groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width // num_groups, size))
        self.bias = nn.Parameter(torch.empty(width))
        self.num_groups = num_groups

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        padding = self.weight.shape[2] // 2
        parts = x_TD.split(list(metadata.query_lengths))
        return torch.cat(
            [conv1d(part.T, self.weight, self.bias, padding=padding, groups=self.num_groups).T for part in parts]
        )
