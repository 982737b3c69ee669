"""What is known of one request while it runs: who asked, until when, and what became of it.

The transport makes it, `operations` fills it, the transport counts and logs it once when it is over. It never holds a
prompt or an answer.
"""

import time
import uuid
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from janus.v1 import common_pb2
from services.common.errors import DeadlineExceeded, JanusError
from services.common.logging import describe_request

OK = "ok"
_SCOPE_KEY = "janus.request_context"
_LONGEST_REQUEST_ID = 128


def request_id_from(offered: str | None) -> str:
    """The caller's own id where it is fit for a header and a log line, else a new one."""
    if offered and len(offered) <= _LONGEST_REQUEST_ID and offered.isascii() and offered.isprintable():
        return offered
    return uuid.uuid4().hex


@dataclass(slots=True)
class RequestContext:
    """One request. `deadline`, `started_at` and `first_token_at` are of the monotonic clock, in seconds."""

    request_id: str
    deadline: float
    started_at: float
    first_token_at: float | None = None
    task: str = ""
    model: str = ""
    worker: str = ""
    code: str = OK
    # How far it had come when its caller went away, or was sent away: waiting, streaming, stalled.
    cancelled_at_stage: str | None = None
    finish_reason: str = ""
    usage: common_pb2.Usage = field(default_factory=common_pb2.Usage)

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> "RequestContext":
        """The context of an HTTP request, from its ASGI scope."""
        context = scope[_SCOPE_KEY]
        assert isinstance(context, cls)
        return context

    def attach(self, scope: MutableMapping[str, Any]) -> None:
        scope[_SCOPE_KEY] = self

    def shorten(self, timeout_seconds: float) -> None:
        """The caller's own patience, where it is shorter than ours."""
        self.deadline = min(self.deadline, self.started_at + timeout_seconds)

    @property
    def remaining_seconds(self) -> float:
        """Raises DeadlineExceeded when none are left."""
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise DeadlineExceeded("The request's deadline has passed.")
        return remaining

    def routed(self, model: str, worker: str) -> None:
        """Where the request goes; both are ours, so they may be labels."""
        self.model, self.worker = model, worker
        describe_request(model=model, worker=worker)

    def failed(self, error: JanusError) -> None:
        self.code = error.code

    def cancelled(self, stage: str) -> None:
        self.code = "cancelled"
        self.cancelled_at_stage = stage

    def consumed(self, usage: common_pb2.Usage) -> None:
        """Adds what one worker's answer consumed; a request with several prompts has several."""
        self.usage.prompt_tokens += usage.prompt_tokens
        self.usage.completion_tokens += usage.completion_tokens
        self.usage.total_tokens += usage.total_tokens
        self.usage.cached_tokens += usage.cached_tokens
        self.usage.truncated |= usage.truncated

    def described(self, seconds: float) -> dict[str, Any]:
        """What the log line of this request says, after `seconds`; what is not known is left out."""
        first_token_ms = None if self.first_token_at is None else (self.first_token_at - self.started_at) * 1000
        fields = {
            "code": self.code,
            "task": self.task,
            "model": self.model,
            "worker": self.worker,
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "finish_reason": self.finish_reason,
            "cancelled_at": self.cancelled_at_stage,
            "first_token_ms": None if first_token_ms is None else round(first_token_ms, 2),
            "duration_ms": round(seconds * 1000, 2),
        }
        return {name: value for name, value in fields.items() if value}
