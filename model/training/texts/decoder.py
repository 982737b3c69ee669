"""Simple sentences that a decoder writes: it is shown a few, and goes on with a given word in the same manner.

What it writes is fluent and often not true, so it teaches how words go together, and no facts.
"""

import random
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from model.decoder import CausalLanguageModel
from model.kv_cache import KVCache
from model.metadata import AttentionMetadata
from model.tokenizer import Tokenizer

_NUM_SHOWN = 5
_BLOCK_SIZE = 16
_TEMPERATURE, _TOP_P, _TOP_K = 0.8, 0.92, 64


class Writer:
    """`num_together` texts are written at once, `num_tokens` of each."""

    def __init__(
        self, model: CausalLanguageModel, tokenizer: Tokenizer, *, num_together: int = 96, num_tokens: int = 48
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._num_together = num_together
        self._num_tokens = num_tokens

    def write(self, shown: Sequence[str], starts: Sequence[str], seed: int) -> Iterator[str]:
        """Sentences, some for each start, in no order that matters."""
        chance = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        for first in range(0, len(starts), self._num_together):
            some = starts[first : first + self._num_together]
            prompts = ["\n".join([*chance.sample(list(shown), _NUM_SHOWN), start]) for start in some]
            ids = [self._tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
            for start, written in zip(some, self.go_on(ids, generator), strict=True):
                yield from _sentences(start + self._tokenizer.decode(written))

    @torch.inference_mode()
    def go_on(
        self, prompts: Sequence[Sequence[int]], generator: torch.Generator, *, top_p: float = _TOP_P
    ) -> list[list[int]]:
        """The tokens that follow each prompt."""
        num_blocks = -(-(max(map(len, prompts)) + self._num_tokens) // _BLOCK_SIZE)
        table = [list(range(s * num_blocks, (s + 1) * num_blocks)) for s in range(len(prompts))]
        cache = self._model.decoder.new_cache(len(prompts) * num_blocks, _BLOCK_SIZE)
        lengths = [len(prompt) for prompt in prompts]
        ends = list(accumulate(lengths))
        token_ids = [token for prompt in prompts for token in prompt]
        next_S = self._step(token_ids, lengths, lengths, table, cache, [end - 1 for end in ends], generator, top_p)
        written = [next_S]
        for _ in range(self._num_tokens - 1):
            lengths = [length + 1 for length in lengths]
            ones = [1] * len(lengths)
            next_S = self._step(next_S.tolist(), ones, lengths, table, cache, range(len(lengths)), generator, top_p)
            written.append(next_S)
        return torch.stack(written, dim=1).tolist()

    def _step(
        self,
        token_ids: Sequence[int],
        query_lengths: Sequence[int],
        key_lengths: Sequence[int],
        table: Sequence[Sequence[int]],
        cache: KVCache,
        logit_rows: Sequence[int],
        generator: torch.Generator,
        top_p: float,
    ) -> Tensor:
        """The next token of each text. Mutates: `cache`. Shape: `[S]`."""
        slots = [
            blocks[place // _BLOCK_SIZE] * _BLOCK_SIZE + place % _BLOCK_SIZE
            for blocks, query, key in zip(table, query_lengths, key_lengths, strict=True)
            for place in range(key - query, key)
        ]
        metadata = AttentionMetadata.pack(
            query_lengths, key_lengths=key_lengths, slot_mapping=slots, block_table=table, logit_rows=list(logit_rows)
        )
        logits_SV = self._model(torch.tensor(token_ids), metadata, cache)
        best_SK, tokens_SK = (logits_SV / _TEMPERATURE).topk(_TOP_K, dim=1)
        shares_SK = best_SK.softmax(dim=1)
        is_out_SK = shares_SK.cumsum(dim=1) - shares_SK > top_p
        drawn_S1 = torch.multinomial(shares_SK.masked_fill(is_out_SK, 0.0), 1, generator=generator)
        return tokens_SK.gather(1, drawn_S1)[:, 0]


def _sentences(text: str) -> Iterator[str]:
    """Whole lines that are one plain sentence; the last line may have been cut."""
    for line in text.split("\n")[:-1]:
        sentence = line.strip()
        if 4 <= len(sentence.split()) <= 18 and re.fullmatch(r"[A-Z][A-Za-z0-9 ,'-]+[.?!]", sentence):
            yield sentence
