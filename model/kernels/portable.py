"""Attention through torch alone, on any device: pages are gathered, then `scaled_dot_product_attention` runs.

Three shapes of batch, one result: equal lengths without a cache run as one call, a step of single new tokens runs as
one call over gathered pages, and everything else goes sequence by sequence. A window goes a stretch of queries at a
time over the keys in reach, so that a long text costs what its windows hold.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention

from model.kv_cache import LayerCache
from model.metadata import AttentionMetadata, AttentionSpec

_STRETCH_TOKENS = 256


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

    def __call__(
        self,
        q_THE: Tensor,
        k: Tensor,
        v: Tensor,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        bias_HJ: Tensor | None = None,
    ) -> Tensor:
        bias_HJ = None if bias_HJ is None else bias_HJ.to(k.dtype)
        if metadata.block_table_SM is not None and max(metadata.query_lengths) == 1:
            return self._single_tokens(q_THE, k, v, metadata, spec, bias_HJ)
        if metadata.block_table_SM is None and len(set(metadata.query_lengths)) == 1:
            return self._equal_lengths(q_THE, k, v, metadata, spec, bias_HJ)
        return self._each_sequence(q_THE, k, v, metadata, spec, bias_HJ)

    def _single_tokens(
        self,
        q_SHE: Tensor,
        keys_PBGE: Tensor,
        values_PBGE: Tensor,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        bias_HJ: Tensor | None,
    ) -> Tensor:
        """One new token a sequence: it sees all keys, so the heads of a group are the rows of one product."""
        assert metadata.block_table_SM is not None
        num_blocks = -(-max(metadata.key_lengths) // keys_PBGE.shape[1])
        table_SM = metadata.block_table_SM[:, :num_blocks]
        keys_SGUE = _gather(keys_PBGE, table_SM).transpose(1, 2)
        values_SGUE = _gather(values_PBGE, table_SM).transpose(1, 2)
        lengths_S1 = torch.tensor(metadata.key_lengths, device=q_SHE.device)[:, None]
        distances_SU = torch.arange(keys_SGUE.shape[2], device=q_SHE.device) - (lengths_S1 - 1)
        is_seen_SU = distances_SU <= 0
        if spec.window is not None:
            is_seen_SU &= distances_SU >= -spec.window
        mask = is_seen_SU[:, None, None, :]
        if bias_HJ is not None:
            bias_HSU = bias_HJ[:, distances_SU.clamp(max=0) + bias_HJ.shape[1] // 2]
            bias_SGNU = bias_HSU.transpose(0, 1).unflatten(1, (spec.num_key_value_heads, -1))
            mask = bias_SGNU.masked_fill(~mask, -torch.inf)
        q_SGNE = q_SHE.unflatten(1, (spec.num_key_value_heads, -1))
        mixed = scaled_dot_product_attention(q_SGNE.to(keys_SGUE.dtype), keys_SGUE, values_SGUE, mask, scale=spec.scale)
        return mixed.flatten(1, 2).to(q_SHE.dtype)

    def _equal_lengths(
        self,
        q_THE: Tensor,
        k_TGE: Tensor,
        v_TGE: Tensor,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        bias_HJ: Tensor | None,
    ) -> Tensor:
        shape = (len(metadata.query_lengths), metadata.query_lengths[0])
        q, k, v = (packed.unflatten(0, shape).transpose(1, 2) for packed in (q_THE, k_TGE, v_TGE))
        return _attend(q, k, v, spec, bias_HJ).transpose(1, 2).flatten(0, 1)

    def _each_sequence(
        self,
        q_THE: Tensor,
        k: Tensor,
        v: Tensor,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        bias_HJ: Tensor | None,
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
            mixed.append(_attend(q_1HTE, k_1GUE, v_1GUE, spec, bias_HJ)[0].transpose(0, 1))
            start += num_queries
        return torch.cat(mixed).to(q_THE.dtype)


def _gather(pages_PBGE: Tensor, table_SM: Tensor) -> Tensor:
    """Each sequence's pages in a row. Shape: `[S, MB, G, E]`.

    A page is a row of a table: looked up as an embedding it is copied whole, in half the time of indexing.
    """
    rows_SMX = embedding(table_SM, pages_PBGE.flatten(1))
    return rows_SMX.unflatten(2, pages_PBGE.shape[1:]).flatten(1, 2)


def _attend(q_SHTE: Tensor, k_SGUE: Tensor, v_SGUE: Tensor, spec: AttentionSpec, bias_HJ: Tensor | None) -> Tensor:
    """Sequences of one length, aligned bottom-right."""
    num_queries, num_keys = q_SHTE.shape[2], k_SGUE.shape[2]
    past = num_keys - num_queries
    if spec.window is None:
        return _look(q_SHTE, k_SGUE, v_SGUE, range(past, num_keys), range(num_keys), spec, bias_HJ)
    mixed = []
    for start in range(past, num_keys, _STRETCH_TOKENS):
        queries = range(start, min(start + _STRETCH_TOKENS, num_keys))
        ahead = 0 if spec.is_causal else spec.window
        keys = range(max(start - spec.window, 0), min(queries.stop + ahead, num_keys))
        part_SHTE = q_SHTE[:, :, start - past : queries.stop - past]
        near_k_SGUE, near_v_SGUE = (x[:, :, keys.start : keys.stop] for x in (k_SGUE, v_SGUE))
        mixed.append(_look(part_SHTE, near_k_SGUE, near_v_SGUE, queries, keys, spec, bias_HJ))
    return torch.cat(mixed, dim=2)


def _look(
    q_SHTE: Tensor,
    k_SGUE: Tensor,
    v_SGUE: Tensor,
    queries: range,
    keys: range,
    spec: AttentionSpec,
    bias_HJ: Tensor | None,
) -> Tensor:
    """Queries and keys that stand at these positions of their sequences."""
    mask = _mask(queries, keys, spec, bias_HJ, q_SHTE.device)
    return scaled_dot_product_attention(
        q_SHTE,
        k_SGUE,
        v_SGUE,
        mask,
        is_causal=mask is None and spec.is_causal and queries == keys and len(queries) > 1,
        scale=spec.scale,
        enable_gqa=spec.num_query_heads != spec.num_key_value_heads,
    )


def _mask(
    queries: range, keys: range, spec: AttentionSpec, bias_HJ: Tensor | None, device: torch.device
) -> Tensor | None:
    """What is added to the scores, or which keys are seen; None where all are, or where torch's own mask says it."""
    farthest = max(keys.stop - 1 - queries.start, queries.stop - 1 - keys.start)
    is_cut = spec.window is not None and farthest > spec.window
    is_ahead = spec.is_causal and keys.stop - 1 > queries.start
    is_seen_TU = None
    if is_cut or (is_ahead and (queries != keys or bias_HJ is not None)):
        positions_T1 = torch.arange(queries.start, queries.stop, device=device)[:, None]
        distances_TU = torch.arange(keys.start, keys.stop, device=device) - positions_T1
        is_seen_TU = distances_TU <= (0 if spec.is_causal else farthest)
        if spec.window is not None:
            is_seen_TU &= distances_TU.abs() <= spec.window
    if bias_HJ is None:
        return is_seen_TU
    # Each query's biases are a stretch of the row, one column to the left of the stretch of the query before it.
    middle = bias_HJ.shape[1] // 2
    row_HX = bias_HJ[:, middle + keys.start - queries.stop + 1 : middle + keys.stop - queries.start]
    bias_HTU = row_HX.unfold(1, len(keys), 1).flip(1)
    return bias_HTU if is_seen_TU is None else bias_HTU.masked_fill(~is_seen_TU, -torch.inf)
