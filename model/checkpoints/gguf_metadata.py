"""The keys and values of a GGUF file's header, each read with the type that it must have."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from model.errors import CheckpointError

T = TypeVar("T")


class GGUFMetadata:
    """The file's keys and values, by type. Raises: CheckpointError with the key that is missing or of another type."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self._path = path
        self._values = values

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value = self._get(key, default)
        if type(value) is not int or value < 1:
            raise self.error(f"{key} is {_shown(value)}, not a whole number above 0")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self.error(f"{key} is {_shown(value)}, not a number above 0")
        return float(value)

    def text(self, key: str) -> str | None:
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(f"{key} is {_shown(value)}, not a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"{key} is {_shown(value)}, not true or false")
        return value

    def items(self, key: str, kind: type[T]) -> list[T]:
        """A list of values of one type."""
        values = self._get(key, None)
        if not isinstance(values, list) or not {kind}.issuperset(map(type, values)):
            raise self.error(f"{key} is not a list of {kind.__name__}")
        return values

    @cached_property
    def tokens(self) -> list[str]:
        """The vocabulary, in order of id."""
        tokens = self.items("tokenizer.ggml.tokens", str)
        if not tokens:
            raise self.error("the vocabulary is empty")
        return tokens

    def token_id(self, name: str) -> int | None:
        """The token that the file names for a purpose: bos, eos, eot, ..."""
        key = f"tokenizer.ggml.{name}_token_id"
        value = self._values.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < len(self.tokens)):
            raise self.error(f"{key} is {_shown(value)}, which is none of the {len(self.tokens)} tokens")
        return value

    def has(self, key: str) -> bool:
        return key in self._values

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {what}")

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(key, default)
        if value is None:
            raise self.error(f"the metadata lacks {key!r}")
        return value


def _shown(value: Any) -> str:
    """A value from a file, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
