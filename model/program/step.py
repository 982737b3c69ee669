"""One step of a decoder: packed rows in, scores out. Two ways to run it, with one meaning.

`EagerStep` runs the model as it stands, on any device. `NativeStep` (in `native`) runs its program in one call of the
native library.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.decoder import CausalLanguageModel
from model.kv_cache import KVCache
from model.metadata import AttentionMetadata


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of a step as host integers, packed as `AttentionMetadata` says.

    Two lists of row numbers say what is asked for: all scores of the rows `scored`, the likeliest next token alone of
    the rows `greedy`. Shape: token_ids, positions and slots `[T]`, lengths `[S]`, block_table `[S, M]`.
    """

    token_ids: Sequence[int]
    positions: Sequence[int]
    slots: Sequence[int]
    query_lengths: Sequence[int]
    key_lengths: Sequence[int]
    block_table: Sequence[Sequence[int]]
    scored: Sequence[int]
    greedy: Sequence[int]


class StepProgram(Protocol):
    """A decoder that steps."""

    @property
    def kernel(self) -> str:
        """The name of what computes."""
        ...

    def new_cache(self, num_blocks: int, block_size: int) -> KVCache:
        """Empty pages for every layer. Units: blocks of `block_size` tokens."""
        ...

    def cache_bytes_per_token(self) -> int:
        """What one token costs in the cache, over all layers."""
        ...

    def run(self, step: Step, cache: KVCache) -> tuple[Tensor, list[int]]:
        """Scores of the rows `scored`, `[L, V]` float32, and the likeliest token of each row `greedy`.

        Of equal scores the lower token is the likeliest. Mutates: `cache`. Raises: StepError where that can't be.
        """
        ...


class EagerStep:
    """The model's own `forward`."""

    def __init__(self, model: CausalLanguageModel, device: torch.device) -> None:
        self._model = model
        self._device = device

    @property
    def kernel(self) -> str:
        return self._model.decoder.kernel_name

    def new_cache(self, num_blocks: int, block_size: int) -> KVCache:
        return self._model.decoder.new_cache(num_blocks, block_size)

    def cache_bytes_per_token(self) -> int:
        return self._model.decoder.cache_bytes_per_token()

    @torch.inference_mode()
    def run(self, step: Step, cache: KVCache) -> tuple[Tensor, list[int]]:
        metadata = AttentionMetadata.pack(
            step.query_lengths,
            key_lengths=step.key_lengths,
            slot_mapping=step.slots,
            block_table=step.block_table,
            logit_rows=[*step.scored, *step.greedy],
            device=self._device,
        )
        scores_LV = self._model(torch.tensor(step.token_ids, device=self._device), metadata, cache)
        num_scores = len(step.scored)
        likeliest: list[int] = scores_LV[num_scores:].argmax(dim=1).tolist()
        return scores_LV[:num_scores], likeliest
