"""The error table on gRPC: `google.rpc.Status` with ErrorInfo, RetryInfo and BadRequest, and back.

Source: https://google.aip.dev/193 (one ErrorInfo, its reason and domain identify the error).
"""

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from services.common.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    JanusError,
    PayloadTooLarge,
    RouteNotFound,
    WorkerLost,
    from_code,
)

DOMAIN = "janus.v1"
MAX_MESSAGE_CHARACTERS = 400
"""The message travels in headers, three times; a peer refuses headers beyond 8 KiB."""


def to_rpc_status(error: JanusError) -> Status:
    """What the other side gets; `from_rpc_error` is its inverse."""
    message = error.message[:MAX_MESSAGE_CHARACTERS]
    metadata = {} if error.param is None else {"param": error.param}
    details: list[Message] = [ErrorInfo(reason=error.code, domain=DOMAIN, metadata=metadata)]
    if error.retry_after_ms is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(error.retry_after_ms)
        details.append(retry)
    if error.param is not None:
        violation = BadRequest.FieldViolation(field=error.param, description=message)
        details.append(BadRequest(field_violations=[violation]))
    code: int = grpc.StatusCode[error.row.grpc].value[0]
    return Status(code=code, message=message, details=[_packed(detail) for detail in details])


def from_rpc_error(error: grpc.aio.AioRpcError) -> JanusError:
    """The error that a peer answered with, or what a bare status of gRPC's own means to a caller."""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
    except ValueError:
        status = None
    if status is not None:
        info, retry = ErrorInfo(), RetryInfo()
        for detail in status.details:
            detail.Unpack(info) or detail.Unpack(retry)
        if info.domain == DOMAIN:
            return from_code(
                info.reason,
                status.message,
                param=info.metadata.get("param"),
                retry_after_ms=retry.retry_delay.ToMilliseconds() if retry.HasField("retry_delay") else None,
            )
    return _from_bare_status(error.code())


def _packed(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed


def _from_bare_status(code: grpc.StatusCode) -> JanusError:
    """gRPC's own texts name addresses and internals, so none of them is passed on."""
    match code:
        case grpc.StatusCode.CANCELLED:
            return Cancelled("The request was cancelled.")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded("The deadline passed before the answer was complete.")
        case grpc.StatusCode.UNAVAILABLE:
            return WorkerLost("The worker could not be reached, or went away.")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return PayloadTooLarge("A message is larger than the limit.")
        case grpc.StatusCode.UNIMPLEMENTED:
            return RouteNotFound("There is no such method.")
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequest("The request could not be read.")
        case _:
            return Internal("An internal error occurred.")
