"""Text to token ids and back, over the `tokenizers` library, and text that arrives token by token."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers

from model.errors import CheckpointError

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x..>")
# How many tokens the window of a detokenizer may have, and how many it keeps when it has more: more than the three
# that may be an incomplete character, so that some text stands before them.
_MAX_WINDOW_TOKENS, _MIN_WINDOW_TOKENS = 16, 8


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
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no such file")
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

    A token's text can depend on its neighbours (a leading space, bytes of one character), so a window of the last
    tokens is decoded with each new one, and what its text gained at the end is new. Each token costs the same, however
    long the text grows.

        text of the window   ......................... .........
                             └─ sent: out already ───┘└─ new ──┘

    What may still change is held back: a U+FFFD at the end, which the next bytes may complete, and a whole run of byte
    tokens, which such a decoder shows as characters only if all of it is valid.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []
        self._num_sent = 0  # characters of the window's text

    def append(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; empty while a character is incomplete."""
        return "".join(self._one(token_id) for token_id in token_ids)

    def finish(self) -> str:
        """What was held back, as `decode` shows it."""
        return self._send(self._decode(self._window), num_held=0)

    def _one(self, token_id: int) -> str:
        token = self._tokenizer.id_to_token(token_id)
        if token is None or (self._skip_special_tokens and token_id in self._tokenizer.special_ids):
            return ""  # as if it were not there, also between the bytes of one character
        self._window.append(token_id)
        if _BYTE_TOKEN.fullmatch(token):
            return ""
        text = self._decode(self._window)
        num_held = int(text.endswith(_REPLACEMENT))
        piece = self._send(text, num_held)
        if len(self._window) > _MAX_WINDOW_TOKENS:
            self._shorten(num_held)
        return piece

    def _send(self, text: str, num_held: int) -> str:
        piece = text[self._num_sent : len(text) - num_held]
        self._num_sent = len(text) - num_held
        return piece

    def _shorten(self, num_held: int) -> None:
        """Forgets the oldest tokens. The text of the rest may begin differently, but it ends, and goes on, the same."""
        rest = self._window[-_MIN_WINDOW_TOKENS:]
        num_sent = len(self._decode(rest)) - num_held
        # Without text before it, the next token would stand at the beginning, where a decoder may strip its space.
        if num_sent > 0:
            self._window, self._num_sent = rest, num_sent

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
