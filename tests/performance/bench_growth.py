"""How a step's cost grows: with the batch, with the context, with the threads; appends a table to RESULTS.md.

Beside each figure stands what bounds it: the bytes that a step must read over the bandwidth, or its operations over
half of the 8-bit peak, whichever takes longer in each of its two phases, products and attention. The bandwidth is
measured just before; the peak is Zen 4's. A share of 1 would be a step that nothing but those two holds up.

    python -m tests.performance.bench_growth [GGUF file]
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from services.common.settings import DecoderSettings
from tests.performance.our_step import OurStep
from tests.performance.report import Row, append, table

THREADS = 2
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (64, 512, 1000, 2000, 4000, 8000)
SHORT_CONTEXT = 64
NUM_STEPS = 12
HEADS: Row = ("decode", "tokens/s (ms a step)", "bound, ms", "share of the bound")
PEAK = 445e9
"""8-bit operations a second of one core, measured on Zen 4: 64 products and sums a cycle at 3.5 GHz."""


def main() -> None:
    model = Path(sys.argv[1]) if len(sys.argv) > 1 else DecoderSettings().model
    rows: list[Row] = []
    for threads in range(1, THREADS + 1):
        floor = _Floor(model, threads)
        ours = OurStep(model, max_batch=max(BATCHES), max_length=SHORT_CONTEXT + 2 * NUM_STEPS, threads=threads)
        rows += [_row(ours, floor, f"{threads} threads", batch, SHORT_CONTEXT) for batch in BATCHES]
        for batch in (1, 8):
            contexts = [context for context in CONTEXTS if batch * context <= 16_000]
            ours = OurStep(model, max_batch=batch, max_length=max(contexts) + 2 * NUM_STEPS, threads=threads)
            rows += [_row(ours, floor, f"{threads} threads", batch, context) for context in contexts]
        bandwidth, peak = floor.bytes_a_second / 1e9, floor.operations_a_second / 1e9
        print(f"{threads} threads read {bandwidth:.1f} GB/s; half of their 8-bit peak is {peak:.0f} GOP/s")
    append([f"{model.name}; bounds as tests/performance/bench_growth.py says.", "", *table(HEADS, rows)])


def _row(ours: OurStep, floor: "_Floor", label: str, batch: int, context: int) -> Row:
    speed = max(ours.step_speed(batch, context, NUM_STEPS) for _ in range(2))
    step_ms, bound_ms = 1000 * batch / speed, 1000 * floor.seconds(batch, context)
    what = f"{label}, {batch} streams, {context} tokens of context"
    return what, f"{speed:.0f} ({step_ms:.1f})", f"{bound_ms:.1f}", f"{bound_ms / step_ms:.2f}"


class _Floor:
    """What SmolLM2's shape and this machine allow."""

    num_weights, weight_bytes = 134.5e6, 96.4e6
    num_blocks, num_heads, num_key_value_heads, head_width = 30, 9, 3, 64

    def __init__(self, model: Path, threads: int) -> None:
        self.bytes_a_second = _bandwidth(threads)
        self.operations_a_second = threads * PEAK / 2

    def seconds(self, batch: int, context: int) -> float:
        products = max(self.weight_bytes / self.bytes_a_second, 2 * batch * self.num_weights / self.operations_a_second)
        key_bytes = batch * context * self.num_blocks * self.num_key_value_heads * self.head_width * 2 * 2
        looks = 4 * batch * context * self.num_blocks * self.num_heads * self.head_width
        return products + max(key_bytes / self.bytes_a_second, looks / self.operations_a_second)


def _bandwidth(threads: int) -> float:
    """Bytes a second that a sum over 256 MB reads, the best of several."""
    torch.set_num_threads(threads)
    numbers = torch.ones(32 << 20, dtype=torch.int64)
    best = min(_seconds(numbers.sum) for _ in range(8))
    return numbers.nbytes / best


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
