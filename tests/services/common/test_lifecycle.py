"""A service's life, as a real process."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from services.common.lifecycle import ExitCode

PREAMBLE = """
import asyncio, sys
from services.common.lifecycle import run
from services.common.logging import configure_logging, get_logger
from services.common.settings import ConfigurationError, DecoderSettings, load_settings
configure_logging(load_settings(DecoderSettings))
"""


def start(tmp_path: Path, body: str, *flags: str) -> subprocess.Popen[str]:
    program = tmp_path / "service.py"
    program.write_text(PREAMBLE + textwrap.dedent(body) + "\nsys.exit(run(serve))\n")
    return subprocess.Popen(
        [sys.executable, str(program), *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


DRAINING = """
    async def serve(drain):
        print("up", flush=True)
        await drain.wait()
        print("draining", flush=True)
        if "--threads" in sys.argv:
            await asyncio.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_a_drain_and_the_end_is_clean(tmp_path: Path, number: signal.Signals) -> None:
    with start(tmp_path, DRAINING) as process:
        assert line_of(process) == "up"
        process.send_signal(number)
        assert line_of(process) == "draining"
        assert process.wait(10) == ExitCode.OK


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with start(tmp_path, DRAINING, "--threads", "1") as process:
        assert line_of(process) == "up"
        process.send_signal(signal.SIGTERM)
        assert line_of(process) == "draining"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == ExitCode.FORCED


def test_a_configuration_error_is_one_line(tmp_path: Path) -> None:
    body = """
    async def serve(drain):
        raise ConfigurationError("JANUS_DECODER_MODEL: no such file: /nowhere")
    """
    with start(tmp_path, body) as process:
        _, errors = process.communicate(timeout=10)
    assert process.returncode == ExitCode.CONFIGURATION
    assert errors == "JANUS_DECODER_MODEL: no such file: /nowhere\n"


def test_any_other_failure_is_logged_and_its_last_line_says_what_it_was(tmp_path: Path) -> None:
    body = """
    async def serve(drain):
        prompt = "a private text"
        raise ValueError("broken")
    """
    with start(tmp_path, body) as process:
        _, errors = process.communicate(timeout=10)
    assert process.returncode == ExitCode.FAILED
    assert "Traceback" in errors
    assert errors.splitlines()[-1] == "ValueError: broken"


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_logged_traceback_shows_no_variables(tmp_path: Path, log_format: str) -> None:
    body = """
    async def serve(drain):
        prompt = "a private " + "text"
        try:
            raise ValueError("broken")
        except ValueError:
            get_logger("x").exception("it failed")
    """
    with start(tmp_path, body, "--log-format", log_format) as process:
        _, errors = process.communicate(timeout=10)
    assert "ValueError: broken" in errors
    assert "a private text" not in errors
    if log_format == "json":
        line = json.loads(errors)
        assert (line["event"], line["level"], line["service"]) == ("it failed", "error", "decoder")


def test_the_standard_librarys_records_go_the_same_way(tmp_path: Path) -> None:
    body = """
    async def serve(drain):
        import logging
        logging.getLogger("other").warning("from %s", "elsewhere")
        logging.getLogger("uvicorn.access").info("noise")
    """
    with start(tmp_path, body, "--log-format", "json") as process:
        _, errors = process.communicate(timeout=10)
    assert json.loads(errors)["event"] == "from elsewhere"
