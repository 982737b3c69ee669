"""Reading a config with clear errors: each value has the type that its key must have, and a size that can be served.

A model is made before its weights are read, so the bounds are above every known model and below what no memory holds.
"""

import sys
from collections.abc import Mapping
from typing import Any

from model.errors import CheckpointError

MAX_BLOCKS = 1 << 10
MAX_HEADS = 1 << 12
MAX_WIDTH = 1 << 20
MAX_POSITIONS = 1 << 22
MAX_VOCABULARY = 1 << 24


def require_count(
    config: Mapping[str, Any], key: str, otherwise: int | None = None, *, least: int = 1, most: int = MAX_WIDTH
) -> int:
    """A whole number, or `otherwise` where the config is silent. Raises: CheckpointError naming the key."""
    value = _value(config, key, otherwise)
    if type(value) is not int or not least <= value <= most:
        raise _wrong(key, value, f"a whole number from {least} to {most}")
    return value


def require_number(
    config: Mapping[str, Any],
    key: str,
    otherwise: float | None = None,
    *,
    may_be_zero: bool = False,
    most: float = sys.float_info.max,
) -> float:
    """A number above 0, or `otherwise` where the config is silent. Raises: CheckpointError naming the key."""
    value = _value(config, key, otherwise)
    if type(value) not in (int, float) or not 0 <= value <= most or not (value or may_be_zero):
        raise _wrong(key, value, f"a number {'from' if may_be_zero else 'above'} 0 to {most:g}")
    return float(value)


def require_text(config: Mapping[str, Any], key: str, otherwise: str | None = None) -> str:
    """A text, or `otherwise` where the config is silent. Raises: CheckpointError naming the key."""
    value = _value(config, key, otherwise)
    if not isinstance(value, str):
        raise _wrong(key, value, "a text")
    return value


def require_object(
    config: Mapping[str, Any], key: str, otherwise: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """Keys and values, or `otherwise` where the config is silent. Raises: CheckpointError naming the key."""
    value = _value(config, key, otherwise)
    if not isinstance(value, Mapping):
        raise _wrong(key, value, "an object")
    return value


def require_heads(config: Mapping[str, Any], width_key: str, heads_key: str) -> tuple[int, int]:
    """A width, and the number of heads that share it evenly. Raises: CheckpointError naming the key."""
    width, num_heads = require_count(config, width_key), require_count(config, heads_key, most=MAX_HEADS)
    if width % num_heads:
        raise CheckpointError(f"the checkpoint's {width_key}, {width}, can't be shared by {num_heads} heads")
    return width, num_heads


def refuse_other(config: Mapping[str, Any], **allowed: tuple[Any, ...]) -> None:
    """Raises: CheckpointError for a key whose value is none of those that this family can serve."""
    for key, values in allowed.items():
        if config.get(key) not in values:
            served = " or ".join(repr(value) for value in values if value is not None)
            raise CheckpointError(f"the checkpoint's {key} is {_shown(config[key])}; served: {served}")


def _value(config: Mapping[str, Any], key: str, otherwise: Any) -> Any:
    value = config.get(key)
    if value is None and otherwise is None:
        raise CheckpointError(f"the checkpoint's config lacks {key!r}")
    return otherwise if value is None else value


def _wrong(key: str, value: Any, what: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint's {key} is {_shown(value)}, not {what}")


def _shown(value: Any) -> str:
    """A value from a file, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
