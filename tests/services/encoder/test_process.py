"""`python -m services.encoder` as a process, with the real weights and the sentiment adapter."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from janus.v1 import encoder_pb2, encoder_pb2_grpc
from services.common.rpc_status import from_rpc_error

ROOT = Path(__file__).parents[3]


def start(*flags: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JANUS_")}
    command = [sys.executable, "-m", "services.encoder", *flags]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def ports() -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    numbers = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return numbers


@pytest.fixture
def process(ports: list[int]) -> Iterator["subprocess.Popen[str]"]:
    child = start(f"--grpc-port={ports[0]}", f"--metrics-port={ports[1]}")
    yield child
    child.kill()
    child.communicate()


def wait_until_serving(channel: grpc.Channel) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=60)
    assert any(answer.status == health_pb2.HealthCheckResponse.SERVING for answer in watch)
    watch.cancel()


def test_a_worker_from_start_to_end(process: "subprocess.Popen[str]", ports: list[int]) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
        wait_until_serving(channel)
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)

        reviews = ["A wonderful, moving film.", "Utterly boring and badly acted."]
        moods = stub.ClassifyText(encoder_pb2.ClassifyTextRequest(inputs=reviews), timeout=30)
        assert moods.model == "sentiment"
        assert [result.labels[0].label for result in moods.results] == ["positive", "negative"]
        assert [sum(one.score for one in result.labels) for result in moods.results] == pytest.approx([1, 1])

        text = encoder_pb2.EmbedTextInput(text="A wonderful, moving film.")
        vectors = stub.EmbedText(encoder_pb2.EmbedTextRequest(input=[text]), timeout=30)
        assert vectors.model == "all-MiniLM-L6-v2"
        assert sum(x * x for x in vectors.embeddings[0].values) == pytest.approx(1, abs=1e-4)

        for code, param, message, request in (
            ("context_length_exceeded", "inputs", r"602 tokens.* 512", {"inputs": ["word " * 600]}),
            ("invalid_request", "inputs", r"'inputs\[1\]' is an empty text", {"inputs": ["fine", ""]}),
            ("model_not_found", "model", "no such model", {"inputs": ["fine"], "model": "nobody"}),
            ("task_not_supported", "model", "'classify'", {"inputs": ["fine"], "model": "all-MiniLM-L6-v2"}),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                stub.ClassifyText(encoder_pb2.ClassifyTextRequest(**request), timeout=30)
            error = from_rpc_error(refused.value)
            assert (error.code, error.param) == (code, param)
            assert re.search(message, error.message)

    metrics = urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/metrics", timeout=10).read().decode()
    assert 'janus_requests_total{code="ok",model="sentiment",task="classify",transport="grpc"} 1.0' in metrics
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log
    assert "wonderful" not in log


def test_a_wrong_setting_is_one_line(ports: list[int]) -> None:
    child = start(f"--grpc-port={ports[0]}", f"--metrics-port={ports[1]}", "--log-level=error", "--models=/nowhere")
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 2
    assert errors == "JANUS_ENCODER_MODELS: /nowhere: there is no such file or folder\n"
