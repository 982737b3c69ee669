"""The board on a real Prometheus that scrapes the real stack under load: no expression answers nothing."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.deploy.images.engine import Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LOAD_SECONDS = 20
CHAT = {"messages": [{"role": "user", "content": "Tell me a short story about a lighthouse."}], "max_tokens": 24}
# More at once than the stack's decoder runs and queues together.
BURST = 14
SELDOM = " or vector(0)"


async def classify(client: httpx.AsyncClient, until: float) -> None:
    while time.monotonic() < until:
        await client.post("/v1/classify", json={"inputs": ["A fine day.", "The battery died."]})
        await client.post("/v1/embeddings", json={"input": "a cat"})


async def chat(client: httpx.AsyncClient, until: float) -> None:
    while time.monotonic() < until:
        await client.post("/v1/chat/completions", json=CHAT)


async def go_away(client: httpx.AsyncClient, until: float) -> None:
    while time.monotonic() < until:
        async with client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as answer:
            async for _ in answer.aiter_lines():
                break
        await client.post("/v1/chat/completions", json=CHAT, headers={"x-request-timeout-ms": "1"})
        await asyncio.sleep(0.5)


async def load(url: str) -> None:
    """All kinds of requests at once, a burst that fills the queue, clients that go away or have no time."""
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=64)) as client:
        until = time.monotonic() + LOAD_SECONDS
        await asyncio.gather(classify(client, until), chat(client, until), go_away(client, until))
        until = time.monotonic() + LOAD_SECONDS / 2
        await asyncio.gather(
            classify(client, until), *(chat(client, until) for _ in range(BURST)), go_away(client, until)
        )


def answer(prometheus: httpx.Client, expression: str) -> list[dict[str, Any]]:
    response = prometheus.get("/api/v1/query", params={"query": expression})
    assert response.status_code == 200, response.text
    result: list[dict[str, Any]] = response.json()["data"]["result"]
    return result


@pytest.fixture(scope="module")
def prometheus(stack: Stack) -> Iterator[httpx.Client]:
    """Prometheus after it has seen load."""
    asyncio.run(load(stack.url("JANUS_GATEWAY_HTTP_PORT")))
    with httpx.Client(base_url=stack.url("PROMETHEUS_PORT"), timeout=30) as client:
        yield client


def test_every_target_is_scraped(prometheus: httpx.Client) -> None:
    up = {series["metric"]["job"]: series["value"][1] for series in answer(prometheus, "up")}
    assert up == dict.fromkeys(("gateway", "encoder", "decoder", "prometheus"), "1")


def test_every_expression_of_the_board_has_an_answer(
    prometheus: httpx.Client, board_expressions: dict[str, str]
) -> None:
    # A second attempt needs a second worker.
    empty = [
        panel
        for panel, expression in board_expressions.items()
        if not answer(prometheus, expression if "retries_total" in expression else expression.replace(SELDOM, ""))
    ]
    assert empty == []


def test_no_figure_of_the_board_is_not_a_number(prometheus: httpx.Client, board_expressions: dict[str, str]) -> None:
    odd = {
        panel: series["metric"]
        for panel, expression in board_expressions.items()
        for series in answer(prometheus, expression)
        if series["value"][1] in {"NaN", "+Inf"}
    }
    assert odd == {}


def test_the_rules_are_loaded_and_calm(prometheus: httpx.Client) -> None:
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert set(health.values()) == {"ok"}
    assert not answer(prometheus, 'ALERTS{alertstate="firing", alertname=~"JanusServiceUnreachable|JanusWorkerDown"}')
