"""`janus serve` as a process: flags, doors, readiness, taken ports; small programs stand in for the services."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.settings import all_settings

STAND_IN = """
import json, os, signal, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

folder, name = Path(sys.argv[1]), sys.argv[2]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
(folder / f"{name}.json").write_text(json.dumps(dict(os.environ)))

class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        is_ready = all((folder / f"{each}.json").exists() for each in ("encoder", "decoder", "gateway"))
        self.send_response(200 if self.path == "/readyz" and is_ready else 503)
        self.end_headers()

    def log_message(self, *_):
        pass

if name == "gateway":
    HTTPServer(("127.0.0.1", int(os.environ["JANUS_GATEWAY_HTTP_PORT"])), Ready).serve_forever()
while True:
    time.sleep(0.1)
"""
DRIVER = """
import sys
import services.cli.serve as serve
from services.cli.child import Service
from services.cli.main import main

folder = sys.argv.pop(1)
serve.SERVICES = tuple(
    Service(name, (sys.executable, folder + "/stand_in.py", folder, name), name == "gateway")
    for name in ("encoder", "decoder", "gateway")
)
main()
"""
ANY_PORT = [
    f"--{name}=0"
    for name in (
        "gateway-http-port",
        "gateway-grpc-port",
        "encoder-grpc-port",
        "encoder-metrics-port",
        "decoder-grpc-port",
        "decoder-metrics-port",
    )
]


@pytest.fixture
def environment() -> dict[str, str]:
    unset = {setting.environment for setting in all_settings()} | {"OMP_NUM_THREADS", "OMP_WAIT_POLICY"}
    return {name: value for name, value in os.environ.items() if name not in unset} | {"COLUMNS": "200"}


def serve(folder: Path, environment: dict[str, str], *flags: str) -> "subprocess.Popen[str]":
    (folder / "stand_in.py").write_text(STAND_IN)
    (folder / "driver.py").write_text(DRIVER)
    return subprocess.Popen(
        [sys.executable, str(folder / "driver.py"), str(folder), "serve", *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lines_until(process: "subprocess.Popen[str]", text: str) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if text in line:
            return
    pytest.fail(f"{text!r} was not said")


def environment_of(folder: Path, service: str) -> dict[str, str]:
    seen: dict[str, str] = json.loads((folder / f"{service}.json").read_text())
    return seen


def test_flags_reach_the_services_and_the_doors_are_told(tmp_path: Path, environment: dict[str, str]) -> None:
    environment["JANUS_ENCODER_DTYPE"] = "float32"
    flags = ["--decoder-max-running", "3", "--log-level", "debug", "--device", "cpu", *ANY_PORT]
    with serve(tmp_path, environment, *flags) as process:
        said = "".join(lines_until(process, "ready in"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    decoder, gateway = environment_of(tmp_path, "decoder"), environment_of(tmp_path, "gateway")
    assert decoder["JANUS_DECODER_MAX_RUNNING"] == "3"
    assert decoder["JANUS_LOG_LEVEL"] == "debug"
    assert decoder["JANUS_DEVICE"] == "cpu"
    assert environment_of(tmp_path, "encoder")["JANUS_ENCODER_DTYPE"] == "float32"
    for worker in ("ENCODER", "DECODER"):
        port = decoder[f"JANUS_{worker}_GRPC_PORT"]
        assert int(port) > 0
        assert gateway[f"JANUS_GATEWAY_{worker}_TARGETS"] == f"127.0.0.1:{port}"
    assert decoder["OMP_WAIT_POLICY"] == "PASSIVE"
    assert int(decoder["OMP_NUM_THREADS"]) >= 1
    assert gateway["JANUS_GATEWAY_SUPERVISOR_STATE"].endswith("supervisor.json")
    assert not Path(gateway["JANUS_GATEWAY_SUPERVISOR_STATE"]).exists()
    assert f"http://127.0.0.1:{gateway['JANUS_GATEWAY_HTTP_PORT']}/v1" in said
    assert f"gRPC    127.0.0.1:{gateway['JANUS_GATEWAY_GRPC_PORT']}" in said
    assert "no API key is asked for; the doors are open to this machine only (127.0.0.1)" in said


def test_targets_that_are_given_stay(tmp_path: Path, environment: dict[str, str]) -> None:
    flags = ["--gateway-decoder-targets", "10.0.0.1:1,10.0.0.2:1", *ANY_PORT]
    with serve(tmp_path, environment, *flags) as process:
        list(lines_until(process, "ready in"))
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
    assert environment_of(tmp_path, "gateway")["JANUS_GATEWAY_DECODER_TARGETS"] == "10.0.0.1:1,10.0.0.2:1"


def test_a_taken_port_is_named_once_and_nothing_is_started(tmp_path: Path, environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve(tmp_path, environment, *ANY_PORT, f"--decoder-grpc-port={port}") as process:
            said, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said.count("JANUS_DECODER_GRPC_PORT") == 1
    assert f"port {port} on 127.0.0.1 can't be opened: address already in use" in said
    assert not list(tmp_path.glob("*.json"))


def test_a_wrong_value_is_named_once_and_nothing_is_started(tmp_path: Path, environment: dict[str, str]) -> None:
    with serve(tmp_path, environment, "--decoder-dtype", "int9") as process:
        said, _ = process.communicate(timeout=20)
    assert process.returncode == 2
    assert said == textwrap.dedent("""\
        JANUS_DECODER_DTYPE is 'int9': input should be 'auto', 'float32', 'bf16' or 'int8'
    """)
    assert not list(tmp_path.glob("*.json"))


def test_a_variable_that_is_no_setting_is_named(tmp_path: Path, environment: dict[str, str]) -> None:
    mistyped = {"JANUS_DECODER_MODLE": "/models/mine", "JANUS_TORCH": "cpu"}
    with serve(tmp_path, environment | mistyped, *ANY_PORT) as process:
        said = "".join(lines_until(process, "ready in"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    assert "JANUS_DECODER_MODLE is no setting" in said
    assert "JANUS_TORCH" not in said


def test_help_lists_every_setting_with_its_text(tmp_path: Path, environment: dict[str, str]) -> None:
    with serve(tmp_path, environment, "--help") as process:
        said, _ = process.communicate(timeout=20)
    squeezed = "".join(said.replace("│", " ").split())
    for setting in all_settings():
        assert setting.flag in said
        assert "".join(setting.help.split()) in squeezed
