"""Texts as a model sees them, for callers who want to look: what the workers of both kinds do alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.common.errors import InvalidRequest

_CHARACTERS_PER_TOKEN = 64
_LEAST_MAX_CHARACTERS = 2**16
MAX_TEXT_BYTES = 2**20
"""Of a text whose tokens are told. A token tells at most some twenty bytes of itself, and there may be one a byte: the
answer stays far below the longest message."""


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
    """Token ids; where they were asked for, the vocabulary's spellings and the characters `[start, end)` of each."""

    ids: list[int]
    strings: list[str]
    offsets: list[tuple[int, int]]


def tokenize(
    tokenizer: Tokenizer,
    text: str,
    *,
    param: str,
    add_special_tokens: bool,
    with_strings: bool,
    with_offsets: bool,
) -> Tokens:
    """The text of the field `param`, which may be longer than a model takes: who asks wants to know how long it is.

    Raises: InvalidRequest for more than MAX_TEXT_BYTES, by its length alone.
    """
    num_bytes = len(text.encode())
    if num_bytes > MAX_TEXT_BYTES:
        message = f"The text of '{param}' has {num_bytes} bytes, more than the {MAX_TEXT_BYTES} that are read at once."
        raise InvalidRequest(message, param=param)
    encoding = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    ids = encoding.ids
    # A long text says the same again and again: one string a token of the vocabulary, however often it is told.
    spelled = {token_id: tokenizer.id_to_token(token_id) or "" for token_id in set(ids)} if with_strings else {}
    strings = [spelled[token_id] for token_id in ids] if with_strings else []
    return Tokens(ids, strings, encoding.offsets if with_offsets else [])


def detokenize(tokenizer: Tokenizer, token_ids: Sequence[int], *, vocabulary_size: int) -> str:
    """The text with its special tokens, which is what was tokenized. Raises: InvalidRequest for what is no token."""
    if not all(0 <= token_id < vocabulary_size for token_id in token_ids):
        message = f"'tokens' holds what is no token: ids go from 0 to {vocabulary_size - 1}."
        raise InvalidRequest(message, param="tokens")
    return tokenizer.decode(token_ids, skip_special_tokens=False)
