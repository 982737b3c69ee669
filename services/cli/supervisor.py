"""Keeps services running as child processes, and stops them in order.

Its own end, even by SIGKILL, ends them all. The first SIGINT, SIGTERM or SIGHUP asks them to drain, the second kills
them.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from services.cli.backoff import Backoff
from services.cli.child import Child, Misconfigured, Service
from services.cli.service_log import ServiceLog
from services.cli.state_file import StateFile
from services.common.lifecycle import ExitCode

LAST_CALL_SECONDS = 5.0
"""A service that drained for the whole timeout still has to close, on a machine that is busy with others, too."""


class Supervisor:
    """The services of one machine."""

    def __init__(
        self,
        services: Sequence[Service],
        *,
        environment: Mapping[str, str],
        log: ServiceLog,
        state_file: StateFile,
        backoff: Backoff,
        drain_timeout_seconds: float,
    ) -> None:
        self._log = log
        self._drain_timeout_seconds = drain_timeout_seconds
        self._children = [
            Child(service, environment=environment, backoff=backoff, log=log, report=state_file.report)
            for service in services
        ]
        self._is_stopping = asyncio.Event()

    async def run(self, until_ready: Callable[[], Awaitable[None]]) -> ExitCode:
        """Keep the services alive until a signal, or until one refuses its settings.

        When `until_ready` returns, the time that it took is logged.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._ask)
        lives = [asyncio.create_task(child.keep_alive()) for child in self._children]
        readiness = asyncio.create_task(self._announce(until_ready))
        asked = asyncio.create_task(self._is_stopping.wait())
        await asyncio.wait([*lives, asked], return_when=asyncio.FIRST_COMPLETED)
        readiness.cancel()
        self._is_stopping.set()
        await self._stop()
        outcomes = await asyncio.gather(*lives, readiness, return_exceptions=True)
        refused = next((outcome for outcome in outcomes if isinstance(outcome, Misconfigured)), None)
        if refused is not None:
            self._log.say(
                f"stopped, because {refused} can't start as it is configured (see its last line)", is_bad=True
            )
            return ExitCode.FAILED
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        self._log.say("stopped")
        return ExitCode.OK

    def _ask(self) -> None:
        if self._is_stopping.is_set():
            for child in self._children:
                child.kill()
        self._is_stopping.set()

    async def _announce(self, until_ready: Callable[[], Awaitable[None]]) -> None:
        started = time.monotonic()
        await until_ready()
        self._log.say(f"ready in {time.monotonic() - started:.1f} s")

    async def _stop(self) -> None:
        """Doors first: what they drain needs the services behind them."""
        self._log.say("stopping; again to stop at once")
        deadline = time.monotonic() + self._drain_timeout_seconds
        for is_door in (True, False):
            timeout_seconds = max(0.0, deadline - time.monotonic()) + LAST_CALL_SECONDS
            stops = [child.stop(timeout_seconds) for child in self._children if child.service.is_door == is_door]
            await asyncio.gather(*stops)
