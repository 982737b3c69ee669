"""The gateway as a process: its flags, taken ports, a drain that lets streams end."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_fakes import FakeWorker
from gateway_house import House, StartHouse, until, until_ready

from services.common.ports import PortTaken
from services.common.settings import GatewaySettings
from services.gateway.server import start_gateway

ROOT = Path(__file__).parents[3]
PLAIN = {"messages": [{"role": "user", "content": "hello"}]}
STREAM = {**PLAIN, "stream": True}


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def run_gateway() -> Iterator[Any]:
    children: list[subprocess.Popen[str]] = []

    def run(**flags: Any) -> subprocess.Popen[str]:
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        child = subprocess.Popen(
            [sys.executable, "-m", "services.gateway", *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        children.append(child)
        return child

    yield run
    for child in children:
        child.kill()
        child.communicate()


async def until_listening(http: httpx.AsyncClient) -> None:
    """Until a gateway that was just started is there, and ready."""
    for _ in range(500):
        try:
            return await until_ready(http, seconds=10)
        except httpx.ConnectError:
            await asyncio.sleep(0.02)
    raise AssertionError("the gateway does not listen")


async def test_sigterm_lets_a_stream_end(run_gateway):
    encoder, decoder = FakeWorker("encoder"), FakeWorker("decoder")
    decoder.token_seconds, decoder.words = 0.1, ["x"] * 12
    await encoder.start()
    await decoder.start()
    http_port, grpc_port = free_ports(2)
    targets = {"encoder_targets": encoder.target, "decoder_targets": decoder.target}
    child = run_gateway(http_port=http_port, grpc_port=grpc_port, **targets)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_port}", timeout=20) as http:
        await until_listening(http)
        async with http.stream("POST", "/v1/chat/completions", json=STREAM) as response:
            child.send_signal(signal.SIGTERM)
            body = (await response.aread()).decode()
        assert body.endswith("data: [DONE]\n\n")
        assert body.count('"content":"x"') == 12
    assert await asyncio.to_thread(child.wait, 10) == 0
    log = child.stderr.read()
    assert "Traceback" not in log
    assert log.count("route=/v1/chat/completions") == 1
    await encoder.stop()
    await decoder.stop()


async def test_a_stream_that_outlives_the_drain_is_told_so(start_house: StartHouse):
    house: House = await start_house(drain_timeout_seconds=1)
    house.decoder.token_seconds, house.decoder.words = 0.05, ["x"] * 1000
    async with house.http.stream("POST", "/v1/chat/completions", json=STREAM) as response:
        draining = asyncio.create_task(house.gateway.drain())
        lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "draining"
    await draining
    await until(lambda: house.decoder.num_running == 0)


async def test_what_the_drain_cuts_is_told_so_and_leaves_no_traceback(run_gateway):
    encoder, decoder = FakeWorker("encoder"), FakeWorker("decoder")
    decoder.token_seconds, decoder.words = 0.05, ["x"] * 1000
    await encoder.start()
    await decoder.start()
    http_port, grpc_port = free_ports(2)
    targets = {"encoder_targets": encoder.target, "decoder_targets": decoder.target}
    child = run_gateway(http_port=http_port, grpc_port=grpc_port, drain_timeout_seconds=1, **targets)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{http_port}", timeout=20) as http:
        await until_listening(http)
        plain = asyncio.create_task(http.post("/v1/chat/completions", json=PLAIN))
        await until(lambda: decoder.num_running == 1)
        async with http.stream("POST", "/v1/chat/completions", json=STREAM) as response:
            child.send_signal(signal.SIGTERM)
            body = (await response.aread()).decode()
        answer = await plain
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert int(answer.headers["retry-after-ms"]) > 0
    assert '"code":"draining"' in body
    assert "[DONE]" not in body
    assert await asyncio.to_thread(child.wait, 10) == 0
    log = child.stderr.read()
    assert "Traceback" not in log
    lines = [line for line in log.splitlines() if "route=/v1/chat/completions" in line]
    assert len(lines) == 2
    assert all("code=draining" in line for line in lines), log
    await encoder.stop()
    await decoder.stop()


@pytest.mark.parametrize("flag", ["http_port", "grpc_port"])
async def test_a_taken_port_is_named(run_gateway, flag):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        with pytest.raises(PortTaken):
            await start_gateway(GatewaySettings(**{"http_port": 0, "grpc_port": 0, flag: taken}))
        child = run_gateway(**{"http_port": 0, "grpc_port": 0, flag: taken})
        _, log = await asyncio.to_thread(child.communicate, None, 20)
    assert child.returncode == 2
    assert f"JANUS_GATEWAY_{flag.upper()}: port {taken}" in log
    assert "Traceback" not in log


def test_no_torch_is_imported():
    heavy = {"torch", "model", "numpy", "tokenizers"}
    code = f"import sys, services.gateway.server; print(sorted({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout.strip() == "[]", done.stderr
