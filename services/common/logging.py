"""One readable log: structlog over the standard library, lines for people or JSON for machines, on stderr.

A request's id, model and whatever else is said with `describe_request` stands in every line that its task writes, and
the gRPC server's line of the request and its metrics take them from there. Prompts and answers are never logged.
"""

import logging
import sys

import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars
from structlog.typing import Processor

from services.common.settings import CommonSettings

# Libraries whose information lines repeat ours.
QUIET = ("uvicorn", "uvicorn.error", "uvicorn.access", "grpc", "asyncio", "httpx", "httpcore")


def configure_logging(settings: CommonSettings) -> None:
    """Send structlog's and the standard library's records through one formatter to stderr."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True)
        if settings.log_format == "json"
        else structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
    ]
    renderers: list[Processor]
    if settings.log_format == "json":
        shared.append(_service_name(settings.side))
        renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        renderers = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                pad_event_to=0,
                exception_formatter=structlog.dev.plain_traceback,  # the others print variables, so prompts
            )
        ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger


def begin_request(**fields: object) -> None:
    """Forget the task's earlier request and say what is known of this one."""
    clear_contextvars()
    describe_request(**fields)


def describe_request(**fields: object) -> None:
    """Say what became known of this task's request: `model` (as served, never as asked for), `stream_id`, ..."""
    bind_contextvars(**fields)


def request_model() -> str:
    """The served model that this task's request was found to be for; empty before that."""
    return str(get_contextvars().get("model", ""))


def request_id() -> str:
    """The id of this task's request: the caller's, or the one it was given."""
    return str(get_contextvars().get("request_id", ""))


def _service_name(side: str) -> Processor:
    def add(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["service"] = side
        return event

    return add
