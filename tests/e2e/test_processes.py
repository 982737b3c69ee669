"""What happens to processes: one dies, one is asked to stop, the supervisor is killed, a port is taken."""

import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import psutil
from running_janus import Stack, start, stop

CHAT = {"messages": [{"role": "user", "content": "Count to a hundred."}], "max_tokens": 40, "ignore_eos": True}


def test_sigterm_lets_running_streams_finish(own_stack: Stack) -> None:
    lines: list[str] = []

    def stream() -> None:
        body = {**CHAT, "stream": True}
        with httpx.stream("POST", f"{own_stack.url}/v1/chat/completions", json=body, timeout=60) as response:
            lines.extend(line for line in response.iter_lines() if line.startswith("data: "))

    reader = threading.Thread(target=stream)
    reader.start()
    while not lines and reader.is_alive():
        time.sleep(0.01)
        if own_stack.metric("DECODER_METRICS_PORT", "janus_kv_cache_usage_ratio") > 0:
            break
    own_stack.supervisor.send_signal(signal.SIGTERM)
    reader.join(timeout=60)
    assert lines[-1] == "data: [DONE]"
    assert own_stack.supervisor.wait(timeout=60) == 0


def test_a_killed_worker_comes_back(own_stack: Stack) -> None:
    own_stack.process("decoder").kill()
    deadline = time.monotonic() + 10
    while httpx.get(f"{own_stack.url}/readyz", timeout=10).status_code == 200:
        assert time.monotonic() < deadline, "a dead worker shows in /readyz"
        time.sleep(0.05)
    assert httpx.get(f"{own_stack.url}/livez", timeout=10).status_code == 200
    sentiment = httpx.post(f"{own_stack.url}/v1/classify", json={"inputs": "Lovely."}, timeout=30)
    assert sentiment.status_code == 200, "the other half goes on"
    own_stack.wait_ready(60)
    answer = httpx.post(f"{own_stack.url}/v1/chat/completions", json=CHAT, timeout=60)
    assert answer.status_code == 200


def test_a_killed_supervisor_leaves_nothing_behind(tmp_path: Path) -> None:
    stack = start(tmp_path)
    stack.wait_ready()
    children = psutil.Process(stack.supervisor.pid).children(recursive=True)
    assert len(children) >= 3
    stack.supervisor.kill()
    stack.supervisor.wait(timeout=10)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        stack = start(tmp_path, GATEWAY_HTTP_PORT=str(port))
        assert stack.supervisor.wait(timeout=60) == 1
    log = stack.log.read_text()
    assert str(port) in log
    assert "JANUS_GATEWAY_HTTP_PORT" in log


def test_a_broken_checkpoint_shows_in_readyz(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 40)
    stack = start(tmp_path, DECODER_MODEL=str(broken))
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                body = httpx.get(f"{stack.url}/readyz", timeout=5).text
            except httpx.TransportError:
                body = ""
            if "broken.gguf" in body or stack.supervisor.poll() is not None:
                break
            assert time.monotonic() < deadline, stack.log.read_text()
            time.sleep(0.2)
        assert "broken.gguf" in stack.log.read_text()
    finally:
        if stack.supervisor.poll() is None:
            stop(stack)
