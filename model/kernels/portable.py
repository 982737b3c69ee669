"""Attention through torch alone, on any device: pages are gathered, then `scaled_dot_product_attention` runs.

Three shapes of batch, one result: equal lengths without a cache run as one call, a step of single new tokens runs as
one call over gathered pages, and everything else goes sequence by sequence.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention

from model.kv_cache import LayerCache
from model.metadata import AttentionMetadata, AttentionSpec


class PortableKernel:
    """The kernel that is always there. Cache layout: keys and values `[P, B, G, E]`."""

    name = "portable"

    def new_cache(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> LayerCache:
        shape = (num_blocks, block_size, spec.num_key_value_heads, spec.head_width)
        return LayerCache(
            torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)
        )

    def write(self, cache: LayerCache, k_UGE: Tensor, v_UGE: Tensor, slot_mapping_U: Tensor) -> None:
        cache.keys.flatten(0, 1).index_copy_(0, slot_mapping_U, k_UGE.to(cache.keys.dtype))
        cache.values.flatten(0, 1).index_copy_(0, slot_mapping_U, v_UGE.to(cache.values.dtype))

    def __call__(self, q_THE: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata, spec: AttentionSpec) -> Tensor:
        if metadata.block_table_SM is not None and max(metadata.query_lengths) == 1:
            return self._single_tokens(q_THE, k, v, metadata, spec)
        if metadata.block_table_SM is None and len(set(metadata.query_lengths)) == 1:
            return self._equal_lengths(q_THE, k, v, metadata, spec)
        return self._each_sequence(q_THE, k, v, metadata, spec)

    def _single_tokens(
        self, q_SHE: Tensor, keys_PBGE: Tensor, values_PBGE: Tensor, metadata: AttentionMetadata, spec: AttentionSpec
    ) -> Tensor:
        """One new token a sequence: it sees all keys, so the heads of a group are the rows of one product."""
        assert metadata.block_table_SM is not None
        num_blocks = -(-max(metadata.key_lengths) // keys_PBGE.shape[1])
        table_SM = metadata.block_table_SM[:, :num_blocks]
        keys_SGUE = _gather(keys_PBGE, table_SM).transpose(1, 2)
        values_SGUE = _gather(values_PBGE, table_SM).transpose(1, 2)
        lengths_S1 = torch.tensor(metadata.key_lengths, device=q_SHE.device)[:, None]
        is_seen_SU = torch.arange(keys_SGUE.shape[2], device=q_SHE.device) < lengths_S1
        q_SGNE = q_SHE.unflatten(1, (spec.num_key_value_heads, -1))
        mixed = scaled_dot_product_attention(
            q_SGNE.to(keys_SGUE.dtype), keys_SGUE, values_SGUE, is_seen_SU[:, None, None, :], scale=spec.scale
        )
        return mixed.flatten(1, 2).to(q_SHE.dtype)

    def _equal_lengths(
        self, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, metadata: AttentionMetadata, spec: AttentionSpec
    ) -> Tensor:
        shape = (len(metadata.query_lengths), metadata.query_lengths[0])
        q, k, v = (packed.unflatten(0, shape).transpose(1, 2) for packed in (q_THE, k_TGE, v_TGE))
        return _attend(q, k, v, spec).transpose(1, 2).flatten(0, 1)

    def _each_sequence(
        self, q_THE: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata, spec: AttentionSpec
    ) -> Tensor:
        mixed = []
        start = 0
        for s, (num_queries, num_keys) in enumerate(zip(metadata.query_lengths, metadata.key_lengths, strict=True)):
            rows = slice(start, start + num_queries)
            if metadata.block_table_SM is None:
                k_UGE, v_UGE = k[rows], v[rows]
            else:
                blocks = metadata.block_table_SM[s, : -(-num_keys // k.shape[1])]
                k_UGE, v_UGE = k[blocks].flatten(0, 1)[:num_keys], v[blocks].flatten(0, 1)[:num_keys]
            q_1HTE, k_1GUE, v_1GUE = (x.transpose(0, 1)[None] for x in (q_THE[rows].to(k.dtype), k_UGE, v_UGE))
            mixed.append(_attend(q_1HTE, k_1GUE, v_1GUE, spec)[0].transpose(0, 1))
            start += num_queries
        return torch.cat(mixed).to(q_THE.dtype)


def _gather(pages_PBGE: Tensor, table_SM: Tensor) -> Tensor:
    """Each sequence's pages in a row. Shape: `[S, MB, G, E]`.

    A page is a row of a table: looked up as an embedding it is copied whole, in half the time of indexing.
    """
    rows_SMX = embedding(table_SM, pages_PBGE.flatten(1))
    return rows_SMX.unflatten(2, pages_PBGE.shape[1:]).flatten(1, 2)


def _attend(q_SHTE: Tensor, k_SGUE: Tensor, v_SGUE: Tensor, spec: AttentionSpec) -> Tensor:
    """Sequences of one length, causal ones aligned bottom-right."""
    num_queries, num_keys = q_SHTE.shape[2], k_SGUE.shape[2]
    is_square = num_queries == num_keys
    mask_TU = None
    if spec.is_causal and not is_square and num_queries > 1:
        ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q_SHTE.device)
        mask_TU = ones.tril(diagonal=num_keys - num_queries)
    return scaled_dot_product_attention(
        q_SHTE,
        k_SGUE,
        v_SGUE,
        mask_TU,
        is_causal=spec.is_causal and is_square,
        scale=spec.scale,
        enable_gqa=spec.num_query_heads != spec.num_key_value_heads,
    )
