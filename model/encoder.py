"""The encoder: every token sees every token of its sequence (the left half of the paper's figure 1; BERT)."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from model.block import EncoderBlock
from model.embeddings import NormedEmbeddings, SegmentedEmbeddings, UnsegmentedEmbeddings
from model.metadata import AttentionMetadata

Embeddings = SegmentedEmbeddings | UnsegmentedEmbeddings | NormedEmbeddings


class Encoder(nn.Module):
    """Embeddings, blocks, and a last norm where the blocks norm what they read. Shape: ids, types `[T]` -> `[T, D]`."""

    def __init__(self, embeddings: Embeddings, blocks: Sequence[EncoderBlock], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(self, token_ids_T: Tensor, token_types_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        x_TD = self.embeddings(token_ids_T, token_types_T, metadata)
        for block in self.blocks:
            x_TD = block(x_TD, metadata)
        return x_TD if self.norm is None else self.norm(x_TD)

    @property
    def num_heads(self) -> int:
        return cast(EncoderBlock, self.blocks[0]).attention.attend.spec.num_query_heads

    @property
    def kernel_name(self) -> str:
        return cast(EncoderBlock, self.blocks[0]).attention.kernel_name


class EncoderModel(nn.Module):
    """An encoder and the head of its checkpoint; hidden states come out where it has none.

    Shape: ids and types `[T]` -> whatever the head makes of `[T, D]`.
    """

    def __init__(self, encoder: Encoder, head: nn.Module | None, config: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.config = config

    def forward(self, token_ids_T: Tensor, token_types_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        hidden_TD = self.encoder(token_ids_T, token_types_T, metadata)
        return hidden_TD if self.head is None else self.head(hidden_TD, metadata)
