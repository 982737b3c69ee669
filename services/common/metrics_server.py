"""A worker's own HTTP port: /metrics for Prometheus, /livez and /readyz for whatever keeps it alive.

It runs in the worker's event loop on purpose: a loop that no longer turns does not answer /livez.
"""

from collections.abc import Callable

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from services.common.http_server import HttpServer, start_http_server
from services.common.metrics import ServiceMetrics


async def serve_metrics(
    metrics: ServiceMetrics, *, host: str, port: int, setting: str, is_ready: Callable[[], bool]
) -> HttpServer:
    """Open the worker's HTTP port; stop what is returned at the end.

    Raises: PortTaken.
    """

    async def show_metrics(_request: Request) -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    async def livez(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        return PlainTextResponse("ok\n") if is_ready() else PlainTextResponse("not ready\n", status_code=503)

    routes = [Route("/metrics", show_metrics), Route("/livez", livez), Route("/readyz", readyz)]
    return await start_http_server(Starlette(routes=routes), host=host, port=port, setting=setting)
