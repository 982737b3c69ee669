"""`janus bench`: a small load on a running gateway, for a first look; streams over gRPC, a fixed number at a time."""

import asyncio
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import grpc
import typer
from rich.console import Console
from rich.table import Table

from janus.v1.decoder_pb2 import ChatMessage, ChatRequest, GenerationOptions
from janus.v1.decoder_pb2_grpc import DecoderServiceStub
from services.cli.connection import Target, connect, run_client, tell


@dataclass(slots=True)
class Stream:
    """When a stream's tokens came, in seconds on the monotonic clock."""

    began: float
    token_times: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.token_times)]


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * round(share * 100) // 100))
    return ordered[rank - 1]


def bench(
    requests: Annotated[int, typer.Option(min=1, help="how many chats in all")] = 16,
    streams: Annotated[int, typer.Option(min=1, help="how many at a time")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="tokens of one answer")] = 64,
    prompt: Annotated[str, typer.Option(help="the message")] = "Tell me a long story about a lighthouse.",
    model: Annotated[str, typer.Option(help="model id (default: the gateway's own choice)")] = "",
    target: Target = None,
) -> None:
    """Measure time to first token, time between tokens and tokens a second."""
    options = GenerationOptions(max_tokens=max_tokens, ignore_eos=True)
    request = ChatRequest(model=model, messages=[ChatMessage(role="user", content=prompt)], options=options)
    done, seconds = run_client(_load(request, requests, streams, target))
    console = Console(highlight=False, markup=False)
    good = [stream for stream in done if stream.token_times and not stream.error]
    for error in sorted({stream.error for stream in done if stream.error}):
        console.print(f"{sum(stream.error == error for stream in done)} failed: {error}", style="red")
    if not good:
        raise typer.Exit(1)
    num_tokens = sum(len(stream.token_times) for stream in good)
    console.print(f"{len(good)} streams, {streams} at a time: {num_tokens / seconds:.1f} tokens/s in all")
    table = Table("ms", "p50", "p95", box=None)
    _add(table, "time to first token", [stream.token_times[0] - stream.began for stream in good])
    _add(table, "time between tokens", [gap for stream in good for gap in stream.gaps])
    console.print(table)


async def _load(
    request: ChatRequest, num_requests: int, num_streams: int, target: str | None
) -> tuple[list[Stream], float]:
    free = asyncio.Semaphore(num_streams)

    async def one(stub: DecoderServiceStub) -> Stream:
        async with free:
            stream = Stream(time.perf_counter())
            try:
                async for response in stub.Chat(request):
                    stream.token_times += [time.perf_counter()] * len(response.event.delta.token_ids)
            except grpc.aio.AioRpcError as error:
                stream.error = tell(error)
            return stream

    async with connect(target) as channel:
        began = time.perf_counter()
        stub = DecoderServiceStub(channel)
        done = await asyncio.gather(*(one(stub) for _ in range(num_requests)))
        return done, time.perf_counter() - began


def _add(table: Table, name: str, seconds: list[float]) -> None:
    if seconds:
        table.add_row(name, *(f"{percentile(seconds, share) * 1000:.1f}" for share in (0.5, 0.95)))
