"""The supervisor, over real processes: small programs stand in for the services."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from services.cli.backoff import Backoff
from services.cli.child import Service
from services.cli.service_log import ServiceLog
from services.cli.state_file import StateFile
from services.cli.supervisor import Supervisor
from services.common.lifecycle import ExitCode

QUICK = Backoff(first_seconds=0.1, longest_seconds=0.4, reset_after_seconds=60)

STEADY = """
    signal.signal(signal.SIGTERM, lambda *_: (note("stopped"), sys.exit(0)))
    note("started")
    while True:
        time.sleep(0.05)
"""
CRASHING = """
    note("started")
    print("about to fail", flush=True)
    print("OSError: no such file", file=sys.stderr)
    sys.exit(3)
"""


class Stage:
    """Programs in a folder, a diary that they write, and a supervisor over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.diary = folder / "diary"
        self.diary.touch()
        self.state = StateFile(folder / "state.json")
        self.output = io.StringIO()

    def service(self, name: str, body: str, *, is_door: bool = False) -> Service:
        program = self.folder / f"{name}.py"
        program.write_text(
            "import os, signal, sys, time\n"
            "def note(what):\n"
            f"    with open({str(self.diary)!r}, 'a') as diary:\n"
            f"        diary.write(f'{name} {{what}} {{os.getpid()}} {{time.time()}}\\n')\n" + textwrap.dedent(body)
        )
        return Service(name, (sys.executable, str(program)), is_door)

    def supervisor(self, *services: Service, drain_timeout_seconds: float = 5.0) -> Supervisor:
        console = Console(file=self.output, width=200)
        return Supervisor(
            services,
            environment=os.environ | {"PYTHONUNBUFFERED": "1"},
            log=ServiceLog([service.name for service in services], log_format="console", console=console),
            state_file=self.state,
            backoff=QUICK,
            drain_timeout_seconds=drain_timeout_seconds,
        )

    def entries(self, name: str, what: str) -> list[tuple[int, float]]:
        """Pids and times of a service's notes."""
        lines = [line.split() for line in self.diary.read_text().splitlines()]
        return [(int(line[2]), float(line[3])) for line in lines if line[:2] == [name, what]]

    def reported(self, name: str) -> dict[str, Any]:
        try:
            services: dict[str, dict[str, Any]] = json.loads(self.state.path.read_text())
        except FileNotFoundError:
            return {}
        return services.get(name, {})


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def never() -> None:
    await asyncio.Event().wait()


async def eventually(condition: Callable[[], object], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def ended(running: "asyncio.Task[ExitCode]", number: signal.Signals = signal.SIGTERM) -> ExitCode:
    os.kill(os.getpid(), number)
    return await asyncio.wait_for(running, 15)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_stops_the_door_first_and_leaves_nothing(stage: Stage, number: signal.Signals) -> None:
    services = (stage.service("worker", STEADY), stage.service("door", STEADY, is_door=True))
    running = asyncio.create_task(stage.supervisor(*services).run(never))
    await eventually(lambda: stage.entries("door", "started") and stage.entries("worker", "started"))
    assert await ended(running, number) == ExitCode.OK
    [(door_pid, door_stopped)], [(worker_pid, worker_stopped)] = (
        stage.entries("door", "stopped"),
        stage.entries("worker", "stopped"),
    )
    assert door_stopped < worker_stopped
    assert not psutil.pid_exists(door_pid)
    assert not psutil.pid_exists(worker_pid)
    assert stage.reported("worker")["state"] == "stopped"
    assert "exited" not in stage.output.getvalue()


async def test_a_service_that_dies_is_started_again_after_a_growing_wait(stage: Stage) -> None:
    running = asyncio.create_task(stage.supervisor(stage.service("decoder", CRASHING)).run(never))
    await eventually(lambda: len(stage.entries("decoder", "started")) >= 5)
    assert await ended(running) == ExitCode.OK
    times = [when for _, when in stage.entries("decoder", "started")]
    waits = [later - earlier for earlier, later in pairwise(times)][:4]
    for wait, least in zip(waits, (0.1, 0.2, 0.4, 0.4), strict=True):
        assert wait >= least


async def test_a_killed_service_comes_back_and_the_others_stay(stage: Stage) -> None:
    services = (stage.service("decoder", STEADY), stage.service("door", STEADY, is_door=True))
    running = asyncio.create_task(stage.supervisor(*services).run(never))
    await eventually(lambda: stage.entries("decoder", "started") and stage.entries("door", "started"))
    os.kill(stage.entries("decoder", "started")[0][0], signal.SIGKILL)
    await eventually(lambda: len(stage.entries("decoder", "started")) == 2)
    await eventually(lambda: stage.reported("decoder")["state"] == "running")
    assert stage.reported("decoder")["restarts"] == 1
    assert stage.reported("decoder")["reason"].startswith("killed by SIGKILL")
    assert stage.reported("decoder")["pid"] == stage.entries("decoder", "started")[1][0]
    assert await ended(running) == ExitCode.OK
    assert len(stage.entries("door", "started")) == 1
    assert "decoder killed by SIGKILL; it starts again in 0.1 s" in stage.output.getvalue()


async def test_no_python_runs_between_fork_and_exec(stage: Stage) -> None:
    """What runs there can crash or hang where other threads are, as gRPC's; a handler of forks would be told."""
    num_forks = 0

    def count() -> None:
        nonlocal num_forks
        num_forks += 1

    os.register_at_fork(before=count)
    running = asyncio.create_task(stage.supervisor(stage.service("decoder", STEADY)).run(never))
    await eventually(lambda: stage.entries("decoder", "started"))
    assert await ended(running) == ExitCode.OK
    assert num_forks == 0


async def test_a_crash_loop_is_told_with_its_reason(stage: Stage) -> None:
    running = asyncio.create_task(stage.supervisor(stage.service("decoder", CRASHING)).run(never))
    reason = "exited with code 3, 4 times in the last minute: OSError: no such file"
    await eventually(lambda: stage.reported("decoder").get("reason") == reason)
    assert await ended(running) == ExitCode.OK


async def test_a_service_that_refuses_its_settings_stops_them_all(stage: Stage) -> None:
    taken = "JANUS_DECODER_GRPC_PORT: port 50062 on 127.0.0.1 can't be opened: address already in use"
    refusing = stage.service("decoder", f"time.sleep(0.3); print({taken!r}, file=sys.stderr); sys.exit(2)")
    supervisor = stage.supervisor(refusing, stage.service("door", STEADY, is_door=True))
    assert await asyncio.wait_for(supervisor.run(never), 15) == ExitCode.FAILED
    assert stage.output.getvalue().count(taken) == 1
    assert "decoder can't start as it is configured" in stage.output.getvalue()
    assert len(stage.entries("door", "stopped")) == 1


async def test_a_service_that_does_not_drain_in_time_is_killed(stage: Stage) -> None:
    stubborn = stage.service(
        "decoder", 'signal.signal(signal.SIGTERM, signal.SIG_IGN); note("started"); time.sleep(60)'
    )
    running = asyncio.create_task(stage.supervisor(stubborn, drain_timeout_seconds=0.0).run(never))
    await eventually(lambda: stage.entries("decoder", "started"))
    began = time.monotonic()
    assert await ended(running) == ExitCode.OK
    assert time.monotonic() - began < 10
    assert not psutil.pid_exists(stage.entries("decoder", "started")[0][0])
    assert "is killed" in stage.output.getvalue()


async def test_a_second_signal_kills_at_once(stage: Stage) -> None:
    stubborn = stage.service(
        "decoder", 'signal.signal(signal.SIGTERM, signal.SIG_IGN); note("started"); time.sleep(60)'
    )
    running = asyncio.create_task(stage.supervisor(stubborn, drain_timeout_seconds=60.0).run(never))
    await eventually(lambda: stage.entries("decoder", "started"))
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0.3)
    assert not running.done()
    assert await ended(running, signal.SIGINT) == ExitCode.OK


async def test_lines_carry_their_services_name_and_readiness_is_told(stage: Stage) -> None:
    async def until_ready() -> None:
        await eventually(lambda: stage.entries("decoder", "started"))

    talking = stage.service(
        "decoder", 'print("[no markup] é", flush=True)\nsys.stdout.write("unended")\nnote("started")'
    )
    running = asyncio.create_task(stage.supervisor(talking).run(until_ready))
    await eventually(lambda: "ready in" in stage.output.getvalue() and "unended" in stage.output.getvalue())
    await ended(running)
    lines = [line.rstrip() for line in stage.output.getvalue().splitlines()]
    assert "decoder │ [no markup] é" in lines
    assert "decoder │ unended" in lines


async def test_endless_output_without_a_line_break_is_passed_on(stage: Stage) -> None:
    endless = stage.service("decoder", 'sys.stdout.write("x" * 300_000); note("started"); time.sleep(60)')
    running = asyncio.create_task(stage.supervisor(endless, drain_timeout_seconds=0).run(never))
    await eventually(lambda: stage.entries("decoder", "started") and stage.output.getvalue().count("x") > 100_000)
    await ended(running)


def test_json_lines_pass_unchanged_and_others_are_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    log = ServiceLog(["decoder"], log_format="json")
    log.line("decoder", '{"event": "serving", "service": "decoder"}')
    log.line("decoder", "from a library")
    log.say("ready in 4.2 s")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"event": "serving", "service": "decoder"},
        {"service": "decoder", "event": "from a library"},
        {"service": "janus", "event": "ready in 4.2 s", "level": "info"},
    ]


DRIVER = """
import asyncio, os, sys
from pathlib import Path
from services.cli.backoff import Backoff
from services.cli.child import Service
from services.cli.service_log import ServiceLog
from services.cli.state_file import StateFile
from services.cli.supervisor import Supervisor

names = ["decoder", "door"]
services = [Service(name, (sys.executable, sys.argv[1] + "/" + name + ".py"), name == "door") for name in names]
supervisor = Supervisor(
    services, environment=os.environ, log=ServiceLog(names, log_format="console"),
    state_file=StateFile(Path(sys.argv[1]) / "state.json"), backoff=Backoff(), drain_timeout_seconds=5,
)
sys.exit(asyncio.run(supervisor.run(asyncio.Event().wait)))
"""


def driven(stage: Stage) -> "subprocess.Popen[bytes]":
    """A supervisor as a process, with its two services running."""
    stage.service("decoder", STEADY)
    stage.service("door", STEADY)
    (stage.folder / "driver.py").write_text(DRIVER)
    process = subprocess.Popen(
        [sys.executable, str(stage.folder / "driver.py"), str(stage.folder)],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 20
    while not (stage.entries("decoder", "started") and stage.entries("door", "started")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def pids(stage: Stage) -> list[int]:
    return [pid for name in ("decoder", "door") for pid, _ in stage.entries(name, "started")]


def test_kill_9_of_the_supervisor_leaves_nothing(stage: Stage) -> None:
    with driven(stage) as process:
        process.kill()
        process.wait(10)
        children = [psutil.Process(pid) for pid in pids(stage) if psutil.pid_exists(pid)]
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    assert not stage.entries("decoder", "stopped")


def test_ctrl_c_reaches_the_supervisor_alone(stage: Stage) -> None:
    with driven(stage) as process:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(15) == ExitCode.OK
    [(_, door)], [(_, decoder)] = stage.entries("door", "stopped"), stage.entries("decoder", "stopped")
    assert door < decoder
