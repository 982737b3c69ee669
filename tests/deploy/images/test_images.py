"""What runs in the containers: it serves, as nobody in particular, on a file system that it can't write."""

import json
from collections.abc import Iterator

import grpc
import httpx
import pytest

from janus.v1 import decoder_pb2, decoder_pb2_grpc
from tests.deploy.images.engine import Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
OURS = ("gateway", "encoder", "decoder")


def found(stack: Stack, service: str, *modules: str) -> str:
    """Which of some modules a service could import."""
    code = f"import importlib.util; print([name for name in {modules} if importlib.util.find_spec(name)])"
    return stack.execute(service, "python", "-c", code).strip()


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url("JANUS_GATEWAY_HTTP_PORT"), timeout=60) as client:
        yield client


def test_every_container_is_healthy(stack: Stack) -> None:
    containers = stack.containers()
    assert {name: each["Health"] for name, each in containers.items()} == dict.fromkeys(
        (*OURS, "prometheus"), "healthy"
    )


def test_sentiment_is_answered_on_the_host(client: httpx.Client) -> None:
    answer = client.post("/v1/classify", json={"inputs": "What a lovely little film!"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0][0]["label"] == "positive"


def test_a_chat_is_streamed_to_the_host(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "Name the capital of France."}], "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body | {"temperature": 0, "max_tokens": 16}) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    text = "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events)
    assert "Paris" in text


async def test_a_chat_is_streamed_over_grpc(stack: Stack) -> None:
    target = stack.url("JANUS_GATEWAY_GRPC_PORT").removeprefix("http://")
    question = decoder_pb2.ChatMessage(role="user", content="Name the capital of France.")
    request = decoder_pb2.ChatRequest(messages=[question], options=decoder_pb2.GenerationOptions(max_tokens=16))
    async with grpc.aio.insecure_channel(target) as channel:
        answers = decoder_pb2_grpc.DecoderServiceStub(channel).Chat(request)
        events = [answer.event.WhichOneof("event") async for answer in answers]
    assert events[0] == "started"
    assert events[-2:] == ["finished", "ended"]


@pytest.mark.parametrize("service", OURS)
def test_it_runs_as_an_ordinary_user_on_a_read_only_root(stack: Stack, service: str) -> None:
    assert stack.execute(service, "id", "-u").strip() == "10001"
    attempt = "import pathlib; pathlib.Path('/tmp/x').write_text(''); pathlib.Path('/opt/janus/x').write_text('')"
    with pytest.raises(AssertionError, match="Read-only file system: '/opt/janus/x'"):
        stack.execute(service, "python", "-c", attempt)
    capabilities = stack.execute(service, "grep", "CapEff", "/proc/1/status")
    assert int(capabilities.split()[1], 16) == 0


def test_the_gateway_has_no_torch_and_no_model(stack: Stack) -> None:
    assert found(stack, "gateway", "torch", "numpy", "model", "services.decoder") == "[]"


@pytest.mark.parametrize("service", OURS)
def test_no_image_carries_an_installer(stack: Stack, service: str) -> None:
    assert found(stack, service, "pip", "uv", "setuptools") == "[]"


def test_the_decoder_serves_through_the_native_library_without_a_compiler(stack: Stack) -> None:
    code = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:9102/metrics').read().decode())"
    [build] = [line for line in stack.execute("decoder", "python", "-c", code).splitlines() if "build_info{" in line]
    assert 'kernel="native ' in build
    code = "import shutil; print([name for name in ('g++', 'gcc', 'c++', 'cc') if shutil.which(name)])"
    assert stack.execute("decoder", "python", "-c", code).strip() == "[]"


CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 8000), timeout=2).close()
    print("reached")
except TimeoutError:
    print("out of reach")
"""


def test_workers_reach_the_gateway_on_the_internal_network_alone(stack: Stack) -> None:
    addresses = stack.execute("gateway", "hostname", "-I").split()
    found = [stack.execute("encoder", "python", "-c", CONNECT, address).strip() for address in addresses]
    assert sorted(found) == ["out of reach", "reached"]


def test_the_health_check_says_what_is_wrong(stack: Stack) -> None:
    with pytest.raises(AssertionError, match="/nowhere answers 404"):
        stack.execute("decoder", "python", "healthcheck.py", "/nowhere")
