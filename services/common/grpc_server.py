"""The gRPC server that every service stands on: health, reflection, limits, one interceptor, a drain.

Health is answered per service name and is NOT_SERVING for all until `set_serving`; reflection is answered as v1alpha
and v1, which are one protocol under two names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from services.common.health import HealthServicer
from services.common.metrics import ServiceMetrics
from services.common.ports import PortTaken, open_socket
from services.common.rpc_interceptor import RpcInterceptor

# Answers may be long: 3,000 embeddings are 5 MB. A request is bounded as REST's bodies are, 10 MiB, with room for what
# a list of short texts gains when it becomes a message on its way to a worker.
MAX_MESSAGE_BYTES = 64 * 2**20
MAX_REQUEST_BYTES = 16 * 2**20
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.so_reuseport", 0),  # else two servers share a port and neither says so
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_connection_age_ms", 30 * 60 * 1000),  # long-lived channels find new servers
    ("grpc.max_connection_age_grace_ms", 15 * 60 * 1000),  # longer than any request's deadline
    ("grpc.keepalive_time_ms", 30 * 1000),  # a dead machine does not reset its connections
    ("grpc.keepalive_timeout_ms", 10 * 1000),
    ("grpc.http2.ping_timeout_ms", 10 * 1000),  # else a minute, whatever the line above says
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5 * 1000),
)
CHANNEL_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),  # a worker that came back is found within a second
    ("grpc.keepalive_time_ms", 10 * 1000),
    ("grpc.keepalive_timeout_ms", 5 * 1000),
    ("grpc.http2.ping_timeout_ms", 5 * 1000),  # else a minute, whatever the line above says
)
"""For channels to such a server."""


@dataclass(frozen=True, slots=True)
class Service:
    """A servicer with what the stubs know of it."""

    descriptor: ServiceDescriptor
    register: Callable[[Any, grpc.aio.Server], None]
    """The stubs' `add_<Service>Servicer_to_server`."""
    servicer: object
    drain: Callable[[], None] = lambda: None
    """Called when the server drains: an rpc without an end of its own would hold it up to its timeout."""


class GrpcServer:
    """A running server; `port` is the one in force."""

    def __init__(
        self, server: grpc.aio.Server, health_servicer: HealthServicer, services: Sequence[Service], port: int
    ) -> None:
        self._server = server
        self._health = health_servicer
        self._services = services
        self.port = port

    async def set_serving(self, is_serving: bool = True) -> None:
        """Answer health with SERVING (or NOT_SERVING) for the server as a whole and for each service."""
        self._health.set_serving(is_serving)

    async def drain(self, timeout_seconds: float) -> None:
        """NOT_SERVING for good, GOAWAY, let running rpcs end; what still runs after the timeout is cancelled."""
        self._health.drain()
        for service in self._services:
            service.drain()
        await self._server.stop(timeout_seconds)


async def start_server(
    services: Sequence[Service],
    *,
    host: str,
    port: int,
    setting: str,
    metrics: ServiceMetrics,
    is_inner: bool = False,
) -> GrpcServer:
    """Open the port and answer; health says NOT_SERVING until told otherwise. An inner server logs less.

    Raises: PortTaken, with `setting`, the variable that the port came from.
    """
    open_socket(host, port, setting).close()  # gRPC's own refusal has no reason
    server = grpc.aio.server(interceptors=[RpcInterceptor(metrics, is_inner=is_inner)], options=OPTIONS)
    for service in services:
        service.register(service.servicer, server)
    names = [service.descriptor.full_name for service in services]
    _add_reflection(server, [*names, health.SERVICE_NAME, reflection.SERVICE_NAME, REFLECTION_V1])
    health_servicer = HealthServicer([health.OVERALL_HEALTH, *names])
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError:
        raise PortTaken(setting, host, port, "it was taken a moment ago") from None
    await server.start()
    return GrpcServer(server, health_servicer, services, bound)


def _add_reflection(server: grpc.aio.Server, names: Sequence[str]) -> None:
    answer = grpc.stream_stream_rpc_method_handler(
        ReflectionServicer(names).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in (reflection.SERVICE_NAME, REFLECTION_V1):
        handler = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": answer})
        server.add_generic_rpc_handlers((handler,))
