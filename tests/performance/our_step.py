"""Our side of a comparison: the decoder of a checkpoint, stepped through the runner that the worker uses.

A step is `Runner.execute` of a batch, so it holds what the engine waits for: laying the batch out, the model, drawing
the tokens. Requests, streams and the scheduler are left out, as they are on the peers' side.
"""

import random
import time
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any, Literal

import torch

from services.common.settings import DecoderSettings
from services.decoder.runner import Runner
from services.decoder.scheduler import Batch, BatchRow
from services.decoder.sequence import Limits, Sequence

CHUNK_TOKENS = 512
"""Most tokens of one step, the worker's default."""


class OurStep:
    """The runner, with a cache that holds `max_batch` sequences of `max_length` tokens.

    `dtype` is the worker's setting of that name.
    """

    def __init__(
        self,
        model: Path,
        *,
        max_batch: int,
        max_length: int,
        threads: int = 2,
        dtype: Literal["auto", "float32", "bf16"] = "auto",
    ) -> None:
        block_size = 16
        cache_tokens = max_batch * block_size * -(-max_length // block_size)
        settings = DecoderSettings(
            model=model,
            device="cpu",
            threads=threads,
            dtype=dtype,
            block_size=block_size,
            num_cache_tokens=cache_tokens,
        )
        self.runner = Runner(settings)
        self.kernel = self.runner.kernel

    def prompt_speed(self, num_tokens: int) -> float:
        """Prompt tokens a second: one prompt that nothing is known of, in steps of at most CHUNK_TOKENS."""
        sequences = _Sequences(self.runner, self._prompts(1, num_tokens), max_tokens=1)
        started = time.perf_counter()
        sequences.catch_up()
        return num_tokens / (time.perf_counter() - started)

    def step_speed(self, batch: int, prompt_tokens: int, num_steps: int) -> float:
        """Tokens a second of `num_steps` steps that bring each of `batch` sequences one token, after their prompts."""
        sequences = _Sequences(self.runner, self._prompts(batch, prompt_tokens), max_tokens=num_steps + 1)
        sequences.catch_up()
        started = time.perf_counter()
        for _ in range(num_steps):
            sequences.step()
        return batch * num_steps / (time.perf_counter() - started)

    def logits(self, token_ids: Items[int], *, prompt_tokens: int = 1) -> torch.Tensor:
        """What the model says after each token from the prompt's last on, whatever it would have drawn.

        The prompt runs in one step, then every token in a step of its own, as a stream's do. Shape: `[L, V]`, where L
        is `len(token_ids) - prompt_tokens + 1`.
        """
        runner: Any = self.runner  # its sampler is its own affair, but for this
        recorder = _Recorder(runner._sampler)
        runner._sampler = recorder
        try:
            num_forced = len(token_ids) - prompt_tokens
            # Without a temperature the likeliest token is enough, and its scores may never leave the kernel.
            sequences = _Sequences(self.runner, [token_ids[:prompt_tokens]], max_tokens=num_forced + 1, temperature=1.0)
            sequences.catch_up()
            for token in token_ids[prompt_tokens:]:
                sequences.force(token)
                sequences.step()
        finally:
            runner._sampler = recorder.sampler
        return torch.cat(recorder.logits)

    def _prompts(self, count: int, num_tokens: int) -> list[list[int]]:
        chance = random.Random(0)
        return [chance.choices(range(self.runner.vocabulary_size), k=num_tokens) for _ in range(count)]


class _Sequences:
    """Sequences that run together, each in blocks of its own: no prefix is shared, whatever the prompts hold."""

    def __init__(
        self, runner: Runner, prompts: Items[Items[int]], *, max_tokens: int, temperature: float = 0.0
    ) -> None:
        self._runner = runner
        self._chance = random.Random(1)
        params = runner.sampling_params(
            temperature=temperature, top_p=1, top_k=0, min_p=0, seed=0, min_tokens=0, stop_ids=()
        )
        self._all = [Sequence(list(prompt), len(prompt), Limits(max_tokens), params) for prompt in prompts]
        end = 0
        for sequence in self._all:
            begin, end = end, end - (-sequence.max_total_tokens // runner.block_size)
            sequence.block_ids = list(range(begin, end))
        if end > runner.num_blocks:
            raise ValueError(f"the sequences take {end} blocks, and the runner's cache has {runner.num_blocks}")

    def catch_up(self) -> None:
        """Computes the prompts, first come, first served, and draws each one's first token."""
        waiting = list(self._all)
        while waiting:
            rows, budget = [], CHUNK_TOKENS
            for sequence in waiting:
                if budget:
                    rows.append(BatchRow(sequence, min(sequence.num_uncomputed_tokens, budget)))
                    budget -= rows[-1].num_new_tokens
            done = [row.sequence for row in rows if row.is_caught_up]
            self._execute(Batch(tuple(rows)))
            waiting = [sequence for sequence in waiting if sequence not in done]

    def step(self) -> None:
        """One token of each."""
        self._execute(Batch(tuple(BatchRow(sequence, 1) for sequence in self._all)))

    def force(self, token: int) -> None:
        """Puts a token in the place of the one that was taken last."""
        for sequence in self._all:
            sequence.token_ids[-1] = token

    def _execute(self, batch: Batch) -> None:
        # Tokens are drawn, for that is part of a step, but any goes on from there, as in llama.cpp's own benchmark.
        drawn = self._runner.execute(batch)
        for row, draw in zip(batch.rows, drawn, strict=True):
            row.sequence.num_computed_tokens += row.num_new_tokens
            if draw is not None:
                row.sequence.token_ids.append(self._chance.randrange(self._runner.vocabulary_size))


class _Recorder:
    """A sampler that keeps what it draws from."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.logits: list[torch.Tensor] = []

    def __call__(self, logits_LV: torch.Tensor, *sequences: Any) -> Any:
        self.logits.append(logits_LV.float().clone())
        return self.sampler(logits_LV, *sequences)
