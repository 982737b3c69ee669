"""The decoder: a token sees itself and what came before (the right half of the paper's figure 1; GPT, Llama)."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from model.attention import MultiHeadAttention
from model.block import DecoderBlock
from model.kv_cache import KVCache
from model.metadata import AttentionMetadata, Memory


class Decoder(nn.Module):
    """Embeddings, blocks, a last norm. Shape: ids `[T]` -> hidden `[T, D]`. Mutates: `cache`."""

    def __init__(self, embeddings: nn.Module, blocks: Sequence[DecoderBlock], norm: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(
        self,
        token_ids_T: Tensor,
        metadata: AttentionMetadata,
        cache: KVCache | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        x_TD = self.embeddings(token_ids_T, metadata)
        for i, block in enumerate(self.blocks):
            layer = None if cache is None else cache.layers[i]
            memory_layer = None if cache is None or memory is None else cache.memory_layers[i]
            x_TD = block(x_TD, metadata, layer, memory, memory_layer)
        return self.norm(x_TD)

    def remember(self, memory_UD: Tensor, metadata: AttentionMetadata, memory: Memory, cache: KVCache) -> None:
        """Stores what every block's cross-attention looks at. Mutates: `cache.memory_layers`."""
        for i, attention in enumerate(self._cross_attentions):
            attention.remember(memory_UD, metadata, memory, cache.memory_layers[i])

    def new_cache(self, num_blocks: int, block_size: int, *, num_memory_blocks: int = 0) -> KVCache:
        """Empty pages for every layer, in the dtype and on the device of the weights.

        Units: blocks of `block_size` tokens. `num_memory_blocks` pages hold what cross-attention looks at.
        """
        return KVCache(
            tuple(attention.new_cache(num_blocks, block_size) for attention in self._attentions),
            tuple(attention.new_cache(num_memory_blocks, block_size) for attention in self._cross_attentions),
        )

    @property
    def kernel_name(self) -> str:
        return self._attentions[0].attend.kernel.name

    def cache_bytes_per_token(self) -> int:
        """What one token costs in the cache, over all layers."""
        element_bytes = self._attentions[0].project_out.dtype.itemsize
        return sum(sum(attention.attend.spec.row_widths[1:]) * element_bytes for attention in self._attentions)

    @property
    def _attentions(self) -> list[MultiHeadAttention]:
        return [cast(DecoderBlock, block).attention for block in self.blocks]

    @property
    def _cross_attentions(self) -> list[MultiHeadAttention]:
        candidates = [cast(DecoderBlock, block).cross_attention for block in self.blocks]
        return [attention for attention in candidates if attention is not None]


class CausalLanguageModel(nn.Module):
    """A decoder that scores the next token: GPT-2, Llama. Shape: ids `[T]` -> logits `[L, V]`. Mutates: `cache`."""

    def __init__(self, decoder: Decoder, head: nn.Module, config: Any) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = head
        self.config = config

    def forward(self, token_ids_T: Tensor, metadata: AttentionMetadata, cache: KVCache | None = None) -> Tensor:
        return self.head(self.decoder(token_ids_T, metadata, cache), metadata)
