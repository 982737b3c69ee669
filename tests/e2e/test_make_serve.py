"""The README's first command, as typed: in this tree, and in a fresh clone whose machine has cached nothing."""

import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from running_janus import DOORS, ROOT, free_ports


def serve(folder: Path, log: Path, **environment: str) -> tuple[float, int]:
    """Types `make serve`, asks for a sentiment, presses Ctrl-C. Seconds until the answer, and the exit code."""
    ports = dict(zip(DOORS, map(str, free_ports(len(DOORS))), strict=True))
    settings = {f"JANUS_{name}": port for name, port in ports.items()}
    started = time.monotonic()
    with log.open("wb") as out:
        make = subprocess.Popen(
            ["make", "serve"],
            cwd=folder,
            env=os.environ | settings | environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        wait_for_an_answer(f"http://127.0.0.1:{ports['GATEWAY_HTTP_PORT']}", make, log)
        seconds = time.monotonic() - started
        os.killpg(make.pid, signal.SIGINT)  # what a terminal does at Ctrl-C
        return seconds, make.wait(timeout=60)
    finally:
        if make.poll() is None:
            os.killpg(make.pid, signal.SIGKILL)


def wait_for_an_answer(url: str, make: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        assert make.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                break
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    while "ready in" not in log.read_text():
        time.sleep(0.05)
    answer = httpx.post(f"{url}/v1/classify", json={"inputs": "What a lovely little film!"}, timeout=30)
    assert answer.json()["results"][0][0]["label"] == "positive"


def test_make_serve(tmp_path: Path) -> None:
    seconds, _ = serve(ROOT, tmp_path / "log")
    assert seconds < 60
    log = (tmp_path / "log").read_text()
    assert "no API key is asked for" in log
    assert log.rstrip().splitlines()[-1].endswith(("stopped", "Error 130", "Interrupt")), log


def test_the_settings_are_listed() -> None:
    command = ["make", "--silent", "serve", "ARGS=--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    for setting in ("--gateway-http-port", "--decoder-model", "--encoder-device", "JANUS_DECODER_MODEL"):
        assert setting in shown


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_fresh_clone(tmp_path: Path) -> None:
    """First start within 3 minutes with nothing cached, the second within 15 seconds and without the network."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    home = tmp_path / "home"
    home.mkdir()
    caches = {name: str(home / name) for name in ("XDG_CACHE_HOME", "PIP_CACHE_DIR", "UV_CACHE_DIR")}
    nothing_cached = {"HOME": str(home)} | caches
    first, _ = serve(clone, tmp_path / "first.log", **nothing_cached)
    assert "The native library is built" in (tmp_path / "first.log").read_text()
    nowhere = "http://127.0.0.1:9"
    offline = {"HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "NO_PROXY": "127.0.0.1", "UV_OFFLINE": "1"}
    second, _ = serve(clone, tmp_path / "second.log", **nothing_cached, **offline)
    print(f"first start {first:.1f} s, second start {second:.1f} s")
    assert first < 180
    assert second < 15
