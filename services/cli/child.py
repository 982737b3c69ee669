"""One service as a child process that is started again whenever it ends.

It lives in a session of its own, so a terminal's Ctrl-C reaches the supervisor alone, and the kernel kills it when the
supervisor is gone. Its output is read to the end, line by line.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.cli.backoff import Backoff, Exits, describe_exit
from services.cli.lifeline import tied
from services.cli.service_log import ServiceLog
from services.cli.state_file import ServiceReport, ServiceState
from services.common.lifecycle import ExitCode

MAX_LINE_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Service:
    """What is started. The doors are stopped first, so that the services behind them can finish their work."""

    name: str
    command: tuple[str, ...]
    is_door: bool = False


class Misconfigured(Exception):
    """A service refused its settings in its first life; starting it again can't help."""


class Child:
    """A service, kept alive until it is stopped."""

    def __init__(
        self,
        service: Service,
        *,
        environment: Mapping[str, str],
        backoff: Backoff,
        log: ServiceLog,
        report: Callable[[str, ServiceReport], None],
    ) -> None:
        self.service = service
        self._environment = environment
        self._backoff = backoff
        self._log = log
        self._report = report
        self._exits = Exits()
        self._running: asyncio.subprocess.Process | None = None
        self._restarts = 0
        self._last_line = ""
        self._is_stopping = asyncio.Event()

    async def keep_alive(self) -> None:
        """Start the service, and again whenever it ends; returns once it was stopped.

        Raises: Misconfigured.
        """
        num_short_lives = 0
        while not self._is_stopping.is_set():
            started = time.monotonic()
            code = await self._live()
            if self._is_stopping.is_set():
                break
            if code == ExitCode.CONFIGURATION and self._restarts == 0:
                raise Misconfigured(self.service.name)
            now = time.monotonic()
            self._exits.add(now, code)
            num_short_lives = 1 if now - started >= self._backoff.reset_after_seconds else num_short_lives + 1
            wait_seconds = self._backoff.wait_seconds(num_short_lives)
            self._log.say(
                f"{self.service.name} {describe_exit(code)}; it starts again in {wait_seconds:g} s", is_bad=True
            )
            self._restarts += 1
            self._tell("waiting")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_stopping.wait(), wait_seconds)
        self._tell("stopped")

    async def stop(self, timeout_seconds: float) -> None:
        """Ask the service to drain, wait, and kill it when the time is over; it is not started again."""
        self._is_stopping.set()
        running = self._running
        if running is None:
            return
        self._signal(running, signal.SIGTERM)
        try:
            await asyncio.wait_for(running.wait(), timeout_seconds)
        except TimeoutError:
            self._log.say(f"{self.service.name} did not end in {timeout_seconds:.0f} s and is killed", is_bad=True)
            self.kill()
            await running.wait()

    def kill(self) -> None:
        """End the service and whatever it started, at once; it is not started again."""
        self._is_stopping.set()
        if self._running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.pid, signal.SIGKILL)

    async def _live(self) -> int:
        """One life, from start to exit code."""
        self._running = await asyncio.create_subprocess_exec(
            *tied(self.service.command),
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        if self._is_stopping.is_set():  # asked between two lives
            self.kill()
        assert self._running.stdout is not None
        self._tell("running")
        await self._pass_on(self._running.stdout)
        code = await self._running.wait()
        self._running = None
        return code

    async def _pass_on(self, output: asyncio.StreamReader) -> None:
        rest = b""
        while chunk := await output.read(MAX_LINE_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._read(line)
        if rest:
            self._read(rest)

    def _read(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self._log.line(self.service.name, text)
        self._last_line = text or self._last_line

    def _tell(self, state: ServiceState) -> None:
        pid = self._running.pid if self._running is not None else None
        reason = self._exits.reason(time.monotonic(), self._last_line)
        self._report(self.service.name, ServiceReport(state, pid, self._restarts, reason))

    @staticmethod
    def _signal(running: asyncio.subprocess.Process, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            running.send_signal(number)
