"""What the gateway alone says of a call, beside the request: it writes these names itself, whatever its caller sent."""

from typing import Any, Final

import grpc

CACHE_NAMESPACE: Final = "x-janus-cache-namespace"
"""Requests of one namespace may find each other's prompts in the KV cache, and tell by the time that they are there."""

PRIORITY: Final = "x-janus-priority"
"""A whole number, 0 where there is none; a smaller one comes first."""


def said_of_call(context: grpc.aio.ServicerContext[Any, Any], name: str) -> str:
    """Empty where the gateway said nothing."""
    for key, value in context.invocation_metadata() or ():
        if key == name and isinstance(value, str):
            return value
    return ""
