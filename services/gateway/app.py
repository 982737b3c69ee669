"""The REST application: the routes, and what they stand on, put together."""

from fastapi import FastAPI
from starlette.middleware import Middleware

from services.common.metrics import VERSION, GatewayMetrics
from services.common.settings import GatewaySettings
from services.gateway.operations import Operations
from services.gateway.rest import huggingface, models, openai, probes, tasks, tokenizer
from services.gateway.rest.errors import add_error_rendering
from services.gateway.rest.middleware import RequestMiddleware
from services.gateway.rest.openapi import DESCRIPTION, add_openapi
from services.gateway.rest.probes import Readiness
from services.gateway.rest.sse import StreamLimits


def create_app(
    settings: GatewaySettings, operations: Operations, metrics: GatewayMetrics, readiness: Readiness
) -> FastAPI:
    """The application over `operations`; it opens nothing itself."""
    app = FastAPI(
        title="Janus",
        version=VERSION,
        description=DESCRIPTION,
        redirect_slashes=False,
        # The metrics are ours, and one instrumentation is enough.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        middleware=[Middleware(RequestMiddleware, metrics, settings.request_timeout_seconds)],
    )
    app.state.operations = operations
    app.state.metrics = metrics
    app.state.readiness = readiness
    app.state.max_body_bytes = settings.max_body_bytes
    app.state.stream_limits = StreamLimits(
        settings.stream_buffer_events, settings.stream_stall_seconds, settings.ping_interval_seconds
    )
    for part in (openai, models, tasks, tokenizer, huggingface, probes):
        app.include_router(part.router)
    add_error_rendering(app)
    add_openapi(app)
    return app
