"""The decoder against its peers, side by side: decode steps, prompts and quality; appends the figures to RESULTS.md.

    make bench-peers      installs them first
    make bench-decoder    ARGS="--rounds 4 --types Q4_1 --batches 1 8" for less, --no-append to look only

llama.cpp runs the same file, OpenVINO GenAI what it makes of one. All have the same threads; each its own manner of
waiting. A figure is the median of the rounds, a ratio the median of the rounds' ratios with its range.
"""

import argparse
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from tests.performance.foreign_load import ForeignLoad
from tests.performance.our_step import OurStep
from tests.performance.peers.installed import OPENVINO_PRECISIONS, LlamaCpp, OpenVino, weights
from tests.performance.quality import HEADS, Gate, rows_of
from tests.performance.report import Row, append, table
from tests.performance.rounds import Ratio, interleaved

PROMPT_TOKENS = 128
LONG_PROMPT_TOKENS = 512
THREADS = 2
OURS = "Janus"


def main() -> None:
    told = _arguments()
    load = ForeignLoad()
    llama = _best_waiting(told.types[0])
    speeds: list[Row] = []
    qualities: list[Row] = []
    gate = None if told.no_quality else Gate()
    for kind in told.types:
        # The worker's own choice of arithmetic for blocks; a plain file is computed in its own.
        ours = OurStep(
            weights(kind),
            max_batch=max(told.batches),
            max_length=max(PROMPT_TOKENS + told.steps + 1, LONG_PROMPT_TOKENS + 1),
            threads=THREADS,
            dtype="bf16" if kind == "BF16" else "auto",
        )
        speeds += _prompts(kind, ours, llama, told.rounds)
        if kind != "BF16":
            for batch in told.batches:
                speeds += _steps(kind, batch, ours, llama, told.steps, told.rounds)
        if gate:
            qualities += rows_of(gate, kind, ours)
    busy = f"others kept {load.cores():.2f} cores busy, {load.stolen_cores():.2f} were taken by the host"
    lines = [
        f"{THREADS} threads; decode: {PROMPT_TOKENS} prompt tokens, then {told.steps} steps; {told.rounds} rounds; "
        f"llama.cpp waits {llama.waits.lower()}; {busy}.",
        "",
        *table(("tokens/s (ms a step)", OURS, "peer", "ratio (range)"), speeds),
    ]
    if qualities:
        lines += ["", *table(HEADS, qualities)]
    if told.no_append:
        print("\n".join(lines))
    else:
        append(lines)


def _prompts(kind: str, ours: OurStep, llama: LlamaCpp, num_rounds: int) -> list[Row]:
    ours.prompt_speed(LONG_PROMPT_TOKENS)  # the first of each length warms up
    contenders = {
        OURS: lambda: ours.prompt_speed(LONG_PROMPT_TOKENS),
        "llama.cpp": lambda: llama.prompt_speed(weights(kind), LONG_PROMPT_TOKENS),
    }
    return _rows(f"{kind}, a prompt of {LONG_PROMPT_TOKENS}", contenders, num_rounds, step_tokens=LONG_PROMPT_TOKENS)


def _steps(kind: str, batch: int, ours: OurStep, llama: LlamaCpp, num_steps: int, num_rounds: int) -> list[Row]:
    ours.step_speed(batch, PROMPT_TOKENS, 4)
    contenders = {
        OURS: lambda: ours.step_speed(batch, PROMPT_TOKENS, num_steps),
        "llama.cpp": lambda: llama.step_speed(weights(kind), batch, PROMPT_TOKENS, num_steps),
    }
    if kind != "Q8_0":
        return _rows(f"{kind}, {batch} streams", contenders, num_rounds, step_tokens=batch)
    with ExitStack() as stack:
        for precision in OPENVINO_PRECISIONS:
            step_speed = stack.enter_context(OpenVino(kind, THREADS, precision=precision).loaded())
            step_speed(batch, PROMPT_TOKENS, 4)
            contenders[f"OpenVINO {precision}"] = partial(step_speed, batch, PROMPT_TOKENS, num_steps)
        return _rows(f"{kind}, {batch} streams", contenders, num_rounds, step_tokens=batch)


def _rows(what: str, contenders: dict[str, Callable[[], float]], num_rounds: int, *, step_tokens: int) -> list[Row]:
    """A row a peer."""
    figures = interleaved(contenders, num_rounds)
    rows = []
    for name in contenders:
        if name != OURS:
            ours, theirs = (
                f"{speed:.0f} ({step_tokens / speed * 1000:.1f})"
                for speed in (statistics.median(figures[OURS]), statistics.median(figures[name]))
            )
            rows.append((f"{what}, {name}", ours, theirs, str(Ratio.of(figures[OURS], figures[name]))))
            print(" | ".join(rows[-1]), flush=True)
    return rows


def _best_waiting(kind: str) -> LlamaCpp:
    """llama.cpp with the manner of waiting that is faster here and now: spinning loses where others want the cores."""
    return max(
        (LlamaCpp(THREADS, waits) for waits in ("ACTIVE", "PASSIVE")),
        key=lambda llama: llama.step_speed(weights(kind), 8, PROMPT_TOKENS, 16),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="the decoder against llama.cpp and OpenVINO GenAI")
    parser.add_argument("--types", nargs="+", default=["Q4_1", "Q8_0", "BF16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--no-quality", action="store_true")
    parser.add_argument("--no-append", action="store_true", help="print only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
