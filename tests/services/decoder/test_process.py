"""The decoder worker as a process of its own, with the default model: streams, cancels, drains, refusals."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from janus.v1 import decoder_pb2, decoder_pb2_grpc, streams_pb2
from services.common.grpc_server import CHANNEL_OPTIONS
from services.common.rpc_status import from_rpc_error

ROOT = Path(__file__).parents[3]
SERVICE = "janus.v1.DecoderService"
MODEL = "SmolLM2-135M-Instruct"
CAPITAL = "Name the capital of France."


@dataclass(frozen=True)
class Worker:
    """A running worker, its doors and its log."""

    process: subprocess.Popen[bytes]
    grpc_port: int
    metrics_port: int
    log: Path

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def wait_serving(self, timeout_seconds: float = 90) -> None:
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if httpx.get(f"http://127.0.0.1:{self.metrics_port}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    async def metric(self, name: str) -> float:
        async with httpx.AsyncClient() as client:
            page = (await client.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10)).text
        sample = f'janus_{name}{{model="{MODEL}"}} '
        return float(next(line for line in page.splitlines() if line.startswith(sample)).removeprefix(sample))

    async def until(self, name: str, value: float) -> None:
        """Waits for a metric to have a value, a few seconds at most."""
        for _ in range(100):
            if await self.metric(name) == value:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{name} is {await self.metric(name)}, not {value}")


def start(folder: Path, **settings: str) -> Worker:
    """Starts a worker on free ports; `settings` are environment variables without their prefix."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(closing(socket.socket())) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        grpc_port, metrics_port = (each.getsockname()[1] for each in sockets)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JANUS_")}
    environment |= {"JANUS_DECODER_GRPC_PORT": str(grpc_port), "JANUS_DECODER_METRICS_PORT": str(metrics_port)}
    environment |= {f"JANUS_DECODER_{name}": value for name, value in settings.items()}
    log = folder / "worker.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "services.decoder"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    return Worker(process, grpc_port, metrics_port, log)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    running = start(tmp_path_factory.mktemp("worker"))
    try:
        running.wait_serving()
        yield running
    finally:
        running.process.kill()
        running.process.wait()


@asynccontextmanager
async def stub(worker: Worker) -> AsyncIterator["decoder_pb2_grpc.DecoderServiceAsyncStub"]:
    async with grpc.aio.insecure_channel(worker.target) as channel:
        yield decoder_pb2_grpc.DecoderServiceStub(channel)


def chat(question: str = CAPITAL, model: str = "", **options: object) -> decoder_pb2.ChatRequest:
    return decoder_pb2.ChatRequest(
        model=model,
        messages=[decoder_pb2.ChatMessage(role="user", content=question)],
        options=decoder_pb2.GenerationOptions(**options),
    )


async def read(call: AsyncIterator[decoder_pb2.ChatResponse]) -> list[streams_pb2.StreamEvent]:
    return [response.event async for response in call]


async def test_a_stream_from_real_weights(worker: Worker) -> None:
    async with stub(worker) as decoder:
        events = await read(decoder.Chat(chat(model=MODEL, max_tokens=32, temperature=0)))
    assert "Paris" in "".join(event.delta.text for event in events)
    assert [event.sequence for event in events] == list(range(len(events)))
    assert [event.WhichOneof("event") for event in events[-2:]] == ["finished", "ended"]
    assert events[-1].ended.usage.completion_tokens == sum(len(event.delta.token_ids) for event in events)
    await worker.until("kv_cache_usage_ratio", 0)


async def test_ten_at_once_interleave(worker: Worker) -> None:
    """Each has its first token before any has its last one."""
    arrived: list[tuple[int, str]] = []

    async def one(decoder: "decoder_pb2_grpc.DecoderServiceAsyncStub", number: int) -> int:
        options = {"max_tokens": 24, "ignore_eos": True, "seed": number, "temperature": 1.0}
        async for response in decoder.Chat(chat(f"Tell me about the number {number}.", **options)):
            arrived.append((number, response.event.WhichOneof("event")))
        return number

    async with stub(worker) as decoder:
        await asyncio.gather(*(one(decoder, number) for number in range(10)))
    kinds = [kind for _, kind in arrived]
    assert kinds.count("ended") == 10
    last_start = max(i for i, kind in enumerate(kinds) if kind == "started")
    assert last_start < kinds.index("ended")
    changes = sum(a != b for (a, _), (b, _) in pairwise(arrived))
    assert changes > 100, "streams take turns, token by token"


async def test_a_cancelled_stream_frees_its_blocks(worker: Worker) -> None:
    async with stub(worker) as decoder:
        call = decoder.Chat(chat(max_tokens=2000, ignore_eos=True))
        for _ in range(3):
            await call.read()
        assert await worker.metric("kv_cache_usage_ratio") > 0
        call.cancel()
        await worker.until("kv_cache_usage_ratio", 0)
        await worker.until("requests_running", 0)


async def test_a_deadline_ends_a_stream(worker: Worker) -> None:
    async with stub(worker) as decoder:
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await read(decoder.Chat(chat(max_tokens=4000, ignore_eos=True), timeout=1))
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await worker.until("kv_cache_usage_ratio", 0)


@pytest.mark.parametrize(
    ("request_", "code", "param"),
    [
        (chat("word " * 9000), "context_length_exceeded", "messages"),
        (chat(max_tokens=9000), "context_length_exceeded", "max_tokens"),
        (chat(model="gpt-9"), "model_not_found", "model"),
        (chat(top_p=2), "invalid_request", "top_p"),
    ],
)
async def test_refusals(worker: Worker, request_: decoder_pb2.ChatRequest, code: str, param: str) -> None:
    async with stub(worker) as decoder:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await read(decoder.Chat(request_))
    error = from_rpc_error(refused.value)
    assert (error.code, error.param) == (code, param)
    if param == "messages":
        assert "8191" in error.message, "both counts"


async def test_it_answers_while_it_loads_and_sigterm_lets_a_stream_finish(tmp_path: Path) -> None:
    # torch takes seconds to load what the native library has in less than one.
    own = start(tmp_path, KERNEL="torch")
    try:
        async with grpc.aio.insecure_channel(own.target, options=CHANNEL_OPTIONS) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            asked = health_pb2.HealthCheckRequest(service=SERVICE)
            shown = await health.Check(asked, wait_for_ready=True, timeout=60)
            assert shown.status == health_pb2.HealthCheckResponse.NOT_SERVING
            decoder = decoder_pb2_grpc.DecoderServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as early:
                await read(decoder.Chat(chat()))
            assert from_rpc_error(early.value).code == "model_loading"
            await asyncio.to_thread(own.wait_serving)
            assert (await health.Check(asked)).status == health_pb2.HealthCheckResponse.SERVING
            call = decoder.Chat(chat(max_tokens=60, ignore_eos=True))
            await call.read()
            own.process.send_signal(signal.SIGTERM)
            count = 1
            while (response := await call.read()) is not grpc.aio.EOF:
                last, count = response.event, count + 1
            assert last.WhichOneof("event") == "ended"
            assert count == 63, "started, 60 deltas, finished, ended"
        assert await asyncio.to_thread(own.process.wait, 30) == 0
    finally:
        own.process.kill()
        own.process.wait()


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [("MODEL", "/nowhere/model.gguf", "JANUS_DECODER_MODEL"), ("DEVICE", "cuda:9", "JANUS_DECODER_DEVICE")],
)
def test_what_can_not_start_says_why_in_one_line(tmp_path: Path, setting: str, value: str, said: str) -> None:
    own = start(tmp_path, **{setting: value})
    assert own.process.wait(60) == 2
    lines = own.log.read_text().strip().splitlines()
    assert said in lines[-1]
    assert not any("Traceback" in line for line in lines)
