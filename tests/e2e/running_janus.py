"""The whole of Janus as a user starts it: `janus serve`, real processes, real weights, ports of its own."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[2]
DOORS = (
    "GATEWAY_HTTP_PORT",
    "GATEWAY_GRPC_PORT",
    "ENCODER_GRPC_PORT",
    "ENCODER_METRICS_PORT",
    "DECODER_GRPC_PORT",
    "DECODER_METRICS_PORT",
)


@dataclass(frozen=True)
class Stack:
    """A running Janus: where its doors are, and the supervisor's process."""

    ports: dict[str, int]
    supervisor: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['GATEWAY_HTTP_PORT']}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports['GATEWAY_GRPC_PORT']}"

    def metric(self, door: str, name: str) -> float:
        """A metric's value on one port, summed over its labels."""
        text = httpx.get(f"http://127.0.0.1:{self.ports[door]}/metrics", timeout=10).text
        samples = [line for line in text.splitlines() if re.match(rf"{name}[{{ ]", line)]
        assert samples, f"{name} is not there"
        return sum(float(sample.rsplit(" ", 1)[1]) for sample in samples)

    def process(self, service: str) -> psutil.Process:
        """The running process of one service."""
        children = psutil.Process(self.supervisor.pid).children(recursive=True)
        return next(child for child in children if f"services.{service}" in " ".join(child.cmdline()))

    def wait_ready(self, timeout_seconds: float = 120) -> None:
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            assert self.supervisor.poll() is None, self.log.read_text()
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"not ready in {timeout_seconds} s:\n{self.log.read_text()[-5000:]}")


def free_ports(count: int) -> list[int]:
    with ExitStack() as opened:
        sockets = [opened.enter_context(closing(socket.socket())) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def start(folder: Path, **settings: str) -> Stack:
    """Starts `janus serve` on free ports; `settings` are environment variables without their prefix."""
    ports = dict(zip(DOORS, free_ports(len(DOORS)), strict=True))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JANUS_")}
    environment |= {f"JANUS_{name}": str(port) for name, port in ports.items()}
    environment |= {f"JANUS_{name}": value for name, value in settings.items()}
    log = folder / "janus.log"
    janus = Path(sys.executable).with_name("janus")
    with log.open("wb") as out:
        supervisor = subprocess.Popen(
            [janus, "serve"], cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    return Stack(ports, supervisor, log)


def stop(stack: Stack) -> None:
    """Asks the supervisor to stop, and leaves nothing behind whatever it does."""
    family = [psutil.Process(stack.supervisor.pid), *psutil.Process(stack.supervisor.pid).children(recursive=True)]
    stack.supervisor.send_signal(signal.SIGTERM)
    try:
        stack.supervisor.wait(timeout=60)
    finally:
        for process in family:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
