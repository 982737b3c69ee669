"""From a request to the operations of its application."""

from fastapi import Request

from services.gateway.operations import Operations


def operations_of(request: Request) -> Operations:
    """What the application was made over."""
    operations = request.app.state.operations
    assert isinstance(operations, Operations)
    return operations
