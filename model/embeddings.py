"""What enters the first block: a vector a token, and where the family learns them, one a position and one a segment."""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from model.metadata import AttentionMetadata


class Embedding(nn.Module):
    """Row i of a table. Shape: ids `[T]` -> `[T, D]`."""

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, width))

    def forward(self, ids_T: Tensor) -> Tensor:
        return embedding(ids_T, self.weight)


class TokenEmbeddings(nn.Module):
    """Tokens alone: for families whose attention knows the positions (Llama)."""

    def __init__(self, vocabulary_size: int, width: int) -> None:
        super().__init__()
        self.tokens = Embedding(vocabulary_size, width)

    def forward(self, token_ids_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.tokens(token_ids_T)


class PositionedEmbeddings(nn.Module):
    """Tokens plus learned positions (GPT-2)."""

    def __init__(self, vocabulary_size: int, max_positions: int, width: int) -> None:
        super().__init__()
        self.tokens = Embedding(vocabulary_size, width)
        self.positions = Embedding(max_positions, width)

    def forward(self, token_ids_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.tokens(token_ids_T) + self.positions(metadata.positions_T)


class SegmentedEmbeddings(nn.Module):
    """Tokens plus learned positions plus segments, then a norm (BERT, §3.2)."""

    def __init__(
        self, vocabulary_size: int, max_positions: int, num_segments: int, width: int, norm: nn.Module
    ) -> None:
        super().__init__()
        self.tokens = Embedding(vocabulary_size, width)
        self.positions = Embedding(max_positions, width)
        self.segments = Embedding(num_segments, width)
        self.norm = norm

    def forward(self, token_ids_T: Tensor, token_types_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.norm(self.tokens(token_ids_T) + self.segments(token_types_T) + self.positions(metadata.positions_T))
