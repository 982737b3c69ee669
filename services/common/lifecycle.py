"""A service's life: one uvloop, a drain on the first SIGTERM, an end at once on the second, named exit codes.

SIGINT is the same as SIGTERM: a service under a supervisor lives in a session of its own, so that a terminal's Ctrl-C
reaches the supervisor alone.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import Any

import uvloop

from services.common.logging import get_logger
from services.common.settings import EXIT_CONFIGURATION, ConfigurationError

_log = get_logger(__name__)


class ExitCode(IntEnum):
    """What a service's exit tells its supervisor."""

    OK = 0
    FAILED = 1
    CONFIGURATION = EXIT_CONFIGURATION
    FORCED = 128 + signal.SIGTERM


def run(serve: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> ExitCode:
    """Run a service to its end; `serve` gets the event that asks it to drain and return."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve_until_asked(serve))
    except ConfigurationError as error:
        print(error, file=sys.stderr, flush=True)
        return ExitCode.CONFIGURATION
    except Exception as error:
        _log.exception("the service failed")
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return ExitCode.FAILED
    return ExitCode.OK


async def _serve_until_asked(serve: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    drain = asyncio.Event()

    def ask() -> None:
        if drain.is_set():
            os._exit(ExitCode.FORCED)
        drain.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)
    await serve(drain)
