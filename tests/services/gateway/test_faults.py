"""Workers that die, come back, drain, load or hang."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_fakes import DECODER_MODEL, FakeWorker
from gateway_house import House, StartHouse, until, until_ready

from services.common.errors import Cancelled, Draining, QueueFull, WorkerLost
from services.gateway.worker_client import WorkerState

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
STREAM = {**CHAT, "stream": True}
FAKES = Path(__file__).with_name("gateway_fakes.py")


class WorkerProcess:
    """A worker that can be killed as no server in this process can; a token or an answer takes it `seconds`."""

    def __init__(self, kind: str = "decoder", seconds: float = 0.02) -> None:
        self._script = (kind, str(seconds))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        kind, seconds = self._script
        self._child = subprocess.Popen(
            [sys.executable, str(FAKES), kind, str(self.port), seconds],
            stdout=subprocess.DEVNULL,
            cwd=FAKES.parents[3],
        )

    def pause(self) -> None:
        """It neither answers nor closes a connection from now on, like a machine that is gone."""
        assert self._child is not None
        self._child.send_signal(signal.SIGSTOP)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._child is not None:
            self._child.send_signal(number)
            self._child.wait()
            self._child = None


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    worker = WorkerProcess()
    worker.start()
    yield worker
    worker.kill()


@pytest.fixture
async def house_of_process(start_house: StartHouse, worker: WorkerProcess) -> House:
    house = await start_house(is_ready=False, decoder_targets=f"127.0.0.1:{worker.port}")
    await house.encoder.set_serving()
    await until_ready(house.http, seconds=20)
    return house


async def test_a_worker_that_dies_mid_stream(house_of_process, worker):
    house = house_of_process
    lines = []
    async with house.http.stream("POST", "/v1/chat/completions", json=STREAM) as response:
        async for line in response.aiter_lines():
            lines.append(line)
            if len(lines) == 10:
                worker.kill()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert json.loads(data[-1])["error"]["code"] == "worker_lost"
    assert "[DONE]" not in data
    await house.until_metric(1, "janus_requests_total", code="worker_lost", task="chat")
    await house.until_metric(0, "janus_worker_up", worker_kind="decoder")
    await house.until_metric(1, "janus_worker_state", worker_kind="decoder", state="lost")
    response = await house.http.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "no_worker"
    assert response.headers["retry-after-ms"] == "1000"
    assert (await house.http.get("/v1/models/smol")).json()["state"] == "unavailable"


@pytest.mark.slow
async def test_a_worker_that_falls_silent_mid_stream(house_of_process, worker):
    """Pings find out, in seconds: ten until the first, five for its answer."""
    house = house_of_process
    async with house.http.stream("POST", "/v1/chat/completions", json=STREAM, timeout=40) as response:
        lines = response.aiter_lines()
        await anext(lines)
        worker.pause()
        paused = time.monotonic()
        rest = [line async for line in lines]
    assert time.monotonic() - paused < 25
    assert '"worker_lost"' in "".join(rest)
    assert "data: [DONE]" not in rest
    await house.until_metric(0, "janus_worker_up", worker_kind="decoder")


async def test_a_worker_that_cuts_its_streams(house):
    house.decoder.token_seconds, house.decoder.words = 0.02, ["x"] * 1000
    house.encoder.answer_seconds = 30
    embedding = asyncio.create_task(house.http.post("/v1/embeddings", json={"input": "a"}))
    await until(lambda: len(house.encoder.requests) == 1)
    async with house.http.stream("POST", "/v1/chat/completions", json=STREAM) as response:
        await house.decoder.stop()
        await house.encoder.stop()
        lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "worker_lost"
    assert (await embedding).status_code == 503
    await until(lambda: all(worker.state is WorkerState.LOST for worker in house.gateway.router.workers))
    await house.decoder.start()
    await house.encoder.start()
    await until_ready(house.http, seconds=3)
    house.encoder.answer_seconds = 0
    assert (await house.http.post("/v1/embeddings", json={"input": "a"})).status_code == 200


async def test_a_status_cancelled_of_the_worker_is_a_lost_worker(house):
    house.decoder.failure, house.decoder.failure_after_tokens = Cancelled("not by the client"), 2
    async with house.http.stream("POST", "/v1/chat/completions", json=STREAM) as response:
        lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "worker_lost"
    house.encoder.failure = Cancelled("not by the client")
    response = await house.http.post("/v1/embeddings", json={"input": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "worker_lost")


async def test_a_worker_that_comes_back_is_found_within_three_seconds(house_of_process, worker):
    house = house_of_process
    worker.kill()
    await until(lambda: not house.gateway.router.workers[1].serves("smol"))
    ready = await house.http.get("/readyz")
    assert ready.status_code == 503
    await asyncio.sleep(3)
    worker.start()
    started_at = None
    for _ in range(2000):
        # The process itself takes a second to import; the clock starts when its port is open.
        with socket.socket() as probe:
            if started_at is None and probe.connect_ex(("127.0.0.1", worker.port)) == 0:
                started_at = time.monotonic()
        response = await house.http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 1})
        if response.status_code == 200:
            break
        await asyncio.sleep(0.01)
    assert response.status_code == 200
    assert started_at is not None
    assert time.monotonic() - started_at < 3
    await until_ready(house.http)


async def test_a_hanging_worker_meets_the_deadline(house):
    house.decoder.answer_seconds = 60
    house.encoder.answer_seconds = 60
    for path, body in (("chat/completions", STREAM), ("embeddings", {"input": "a"}), ("classify", {"inputs": "a"})):
        started_at = time.monotonic()
        response = await house.http.post(f"/v1/{path}", json=body, headers={"X-Request-Timeout-Ms": "200"})
        assert time.monotonic() - started_at < 1
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"
        assert response.headers["x-should-retry"] == "false"
    await until(lambda: house.decoder.num_running == 0)


async def test_the_deadline_holds_in_the_middle_of_a_stream(start_house: StartHouse):
    house = await start_house(request_timeout_seconds=0.3)
    house.decoder.token_seconds = 0.05
    house.decoder.words = ["x"] * 100
    async with house.http.stream("POST", "/v1/chat/completions", json=STREAM) as response:
        lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


class LosesOne(FakeWorker):
    """Fails the first request as a worker does that is lost, drained or gone."""

    def __init__(self, failure: Exception) -> None:
        super().__init__("decoder")
        self.failure = failure


@pytest.mark.parametrize("failure", [WorkerLost("gone"), Draining("going")], ids=lambda each: each.code)
async def test_a_request_is_tried_once_more_on_another_worker(start_house: StartHouse, failure):
    bad, good = LosesOne(failure), FakeWorker("decoder")
    await bad.start()
    await good.start()
    house = await start_house(decoder_targets=f"{bad.target},{good.target}")
    await until(lambda: all(worker.state is WorkerState.READY for worker in house.gateway.router.workers))
    response = await house.http.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 200
    assert (len(bad.requests), len(good.requests)) == (1, 1)
    await house.until_metric(1, "janus_retries_total", worker_kind="decoder", cause=failure.code)
    await bad.stop()
    await good.stop()


async def test_other_errors_are_not_tried_again(house):
    house.decoder.failure = QueueFull("full", retry_after_ms=1500)
    response = await house.http.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "2"
    assert response.headers["retry-after-ms"] == "1500"
    assert response.headers["x-should-retry"] == "true"
    assert len(house.decoder.requests) == 1
    await house.until_metric(1, "janus_rejections_total", reason="queue_full")


async def test_a_lone_worker_that_is_lost_is_worker_lost(house):
    house.decoder.failure = WorkerLost("gone")
    response = await house.http.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "worker_lost"


async def test_the_least_busy_worker_is_chosen(start_house: StartHouse):
    workers = [FakeWorker("decoder"), FakeWorker("decoder")]
    for worker in workers:
        worker.token_seconds = 0.02
        await worker.start()
    house = await start_house(decoder_targets=", ".join(worker.target for worker in workers))
    await until(lambda: all(worker.state is WorkerState.READY for worker in house.gateway.router.workers))
    await asyncio.gather(*(house.http.post("/v1/chat/completions", json=CHAT) for _ in range(6)))
    assert [len(worker.requests) for worker in workers] == [3, 3]
    assert len((await house.http.get("/v1/models")).json()["data"]) == 2
    await workers[0].stop()
    await until(lambda: house.gateway.router.workers[1].state is WorkerState.LOST)
    assert (await house.http.get("/readyz")).status_code == 200
    assert (await house.http.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert (await house.http.get("/v1/models/smol")).json()["state"] == "ready"
    await workers[1].stop()


async def test_a_draining_worker_ends_its_streams_and_takes_no_more(house):
    house.decoder.token_seconds = 0.05
    house.decoder.words = ["x"] * 10
    async with house.http.stream("POST", "/v1/chat/completions", json=STREAM) as response:
        stopping = asyncio.create_task(house.decoder.stop(drain_seconds=5))
        await until(lambda: house.gateway.router.workers[1].state is WorkerState.DRAINING)
        refused = await house.http.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert (await house.http.get("/v1/models/smol")).json()["state"] == "draining"
        body = (await response.aread()).decode()
    assert body.endswith("data: [DONE]\n\n")
    started_at = time.monotonic()
    await stopping
    assert time.monotonic() - started_at < 2, "the gateway's watch held the worker's drain up"


async def test_a_loading_worker_is_waited_for(start_house: StartHouse):
    house = await start_house(is_ready=False)
    await until(lambda: all(worker.state is WorkerState.LOADING for worker in house.gateway.router.workers))
    for body in (CHAT, {**CHAT, "model": "anything"}):
        response = await house.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "model_loading"
    await house.decoder.set_serving()
    await until(lambda: house.gateway.router.workers[1].state is WorkerState.READY)
    assert (await house.http.post("/v1/chat/completions", json=CHAT)).status_code == 200
    unknown = await house.http.post("/v1/chat/completions", json={**CHAT, "model": "nobody"})
    assert unknown.json()["error"]["code"] == "model_not_found"


async def test_nobody_there(start_house: StartHouse):
    house = await start_house(is_ready=False, encoder_targets="127.0.0.1:1", decoder_targets="127.0.0.1:1")
    response = await house.http.post("/v1/embeddings", json={"input": "a"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "no_worker"
    assert (await house.http.get("/v1/models")).json() == {"object": "list", "data": []}
    assert (await house.http.get("/v1/models/smol")).json()["error"]["code"] == "no_worker"


async def test_a_model_of_the_other_kind_does_not_serve_the_task(house):
    response = await house.http.post("/v1/embeddings", json={"input": "a", "model": DECODER_MODEL.id})
    assert response.status_code == 400
    assert (response.json()["error"]["code"], response.json()["error"]["param"]) == ("task_not_supported", "model")


async def test_a_worker_that_is_killed_with_many_requests_in_flight(start_house: StartHouse):
    worker = WorkerProcess("encoder", seconds=60)
    worker.start()
    house = await start_house(is_ready=False, encoder_targets=f"127.0.0.1:{worker.port}")
    await house.decoder.set_serving()
    await until_ready(house.http, seconds=20)
    asking = [asyncio.create_task(house.http.post("/v1/embeddings", json={"input": "a"})) for _ in range(30)]
    client = house.gateway.router.workers[0]
    await until(lambda: client.num_running == 30)
    worker.kill()
    answers = await asyncio.gather(*asking)
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [(503, "worker_lost")] * 30
    assert all(answer.headers["retry-after-ms"] == "1000" for answer in answers)
    await house.until_metric(30, "janus_requests_total", code="worker_lost", task="embeddings")
    await until(lambda: client.state is WorkerState.LOST)
    assert client.num_running == 0
