"""What tells the sequences of a packed batch apart, and what an attention layer is.

`AttentionMetadata` describes the batch, `AttentionSpec` the layer. BERT, GPT and cross-attention differ only here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """How one layer attends; `scale` multiplies q k^T, 1/sqrt(E) unless a family says otherwise.

    With a `window`, a query sees keys at most so many tokens away, on both sides unless it is causal:

        window 2    . . k k q k k . .        causal    . . k k q . . . .
    """

    num_query_heads: int
    num_key_value_heads: int
    head_width: int
    scale: float
    is_causal: bool
    window: int | None = None

    @property
    def row_widths(self) -> tuple[int, int, int]:
        """Widths of q, k and v in a fused row."""
        key_value_width = self.num_key_value_heads * self.head_width
        return self.num_query_heads * self.head_width, key_value_width, key_value_width


@dataclass(frozen=True, slots=True)
class Memory:
    """What a decoder looks across at: an encoder's output of U tokens, and the pages that hold its keys and values.

    `lengths` counts the memory tokens of each sequence; slots and block table are those of the memory's own cache.
    """

    lengths: tuple[int, ...]
    slot_mapping_U: Tensor
    block_table_SM: Tensor


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """The boundaries of a packed batch.

    Sequence s brings `query_lengths[s]` new tokens, the last of the `key_lengths[s]` tokens that it has by then:

        keys    0 ........ key_length - query_length ........ key_length
        queries                     └── new tokens, positions ──┘

    Without a block table, keys are the packed tokens themselves (an encoder, or a prompt in one pass). With one, they
    stand in cache pages: token i of sequence s in block `block_table_SM[s, i // B]`, and `slot_mapping_T` tells where
    each new token goes (block * B + offset). The lengths are host integers, so that no kernel waits for the device.
    """

    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    positions_T: Tensor
    slot_mapping_T: Tensor | None = None
    block_table_SM: Tensor | None = None
    logit_rows_L: Tensor | None = None
    adapter_T: Tensor | None = None

    @classmethod
    def pack(
        cls,
        query_lengths: Sequence[int],
        *,
        key_lengths: Sequence[int] | None = None,
        slot_mapping: Sequence[int] | None = None,
        block_table: Sequence[Sequence[int]] | None = None,
        logit_rows: Sequence[int] | None = None,
        adapters: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> "AttentionMetadata":
        """Metadata from host integers.

        `key_lengths` defaults to `query_lengths`. Rows of `block_table` may differ in length. `adapters` gives each
        sequence's adapter, counted from 1; 0 is none.
        """
        keys = tuple(query_lengths if key_lengths is None else key_lengths)
        queries = tuple(query_lengths)
        assert len(keys) == len(queries)
        assert all(0 < q <= k for q, k in zip(queries, keys, strict=True))
        positions = [p for q, k in zip(queries, keys, strict=True) for p in range(k - q, k)]

        def row(values: Sequence[int] | None) -> Tensor | None:
            return None if values is None else torch.tensor(values, dtype=torch.int64, device=device)

        per_token_adapter = None
        if adapters is not None and any(adapters):
            per_token_adapter = [a for a, q in zip(adapters, queries, strict=True) for _ in range(q)]
        return cls(
            query_lengths=queries,
            key_lengths=keys,
            positions_T=torch.tensor(positions, dtype=torch.int64, device=device),
            slot_mapping_T=row(slot_mapping),
            block_table_SM=None if block_table is None else block_table_tensor(block_table, device),
            logit_rows_L=row(logit_rows),
            adapter_T=row(per_token_adapter),
        )

    def across(self, memory: Memory) -> "AttentionMetadata":
        """The same queries, looking at a memory instead of at their own past."""
        return replace(self, key_lengths=memory.lengths, block_table_SM=memory.block_table_SM)

    @property
    def last_rows(self) -> list[int]:
        """The row of each sequence's last new token."""
        return [end - 1 for end in accumulate(self.query_lengths)]


def block_table_tensor(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Tensor:
    """Block tables of different lengths as one tensor. Shape: `[S, M]`; what lies beyond a row's end is block 0."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.int64, device=device)
