"""Texts as a model sees them, for callers who want to look: what the workers of both kinds do alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.common.errors import InvalidRequest

_CHARACTERS_PER_TOKEN = 64
_LEAST_MAX_CHARACTERS = 2**16


def max_characters(max_tokens: int) -> int:
    """How much of a text is read that may have so many tokens: longer ones are refused, or cut, by their length.

    A text of megabytes takes the tokenizer many seconds, only to be too long. Words of any language have ten characters
    a token or fewer; what stays out is a text that is next to nothing but one word, or blanks.
    """
    return max(_CHARACTERS_PER_TOKEN * max_tokens, _LEAST_MAX_CHARACTERS)


class Encoding(Protocol):
    """One text as the tokenizer made it."""

    @property
    def ids(self) -> list[int]: ...

    @property
    def offsets(self) -> list[tuple[int, int]]: ...


class Tokenizer(Protocol):
    """A vocabulary and its rules."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoding: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def id_to_token(self, token_id: int) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids, as the vocabulary spells them where that was asked for, and the characters `[start, end)` of each."""

    ids: list[int]
    strings: list[str]
    offsets: list[tuple[int, int]]


def tokenize(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool, with_strings: bool) -> Tokens:
    """The whole text, however long: who asks wants to know how long it is."""
    encoding = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    ids = encoding.ids
    strings = [tokenizer.id_to_token(token_id) or "" for token_id in ids] if with_strings else []
    return Tokens(ids, strings, encoding.offsets)


def detokenize(tokenizer: Tokenizer, token_ids: Sequence[int], *, vocabulary_size: int) -> str:
    """The text with its special tokens, which is what was tokenized. Raises: InvalidRequest for what is no token."""
    if not all(0 <= token_id < vocabulary_size for token_id in token_ids):
        message = f"'tokens' holds what is no token: ids go from 0 to {vocabulary_size - 1}."
        raise InvalidRequest(message, param="tokens")
    return tokenizer.decode(token_ids, skip_special_tokens=False)
