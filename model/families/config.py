"""Reading a config with clear errors."""

from collections.abc import Mapping
from typing import Any

from model.errors import CheckpointError


def require(config: Mapping[str, Any], key: str) -> Any:
    """A key that must be there. Raises: CheckpointError naming it."""
    if config.get(key) is None:
        raise CheckpointError(f"the checkpoint's config lacks {key!r}")
    return config[key]


def refuse_other(config: Mapping[str, Any], **allowed: tuple[Any, ...]) -> None:
    """Raises: CheckpointError for a key whose value is none of those that this family can serve."""
    for key, values in allowed.items():
        if config.get(key) not in values:
            served = " or ".join(repr(value) for value in values if value is not None)
            raise CheckpointError(f"the checkpoint's {key} is {config[key]!r}; served: {served}")
