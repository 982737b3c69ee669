"""What enters the first block: a vector a token, and where the family learns them, one a position and one a segment."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from model.kernels.native.matrix import PackedMatrix
from model.linear import Linear
from model.metadata import AttentionMetadata


class Embedding(nn.Module):
    """Row i of a table, which is dense or packed as a Linear's weight is. Shape: ids `[T]` -> `[T, D]`."""

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(num_rows, width))
        self.packed: PackedMatrix | None = None

    def pack(self, matrices: Sequence[PackedMatrix]) -> None:
        """Takes the one matrix in the place of the dense table, which is gone. Mutates: this module."""
        (self.packed,) = matrices
        del self.weight

    def forward(self, ids_T: Tensor) -> Tensor:
        return embedding(ids_T, self.weight) if self.packed is None else self.packed.rows(ids_T)


class LaterRows(Embedding):
    """Row first + i of a table whose first rows stand for no position (RoBERTa's). Shape: ids `[T]` -> `[T, D]`."""

    def __init__(self, num_rows: int, width: int, *, first: int) -> None:
        super().__init__(num_rows, width)
        self.first = first

    def forward(self, ids_T: Tensor) -> Tensor:
        return embedding(ids_T, self.weight[self.first :])


class FirstRow(Embedding):
    """Row 0 whatever the id: for a table that knows one kind (RoBERTa's segments). Shape: ids `[T]` -> `[T, D]`."""

    def forward(self, ids_T: Tensor) -> Tensor:
        return self.weight[:1].expand(len(ids_T), -1)


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


class NormedEmbeddings(nn.Module):
    """Tokens, then a norm: for an encoder whose attention knows the positions (ModernBERT)."""

    def __init__(self, tokens: Embedding, norm: nn.Module) -> None:
        super().__init__()
        self.tokens = tokens
        self.norm = norm

    def forward(self, token_ids_T: Tensor, token_types_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.norm(self.tokens(token_ids_T))


class OptionalEmbeddings(NormedEmbeddings):
    """The same with positions, segments and a product to the model's width, each where there is one (DeBERTa-v2)."""

    def __init__(
        self,
        tokens: Embedding,
        norm: nn.Module,
        *,
        positions: Embedding | None,
        segments: Embedding | None,
        projection: Linear | None,
    ) -> None:
        super().__init__(tokens, norm)
        self.positions = positions
        self.segments = segments
        self.projection = projection

    def forward(self, token_ids_T: Tensor, token_types_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        x_TD = self.tokens(token_ids_T)
        if self.positions is not None:
            x_TD = x_TD + self.positions(metadata.positions_T)
        if self.segments is not None:
            x_TD = x_TD + self.segments(token_types_T)
        if self.projection is not None:
            x_TD = self.projection(x_TD, metadata)
        return self.norm(x_TD)


class UnsegmentedEmbeddings(nn.Module):
    """Tokens plus learned positions, then a norm: what BERT has, for a family that reads no segments (DistilBERT)."""

    def __init__(self, tokens: Embedding, positions: Embedding, norm: nn.Module) -> None:
        super().__init__()
        self.tokens = tokens
        self.positions = positions
        self.norm = norm

    def forward(self, token_ids_T: Tensor, token_types_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.norm(self.tokens(token_ids_T) + self.positions(metadata.positions_T))


class SegmentedEmbeddings(nn.Module):
    """Tokens plus learned positions plus segments, then a norm (BERT, §3.2)."""

    def __init__(self, tokens: Embedding, positions: Embedding, segments: Embedding, norm: nn.Module) -> None:
        super().__init__()
        self.tokens = tokens
        self.positions = positions
        self.segments = segments
        self.norm = norm

    def forward(self, token_ids_T: Tensor, token_types_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.norm(self.tokens(token_ids_T) + self.segments(token_types_T) + self.positions(metadata.positions_T))


class ProjectedEmbeddings(SegmentedEmbeddings):
    """The same from tables narrower than the model, then a product to its width (ELECTRA, §3.2)."""

    def __init__(
        self, tokens: Embedding, positions: Embedding, segments: Embedding, norm: nn.Module, projection: Linear
    ) -> None:
        super().__init__(tokens, positions, segments, norm)
        self.projection = projection

    def forward(self, token_ids_T: Tensor, token_types_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.projection(super().forward(token_ids_T, token_types_T, metadata), metadata)
