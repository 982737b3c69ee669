"""grpc.health.v1, whose watches end with the drain: a watch is a running rpc too, and would hold it up to its timeout.

Source: grpc/health/v1/health.proto; the library's own servicer leaves its watches open for as long as the client likes.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Response = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Health of the server as a whole, under the empty name, and of each of its services."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._is_serving = False
        self._is_draining = False
        self._changed = asyncio.Event()

    def set_serving(self, is_serving: bool) -> None:
        """Tells every watch; without effect once it drains."""
        if not self._is_draining:
            self._tell(is_serving)

    def drain(self) -> None:
        """NOT_SERVING for good; watches end after it."""
        self._is_draining = True
        self._tell(False)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> Response:
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return self._answer(request.service)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> AsyncIterator[Response]:
        told = None
        while True:
            changed, is_last, answer = self._changed, self._is_draining, self._answer(request.service)
            if answer != told:
                yield answer
                told = answer
            if is_last:
                return
            await changed.wait()

    def _tell(self, is_serving: bool) -> None:
        self._is_serving = is_serving
        self._changed.set()
        self._changed = asyncio.Event()

    def _answer(self, name: str) -> Response:
        if name not in self._names:
            return Response(status=Response.SERVICE_UNKNOWN)
        return Response(status=Response.SERVING if self._is_serving else Response.NOT_SERVING)
