"""Around every HTTP request: its id, its context, one log line, one count, and an answer even to our own mistakes.

Plain ASGI: the framework's own middleware class would stand between a stream and its socket.
"""

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common.errors import Draining, Internal
from services.common.logging import begin_request, get_logger
from services.common.metrics import GatewayMetrics
from services.gateway.request_context import RequestContext, request_id_from
from services.gateway.rest.errors import render
from services.gateway.rest.probes import PATHS

_log = get_logger(__name__)


class RequestMiddleware:
    """Gives every request its context."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, timeout_seconds: float) -> None:
        self._app = app
        self._metrics = metrics
        self._timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = self._context(scope)
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                message["headers"] = [*message["headers"], (b"x-request-id", context.request_id.encode())]
            await send(message)

        begin_request(request_id=context.request_id)
        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # Only the end of the drain cancels a request. Raised on, it would be a traceback in the log and a bare 500.
            going = Draining("The server is going away.")
            context.failed(going)
            if not has_started:
                await render(going, context.request_id)(scope, receive, send_with_id)
        except Exception:
            error = Internal("An internal error occurred.")
            context.failed(error)
            _log.exception("unexpected error")
            if not has_started:
                await render(error, context.request_id)(scope, receive, send_with_id)
        finally:
            if scope["path"] not in PATHS:
                self._end(context, scope)

    def _context(self, scope: Scope) -> RequestContext:
        offered = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        now = time.monotonic()
        context = RequestContext(
            request_id=request_id_from(offered.decode("latin-1")), deadline=now + self._timeout_seconds, started_at=now
        )
        context.attach(scope)
        return context

    def _end(self, context: RequestContext, scope: Scope) -> None:
        seconds = time.monotonic() - context.started_at
        if context.cancelled_at_stage is not None:
            self._metrics.cancellations_total.labels(context.cancelled_at_stage).inc()
        route = scope.get("route")
        self._metrics.observe_request(
            task=context.task or getattr(route, "name", ""),
            model=context.model,
            code=context.code,
            transport="rest",
            seconds=seconds,
        )
        _log.info("request", method=scope["method"], route=getattr(route, "path", ""), **context.described(seconds))
