"""The one error tree and the one error table.

Every failure that a caller can see is a `JanusError` with a word of `TABLE`; both transports render it from there.

    JanusError
    ├── InvalidRequest              what the caller sent can't be served as it is
    │   ├── ContextLengthExceeded   ... because it is longer than the model's context or the whole cache
    │   └── TaskNotSupported        ... because this model has no such task
    ├── PayloadTooLarge · RouteNotFound · MethodNotAllowed · UnsupportedMediaType
    ├── ModelNotFound · StreamNotFound
    ├── Unauthenticated · PermissionDenied
    ├── IdempotencyConflict · ResumeWindowPassed
    ├── Cancelled                   the caller went away; logged, never answered
    ├── RateLimited · QueueFull     refused before any work; worth a retry
    ├── ModelLoading · Draining · NoWorker · WorkerLost
    ├── DeadlineExceeded
    └── Internal                    ours; the text never carries the cause
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One line of the table. `grpc` is the name of a `grpc.StatusCode`."""

    http: int
    grpc: str
    openai_type: str
    is_retryable: bool
    title: str


TABLE: dict[str, ErrorRow] = {
    "invalid_request": ErrorRow(400, "INVALID_ARGUMENT", "invalid_request_error", False, "Invalid request"),
    "context_length_exceeded": ErrorRow(
        400, "INVALID_ARGUMENT", "invalid_request_error", False, "Context length exceeded"
    ),
    "task_not_supported": ErrorRow(400, "FAILED_PRECONDITION", "invalid_request_error", False, "Task not supported"),
    "payload_too_large": ErrorRow(413, "RESOURCE_EXHAUSTED", "invalid_request_error", False, "Payload too large"),
    "unauthenticated": ErrorRow(401, "UNAUTHENTICATED", "authentication_error", False, "Unauthenticated"),
    "permission_denied": ErrorRow(403, "PERMISSION_DENIED", "permission_error", False, "Permission denied"),
    "model_not_found": ErrorRow(404, "NOT_FOUND", "not_found_error", False, "Model not found"),
    "stream_not_found": ErrorRow(404, "NOT_FOUND", "not_found_error", False, "Stream not found"),
    "route_not_found": ErrorRow(404, "UNIMPLEMENTED", "invalid_request_error", False, "Route not found"),
    "method_not_allowed": ErrorRow(405, "UNIMPLEMENTED", "invalid_request_error", False, "Method not allowed"),
    "unsupported_media_type": ErrorRow(415, "UNIMPLEMENTED", "invalid_request_error", False, "Unsupported media type"),
    "cancelled": ErrorRow(499, "CANCELLED", "invalid_request_error", False, "Cancelled"),
    "idempotency_conflict": ErrorRow(409, "ALREADY_EXISTS", "conflict_error", False, "Idempotency conflict"),
    "resume_window_passed": ErrorRow(410, "OUT_OF_RANGE", "invalid_request_error", False, "Resume window passed"),
    "rate_limited": ErrorRow(429, "RESOURCE_EXHAUSTED", "rate_limit_error", True, "Rate limited"),
    "queue_full": ErrorRow(429, "RESOURCE_EXHAUSTED", "rate_limit_error", True, "Queue full"),
    "internal": ErrorRow(500, "INTERNAL", "server_error", False, "Internal error"),
    "model_loading": ErrorRow(503, "UNAVAILABLE", "server_error", True, "Model loading"),
    "draining": ErrorRow(503, "UNAVAILABLE", "server_error", True, "Draining"),
    "no_worker": ErrorRow(503, "UNAVAILABLE", "server_error", True, "No worker"),
    "worker_lost": ErrorRow(503, "UNAVAILABLE", "server_error", True, "Worker lost"),
    "deadline_exceeded": ErrorRow(504, "DEADLINE_EXCEEDED", "timeout_error", False, "Deadline exceeded"),
}


class JanusError(Exception):
    """A failure with a word of the table.

    `param` names the field at fault as both transports spell it; `retry_after_ms` says when a retry is worth it.
    """

    code: ClassVar[str] = "internal"
    default_retry_after_ms: ClassVar[int | None] = None

    def __init__(self, message: str, *, param: str | None = None, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_ms = retry_after_ms if retry_after_ms is not None else self.default_retry_after_ms

    @property
    def row(self) -> ErrorRow:
        return TABLE[self.code]


class InvalidRequest(JanusError):
    code = "invalid_request"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class TaskNotSupported(InvalidRequest):
    code = "task_not_supported"


class PayloadTooLarge(JanusError):
    code = "payload_too_large"


class Unauthenticated(JanusError):
    code = "unauthenticated"


class PermissionDenied(JanusError):
    code = "permission_denied"


class ModelNotFound(JanusError):
    code = "model_not_found"


class StreamNotFound(JanusError):
    code = "stream_not_found"


class RouteNotFound(JanusError):
    code = "route_not_found"


class MethodNotAllowed(JanusError):
    code = "method_not_allowed"


class UnsupportedMediaType(JanusError):
    code = "unsupported_media_type"


class Cancelled(JanusError):
    code = "cancelled"


class IdempotencyConflict(JanusError):
    code = "idempotency_conflict"


class ResumeWindowPassed(JanusError):
    code = "resume_window_passed"


class RateLimited(JanusError):
    code = "rate_limited"
    default_retry_after_ms = 1000


class QueueFull(JanusError):
    code = "queue_full"
    default_retry_after_ms = 1000


class Internal(JanusError):
    code = "internal"


class ModelLoading(JanusError):
    code = "model_loading"
    default_retry_after_ms = 1000


class Draining(JanusError):
    code = "draining"
    default_retry_after_ms = 1000


class NoWorker(JanusError):
    code = "no_worker"
    default_retry_after_ms = 1000


class WorkerLost(JanusError):
    code = "worker_lost"
    default_retry_after_ms = 1000


class DeadlineExceeded(JanusError):
    code = "deadline_exceeded"


def _leaves(root: type[JanusError]) -> dict[str, type[JanusError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _leaves(child)
    return found


def from_code(code: str, message: str, *, param: str | None = None, retry_after_ms: int | None = None) -> JanusError:
    """The error of a word of the table, for the side that received it; an unknown word is `Internal`."""
    return _leaves(JanusError).get(code, Internal)(message, param=param, retry_after_ms=retry_after_ms)
