"""The whole of figure 1: an encoder reads, a decoder writes and looks across at what was read.

The encoder's output is read once: `remember` stores each decoder layer's keys and values of it in pages of their own.
"""

from torch import Tensor, nn

from model.decoder import Decoder
from model.encoder import Encoder
from model.kv_cache import KVCache
from model.metadata import AttentionMetadata, Memory


class EncoderDecoder(nn.Module):
    """Sequence to sequence. Mutates: `cache`, on `remember` its memory pages, on `forward` its token pages."""

    def __init__(self, encoder: Encoder, decoder: Decoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = head

    def remember(
        self,
        token_ids_U: Tensor,
        token_types_U: Tensor,
        metadata: AttentionMetadata,
        memory: Memory,
        cache: KVCache,
    ) -> None:
        """Reads the sources, packed as `metadata` says."""
        memory_UD = self.encoder(token_ids_U, token_types_U, metadata)
        self.decoder.remember(memory_UD, metadata, memory, cache)

    def forward(self, token_ids_T: Tensor, metadata: AttentionMetadata, cache: KVCache, memory: Memory) -> Tensor:
        """Logits of the next target tokens. Shape: `[T] -> [L, V]`."""
        return self.head(self.decoder(token_ids_T, metadata, cache, memory), metadata)
