"""What watches the gateway asks: is it alive, is it ready, was it ever, what is it, what does it count.

Ready means that of each kind a worker has really answered a request. The reason of one that has not comes from the
worker's own connection and, under a supervisor, from the file in which that tells why a service isn't up.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from services.common.metrics import VERSION
from services.gateway.rest.answers import json_response
from services.gateway.router import Router
from services.gateway.worker_client import WorkerClient, WorkerState

router = APIRouter(tags=["Probes"])
PATHS = frozenset({"/livez", "/readyz", "/startupz", "/health", "/version", "/metrics"})


_Told = TypeVar("_Told", bound=Callable[..., Any])


def _probe(path: str) -> Callable[[_Told], _Told]:
    """A route for GET, and for HEAD, as some load balancers ask; the document tells of the first alone."""

    def add(answer: _Told) -> _Told:
        router.head(path, include_in_schema=False)(answer)
        return router.get(path)(answer)

    return add


class Readiness:
    """Whether the gateway can answer, and why not."""

    def __init__(self, router: Router, supervisor_state: Path | None) -> None:
        self.is_draining = False
        self._router = router
        self._supervisor_state = supervisor_state
        self._was_ready = False

    @property
    def is_ready(self) -> bool:
        is_ready = not self.is_draining and not self._router.unready_kinds()
        self._was_ready |= is_ready
        return is_ready

    @property
    def has_started(self) -> bool:
        """Ready now, or once before."""
        return self.is_ready or self._was_ready

    def report(self) -> dict[str, Any]:
        services = self._supervised()
        return {
            "status": "ready" if self.is_ready else "draining" if self.is_draining else "not ready",
            "workers": [_worker(worker, services.get(worker.kind, {})) for worker in self._router.workers],
        }

    def _supervised(self) -> dict[str, Any]:
        """What the supervisor says of each service; nothing when there is none, or its file isn't there yet."""
        if self._supervisor_state is None:
            return {}
        try:
            services = json.loads(self._supervisor_state.read_text())
        except (OSError, ValueError):
            return {}
        return services if isinstance(services, dict) else {}


def _worker(worker: WorkerClient, supervised: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {"kind": worker.kind, "target": worker.target, "state": worker.state.value}
    if worker.state is not WorkerState.READY:
        # Of a process that runs, its own connection knows more.
        is_up = supervised.get("state", "running") == "running"
        shown["reason"] = worker.reason if is_up else supervised.get("reason") or worker.reason
    if "restarts" in supervised:
        shown["restarts"] = supervised["restarts"]
    return shown


@_probe("/livez")
async def livez() -> Response:
    """200 while the event loop turns."""
    return json_response({"status": "alive"})


@_probe("/readyz")
@_probe("/health")
async def readyz(request: Request) -> Response:
    """200 when a worker of each kind has answered; else 503 with the reason of each."""
    return _answer(request, is_good=_readiness(request).is_ready)


@_probe("/startupz")
async def startupz(request: Request) -> Response:
    """200 once the gateway was ready for the first time."""
    return _answer(request, is_good=_readiness(request).has_started)


@_probe("/version")
async def version() -> Response:
    """The version that serves."""
    return json_response({"name": "janus", "version": VERSION})


@_probe("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(request.app.state.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def _readiness(request: Request) -> Readiness:
    readiness = request.app.state.readiness
    assert isinstance(readiness, Readiness)
    return readiness


def _answer(request: Request, *, is_good: bool) -> Response:
    response = json_response(_readiness(request).report())
    response.status_code = 200 if is_good else 503
    return response
