"""What the service around the encoder costs: sentences a second over gRPC against the runner's own rate.

64 clients ask the gateway for the vector of one sentence each, again and again; the runner alone computes the same
sentences in full batches. Both run in turn, several rounds; a ratio is the median of the rounds' ratios with its range.
Gateway, worker and clients share the machine's cores with the runner, so what they use is missing there.
"""

import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import grpc

from janus.v1 import encoder_pb2, encoder_pb2_grpc
from services.common.settings import EncoderSettings
from services.encoder.batcher import Item
from services.encoder.runner import Runner
from tests.performance.report import append, table

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "e2e"))

from running_janus import start, stop  # noqa: E402

NUM_ROUNDS = 5
NUM_CLIENTS = 64
SECONDS = 6.0


def sentences() -> list[str]:
    """256 of 8 to 256 tokens, 46 on average: a token a word."""
    chance = random.Random(0)
    words = ["the", "a", "film", "story", "actor", "music", "was", "very", "good", "bad", "long", "short", "and", "but"]
    lengths = [min(254, 6 + round(chance.expovariate(1 / 38))) for _ in range(256)]
    return [" ".join(chance.choices(words, k=length)) for length in lengths]


def runner_rate(runner: Runner, texts: list[str], max_batch_tokens: int) -> float:
    """Sentences a second, tokenizing included: batches as the batcher would cut them from a full queue."""
    head = runner.models[0].heads["embeddings"]
    started = time.perf_counter()
    num_done = 0
    while time.perf_counter() - started < SECONDS:
        batch: list[Item] = []
        num_tokens = 0
        for one in runner.tokenizer.encode_batch(texts):
            if batch and num_tokens + len(one) > max_batch_tokens:
                num_done += len(runner.execute(batch))
                batch, num_tokens = [], 0
            batch.append(Item(one.ids, one.type_ids, head))
            num_tokens += len(one)
        num_done += len(runner.execute(batch))
    return num_done / (time.perf_counter() - started)


async def service_rate(target: str, texts: list[str]) -> float:
    """Sentences a second of NUM_CLIENTS that each have one request at a time."""
    requests = [encoder_pb2.EmbedTextRequest(input=[encoder_pb2.EmbedTextInput(text=text)]) for text in texts]
    async with grpc.aio.insecure_channel(target) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        until = time.perf_counter() + SECONDS

        async def client(number: int) -> int:
            num_done = 0
            while time.perf_counter() < until:
                await stub.EmbedText(requests[(number * 4 + num_done) % len(requests)])
                num_done += 1
            return num_done

        started = time.perf_counter()
        counts = await asyncio.gather(*(client(number) for number in range(NUM_CLIENTS)))
        return sum(counts) / (time.perf_counter() - started)


def main() -> None:
    settings = EncoderSettings()
    runner = Runner(settings.sources[0], settings)
    texts = sentences()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        stack = start(Path(folder))
        try:
            stack.wait_ready()
            worker = f"127.0.0.1:{stack.ports['ENCODER_GRPC_PORT']}"
            for number in range(NUM_ROUNDS + 1):
                alone = runner_rate(runner, texts, settings.max_batch_tokens)
                gateway = asyncio.run(service_rate(stack.grpc, texts))
                direct = asyncio.run(service_rate(worker, texts))
                if number:  # the first round warms up
                    rounds.append((alone, gateway, direct))
        finally:
            stop(stack)
    rows = []
    for name, column in (("gateway, 64 clients", 1), ("worker, 64 clients", 2)):
        ratios = sorted(one[column] / one[0] for one in rounds)
        rate, alone = (statistics.median(one[index] for one in rounds) for index in (column, 0))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        rows.append((f"{name}, MiniLM bf16, sentences/s", f"{rate:.0f}", f"{alone:.0f}", spread))
    append(table(("over gRPC", "Janus", "its runner alone", "ratio (range)"), rows))


if __name__ == "__main__":
    main()
