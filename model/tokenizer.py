"""Text to token ids and back, over the `tokenizers` library, and text that arrives token by token."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers

from model.errors import CheckpointError

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True)
class Encoding:
    """Token ids with what belongs to each: characters `[start, end)` of its text, segment, special or not."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    type_ids: list[int]
    special_mask: list[int]


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and its rules; never cuts and never pads."""

    backend: tokenizers.Tokenizer
    bos_token: str | None = None
    eos_token: str | None = None
    special_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self.backend.no_truncation()
        self.backend.no_padding()
        added = self.backend.get_added_tokens_decoder()
        object.__setattr__(self, "special_ids", frozenset(i for i, token in added.items() if token.special))

    @classmethod
    def from_file(cls, path: Path, *, bos_token: str | None = None, eos_token: str | None = None) -> "Tokenizer":
        """Raises: CheckpointError for a file that is missing or not a tokenizer.json."""
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"{path}: not a tokenizer: {error}") from error
        return cls(backend, bos_token, eos_token)

    @property
    def vocabulary_size(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        return _encoding(self.backend.encode(text, add_special_tokens=add_special_tokens))

    def encode_pair(self, first: str, second: str) -> Encoding:
        """Two texts as one input, told apart by their type ids."""
        return _encoding(self.backend.encode(first, second))

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[Encoding]:
        encoded = self.backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [_encoding(one) for one in encoded]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_to_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        return self.backend.id_to_token(token_id)


def _encoding(encoded: tokenizers.Encoding) -> Encoding:
    return Encoding(encoded.ids, encoded.offsets, encoded.type_ids, encoded.special_tokens_mask)


class IncrementalDetokenizer:
    """Text from tokens as they come: whole characters only, and together exactly what `decode` makes of all of them.

    A token's text can depend on its neighbours (a leading space, bytes of one character), so new text is the difference
    of two decodings that begin at the same token: with the new tokens and without them.

        ids    ... begin ....... told ....... now
                   └─ context ─┘└─ new text ─┘

    What may still change is held back: a U+FFFD at the end, which the next bytes may complete, and a whole run of byte
    tokens, which such a decoder shows as characters only if all of it is valid.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._ids: list[int] = []
        self._begin = 0
        self._told = 0
        self._num_sent = 0  # characters of the new text that are out already

    def append(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; empty while a character is incomplete."""
        return "".join(self._one(token_id) for token_id in token_ids)

    def finish(self) -> str:
        """What was held back, as `decode` shows it."""
        return self._new_text()[self._num_sent :]

    def _one(self, token_id: int) -> str:
        self._ids.append(token_id)
        if _BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token_id) or ""):
            return ""
        text = self._new_text()
        if text.endswith(_REPLACEMENT):
            piece = text[self._num_sent : -1]
            self._num_sent = len(text) - 1
            return piece
        piece = text[self._num_sent :]
        # The context must show some text, or a decoder that strips a leading space would strip it from the new text.
        self._begin = self._told if text else self._begin
        self._told, self._num_sent = len(self._ids), 0
        return piece

    def _new_text(self) -> str:
        context = self._decode(self._ids[self._begin : self._told])
        return self._decode(self._ids[self._begin :])[len(context) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
