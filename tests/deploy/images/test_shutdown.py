"""The end: what runs is finished, then every service exits with 0."""

import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.deploy.images.engine import Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
BODY = {"messages": [{"role": "user", "content": "Count."}], "stream": True, "max_tokens": 60, "ignore_eos": True}


@pytest.fixture
def lines(stack: Stack) -> Iterator[Iterator[str]]:
    url = stack.url("JANUS_GATEWAY_HTTP_PORT") + "/v1/chat/completions"
    with httpx.stream("POST", url, json=BODY, timeout=60) as answer:
        yield (line for line in answer.iter_lines() if line.startswith("data: "))


def wait_ready(stack: Stack) -> None:
    """Asks the gateway itself: Compose gives up on one that lacked its decoder for longer than its health may fail."""
    deadline = time.monotonic() + 120
    while True:
        try:
            answer = httpx.get(stack.url("JANUS_GATEWAY_HTTP_PORT") + "/readyz", timeout=5)
            if answer.status_code == 200:
                return
            said = answer.text
        except httpx.TransportError as error:
            said = repr(error)
        assert time.monotonic() < deadline, said
        time.sleep(0.2)


@pytest.mark.parametrize("service", ["decoder", "gateway"])
def test_a_stream_is_finished_before_the_service_ends(stack: Stack, service: str, lines: Iterator[str]) -> None:
    next(lines)
    stopping = threading.Thread(target=stack.compose, args=("stop", service))
    stopping.start()
    events = list(lines)
    stopping.join()
    code = stack.containers()[service]["ExitCode"]
    stack.compose("start", service)
    wait_ready(stack)
    assert events[-1] == "data: [DONE]"
    assert len(events) > 20
    assert code == 0


def test_every_service_ends_with_zero(stack: Stack) -> None:
    stack.compose("stop")
    assert {name: each["ExitCode"] for name, each in stack.containers().items()} == dict.fromkeys(
        ("gateway", "encoder", "decoder", "prometheus"), 0
    )
