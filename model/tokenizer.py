"""Text to token ids and back, over the `tokenizers` library, and text that arrives token by token."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Literal

import tokenizers

from model.errors import CheckpointError

Cut = Literal["first", "longest"]

_MASKS, _UNKNOWNS = ("[MASK]", "<mask>"), ("[UNK]", "<unk>")
_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE = "\u2581"  # as vocabularies of whole words spell one
# How many tokens the window of a detokenizer may have, and how many it keeps when it has more: more than the three
# that may be an incomplete character, so that some text stands before them.
_MAX_WINDOW_TOKENS, _MIN_WINDOW_TOKENS = 16, 8


def _letters_of_bytes() -> dict[str, int]:
    """How a byte-level vocabulary spells bytes: visible ones by themselves, the others by letters from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTES = _letters_of_bytes()


@dataclass(frozen=True, slots=True)
class Encoding:
    """Token ids with what belongs to each; a list is made when it is asked for, since few callers need them all.

    `parts` are the texts that were encoded, then cut, then put together. Offsets are theirs: where a tokenizer leaves
    spaces out of them, it does so again each time that it looks at a token.
    """

    backend: tokenizers.Encoding
    parts: tuple[tokenizers.Encoding, ...] = ()

    def __len__(self) -> int:
        return len(self.backend)

    @property
    def ids(self) -> list[int]:
        return self.backend.ids

    @property
    def type_ids(self) -> list[int]:
        """The segment of each token."""
        return self.backend.type_ids

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """Characters `[start, end)` of its text; (0, 0) for a special token."""
        if not self.parts:
            return self.backend.offsets
        left = [iter(part.offsets) for part in self.parts]
        return [(0, 0) if number is None else next(left[number]) for number in self.text_numbers]

    @property
    def special_mask(self) -> list[int]:
        """1 for a token that the tokenizer added, 0 for one of the text."""
        return self.backend.special_tokens_mask

    @property
    def text_numbers(self) -> list[int | None]:
        """0 for a token of the first text, 1 of the second, None for one that the tokenizer added."""
        if not self.parts:
            return self.backend.sequence_ids
        # Each part was a first text when it was encoded, and what it says of that is kept beside what it became.
        numbers = chain.from_iterable(repeat(number, len(part)) for number, part in enumerate(self.parts))
        return [None if is_special else next(numbers) for is_special in self.special_mask]

    @property
    def word_numbers(self) -> list[int | None]:
        """Which word of its text, as the tokenizer splits words; None for a special token."""
        return self.backend.word_ids


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and its rules; cuts only when it is asked to, and never pads.

    `mask_token` and `unknown_token` are told, or what the vocabulary has of their usual spellings: older checkpoints
    leave them to the reader. None where there is none.
    """

    backend: tokenizers.Tokenizer
    bos_token: str | None = None
    eos_token: str | None = None
    mask_token: str | None = None
    unknown_token: str | None = None
    special_ids: frozenset[int] = field(init=False)
    is_byte_level: bool = field(init=False)

    def __post_init__(self) -> None:
        self.backend.no_truncation()
        self.backend.no_padding()
        special = {i: token.content for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        object.__setattr__(self, "special_ids", frozenset(special))
        object.__setattr__(self, "is_byte_level", "ByteLevel" in repr(self.backend.decoder))
        for name, spellings in (("mask_token", _MASKS), ("unknown_token", _UNKNOWNS)):
            found = [spelling for spelling in spellings if spelling in special.values()]
            if getattr(self, name) is None and found:
                object.__setattr__(self, name, found[0])

    @classmethod
    def from_file(cls, path: Path, **special_tokens: str | None) -> "Tokenizer":
        """`special_tokens` are fields of this class.

        Raises: CheckpointError for a file that is missing or not a tokenizer.json.
        """
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no such file")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"{path}: not a tokenizer: {error}") from error
        return cls(backend, **special_tokens)

    @property
    def vocabulary_size(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        return Encoding(self._encode(text, add_special_tokens=add_special_tokens))

    def encode_pair(self, first: str, second: str) -> Encoding:
        """Two texts as one input, told apart by their type ids."""
        return Encoding(self._encode((first, second)))

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[Encoding]:
        encoded = self.backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [Encoding(one) for one in encoded]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Encoding]:
        return [Encoding(one) for one in self.backend.encode_batch(list(pairs))]

    def encode_within(
        self, max_tokens: int, first: str, second: str | None = None, *, cut: Cut = "longest"
    ) -> Encoding:
        """An input of at most `max_tokens`, its special tokens kept: what is too much goes from the end of a text.

        `cut` names it: the first text alone, or of the two the longer one, token by token.
        """
        room = max_tokens - self.backend.num_special_tokens_to_add(second is not None)
        head = self._encode(first, add_special_tokens=False)
        if second is None:
            head.truncate(max(room, 0))
            return self._put_together(head)
        tail = self._encode(second, add_special_tokens=False)
        head_room, tail_room = _shares(room, len(head), len(tail), cut)
        head.truncate(head_room)
        tail.truncate(tail_room)
        return self._put_together(head, tail)

    def encode_windows(
        self,
        text: str,
        *,
        before: str | None = None,
        max_before_tokens: int | None = None,
        max_tokens: int,
        stride: int,
    ) -> list[Encoding]:
        """A text in inputs of at most `max_tokens` that overlap by `stride` tokens, each after the whole of `before` or
        its first `max_before_tokens`.

        Offsets are of the whole text. `max_tokens` must leave more room than `stride` beside `before` and the special
        tokens.
        """
        first = None if before is None else self._encode(before, add_special_tokens=False)
        if first is not None and max_before_tokens is not None:
            _cut(first, max_before_tokens)
        room = max_tokens - self.backend.num_special_tokens_to_add(first is not None) - (len(first) if first else 0)
        assert 0 <= stride < room
        window = self._encode(text, add_special_tokens=False)
        window.truncate(room, stride)
        windows = [window, *window.overflowing]
        return [self._put_together(one) if first is None else self._put_together(first, one) for one in windows]

    def _encode(self, text: str | tuple[str, str], *, add_special_tokens: bool = True) -> tokenizers.Encoding:
        """One text or pair, without the interpreter's lock: the library's `encode` holds it, so that a text of
        megabytes would stop every other thread for seconds."""
        return self.backend.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def _put_together(self, first: tokenizers.Encoding, second: tokenizers.Encoding | None = None) -> Encoding:
        return Encoding(self.backend.post_process(first, second), (first,) if second is None else (first, second))

    def num_special_tokens(self, *, is_pair: bool) -> int:
        """How many tokens an input gets besides those of its text or texts."""
        return int(self.backend.num_special_tokens_to_add(is_pair))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_to_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        return self.backend.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes | None:
        """What a token alone adds to a text: a byte-level vocabulary has tokens that are parts of characters.

        A special token is as it is spelled. None for one that there isn't.
        """
        token = self.backend.id_to_token(token_id)
        if token is None:
            return None
        if _BYTE_TOKEN.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        if self.is_byte_level and all(letter in _BYTES for letter in token) and token_id not in self.special_ids:
            return bytes(_BYTES[letter] for letter in token)
        return token.replace(_SPACE, " ").encode()

    def tokens_to_text(self, tokens: Sequence[str]) -> str:
        """The text that tokens, given as the vocabulary spells them, make up."""
        decoder = self.backend.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

    @property
    def subword_prefix(self) -> str | None:
        """What a token that goes on with a word begins with, in vocabularies that say so ("##")."""
        return getattr(self.backend.model, "continuing_subword_prefix", None)


def _cut(encoding: tokenizers.Encoding, num_tokens: int) -> None:
    """Leaves the first tokens. Mutates: `encoding`.

    By halves, because an encoding keeps what was cut off in pieces of its new size, and each of them is put together
    with whatever the encoding is: so there is one piece, not one for each `num_tokens` of a long text.
    """
    while len(encoding) > num_tokens:
        encoding.truncate(max(num_tokens, (len(encoding) + 1) // 2))


def _shares(room: int, num_first: int, num_second: int, cut: Cut) -> tuple[int, int]:
    """How many tokens of two texts fit."""
    if num_first + num_second <= room:
        return num_first, num_second
    if cut == "first":
        return max(room - num_second, 0), num_second
    shorter = min(num_first, num_second, room // 2)
    if num_first <= num_second:
        return shorter, room - shorter
    return room - shorter, shorter


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
