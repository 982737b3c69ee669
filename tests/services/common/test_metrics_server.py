"""A worker's HTTP port, and the server below it, over real connections."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from services.common.http_server import start_http_server
from services.common.metrics import EncoderMetrics
from services.common.metrics_server import serve_metrics
from services.common.ports import PortTaken

HOST = "127.0.0.1"


async def test_metrics_liveness_and_readiness() -> None:
    metrics, ready = EncoderMetrics(), False
    metrics.set_build(device="cpu", kernel="portable", dtype="bf16")
    server = await serve_metrics(metrics, host=HOST, port=0, setting="S", is_ready=lambda: ready)
    async with httpx.AsyncClient(base_url=f"http://{HOST}:{server.port}") as client:
        shown = await client.get("/metrics")
        assert shown.headers["content-type"].startswith("text/plain")
        assert 'janus_build_info{device="cpu"' in shown.text
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        ready = True
        assert (await client.get("/readyz")).status_code == 200
    await server.stop()


async def test_a_taken_port_is_told_with_its_setting_and_number() -> None:
    metrics = EncoderMetrics()
    server = await serve_metrics(metrics, host=HOST, port=0, setting="S", is_ready=lambda: True)
    with pytest.raises(PortTaken, match=rf"^JANUS_ENCODER_METRICS_PORT: port {server.port} on {HOST} .*in use"):
        await serve_metrics(
            metrics, host=HOST, port=server.port, setting="JANUS_ENCODER_METRICS_PORT", is_ready=lambda: True
        )
    await server.stop()


async def test_a_stop_lets_a_running_response_end() -> None:
    gate = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first "
        await gate.wait()
        yield b"last"

    async def slow(_request: Request) -> StreamingResponse:
        return StreamingResponse(body())

    server = await start_http_server(
        Starlette(routes=[Route("/", slow)]), host=HOST, port=0, setting="S", drain_timeout_seconds=10
    )
    async with httpx.AsyncClient() as client, client.stream("GET", f"http://{HOST}:{server.port}/") as response:
        chunks = response.aiter_bytes()
        assert await anext(chunks) == b"first "
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0.2)
        assert not stopping.done()
        gate.set()
        assert await anext(chunks) == b"last"
    await asyncio.wait_for(stopping, 5)
