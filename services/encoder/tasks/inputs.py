"""Texts to token ids: tokenized in a batch off the event loop, refused or cut where they are too long."""

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from services.common.errors import ContextLengthExceeded, InvalidRequest
from services.common.tokenization import max_characters
from services.encoder.batcher import Item

MAX_PAIRS = 4096
"""What one request may make of its texts and labels."""
MAX_PAIR_CHARACTERS = 2**22
"""What one request's pairs may hold: a text that stands in thousands of them is tokenized as often."""
MAX_WINDOW_TOKENS = 2**18
"""What one request's windows may hold, where a text needs several: with a wide stride it makes as many windows as it
has tokens. No more than a worker's queue takes, so that a refusal names the stride."""
MAX_WINDOW_CHARACTERS = 2**21
"""What one request's long texts may hold, to be read in windows; refused by its length before it is tokenized."""


class Encoding(Protocol):
    """One input as the tokenizer made it; each list is made when it is asked for."""

    def __len__(self) -> int: ...

    @property
    def ids(self) -> list[int]: ...

    @property
    def type_ids(self) -> list[int]: ...

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """Characters `[start, end)` of its text."""
        ...

    @property
    def special_mask(self) -> list[int]:
        """1 for a token that the tokenizer added."""
        ...

    @property
    def text_numbers(self) -> list[int | None]:
        """0 or 1, the text of a token; None for one that the tokenizer added."""
        ...

    @property
    def word_numbers(self) -> list[int | None]:
        """The word of its text."""
        ...


class TextTokenizer(Protocol):
    """A vocabulary and its rules."""

    @property
    def mask_token(self) -> str | None: ...

    @property
    def unknown_token(self) -> str | None: ...

    @property
    def special_ids(self) -> frozenset[int]: ...

    @property
    def subword_prefix(self) -> str | None:
        """What a token that goes on with a word begins with, in vocabularies that say so."""
        ...

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> Sequence[Encoding]: ...

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> Sequence[Encoding]: ...

    def encode_within(
        self, max_tokens: int, first: str, second: str | None = None, *, cut: Literal["first", "longest"] = "longest"
    ) -> Encoding:
        """An input cut to `max_tokens`, its special tokens kept."""
        ...

    def encode_windows(
        self,
        text: str,
        *,
        before: str | None = None,
        max_before_tokens: int | None = None,
        max_tokens: int,
        stride: int,
    ) -> Sequence[Encoding]:
        """A text in inputs that overlap by `stride` tokens, each after the whole of `before` or its first tokens."""
        ...

    def num_special_tokens(self, *, is_pair: bool) -> int: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def tokens_to_text(self, tokens: Sequence[str]) -> str: ...

    def token_to_id(self, token: str) -> int | None: ...

    def id_to_token(self, token_id: int) -> str | None: ...


class TextEncoder(Protocol):
    """The part of the runner that knows the vocabulary and the model's sizes."""

    @property
    def tokenizer(self) -> TextTokenizer: ...

    max_input_tokens: int
    vocabulary_size: int
    num_layers: int
    num_heads: int


@dataclass(frozen=True, slots=True)
class EncodedInputs:
    """The items of each input, in order, and whether anything was cut."""

    items: list[list[Item]]
    is_truncated: bool

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for row in self.items for item in row)


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the tokenizer made of texts, none of it too long, and whether anything was cut.

    `texts` are what it read: of one that is far too long only the beginning.
    """

    encodings: list[Encoding]
    is_truncated: bool
    texts: Sequence[str] = ()

    def items(self, head: object) -> EncodedInputs:
        """An item an input."""
        return EncodedInputs([[Item(one.ids, one.type_ids, head)] for one in self.encodings], self.is_truncated)


async def encode_texts(encoder: TextEncoder, texts: Sequence[str], *, param: str, may_truncate: bool) -> Encoded:
    """Raises: InvalidRequest for no text, an empty one, or one without a token, which a text can be too (blanks, for
    some tokenizers); ContextLengthExceeded with both counts, unless cutting is allowed.
    """
    require_texts(texts, param=param)
    names = [f"{param}[{index}]" for index in range(len(texts))]
    whole = list(texts)
    inputs = [(text,) for text in whole]
    beginnings = [text for (text,) in _readable(encoder, inputs, names, param, "longest" if may_truncate else None)]

    def encode() -> Encoded:
        def cut(index: int) -> Encoding:
            return encoder.tokenizer.encode_within(encoder.max_input_tokens, beginnings[index])

        encodings = encoder.tokenizer.encode_batch(beginnings)
        fitting = _fit(encoder, encodings, names, param, cut if may_truncate else None)
        return replace(fitting, is_truncated=fitting.is_truncated or beginnings != whole, texts=beginnings)

    return await asyncio.to_thread(encode)


async def encode_pairs(
    encoder: TextEncoder,
    pairs: Sequence[tuple[str, str]],
    *,
    names: Sequence[str],
    param: str,
    cut: Literal["first", "longest"],
    may_truncate: bool,
) -> Encoded:
    """Two texts an input; `names` are what a refusal calls each.

    Raises: InvalidRequest for more than a request may have of pairs; ContextLengthExceeded with both counts, unless
    cutting is allowed and enough.
    """
    most = max_characters(encoder.max_input_tokens)
    require_few_characters(sum(min(len(text), most) for pair in pairs for text in pair), param=param)
    inputs = _readable(encoder, pairs, names, param, cut if may_truncate else None)
    read = [(first, second) for first, second in inputs]

    def encode() -> Encoded:
        def shortened(index: int) -> Encoding:
            return encoder.tokenizer.encode_within(encoder.max_input_tokens, *read[index], cut=cut)

        encodings = encoder.tokenizer.encode_pairs(read)
        fitting = _fit(encoder, encodings, names, param, shortened if may_truncate else None)
        return replace(fitting, is_truncated=fitting.is_truncated or read != list(pairs))

    return await asyncio.to_thread(encode)


def require_texts(texts: Sequence[str], *, param: str) -> None:
    """Raises: InvalidRequest for no text or an empty one."""
    if not texts:
        raise InvalidRequest(f"'{param}' needs at least one text.", param=param)
    for index, text in enumerate(texts):
        if not text:
            raise InvalidRequest(f"'{param}[{index}]' is an empty text.", param=param)


def require_few_characters(num_characters: int, *, param: str) -> None:
    """Raises: InvalidRequest for more than a request may have of pairs."""
    if num_characters > MAX_PAIR_CHARACTERS:
        raise InvalidRequest(
            f"'{param}' make pairs of {num_characters} characters in all, more than {MAX_PAIR_CHARACTERS}: send "
            "several requests.",
            param=param,
        )


def require_readable(encoder: TextEncoder, texts: Iterable[str]) -> None:
    """Raises: InvalidRequest for more than a request may have of texts that are read in windows."""
    most = max_characters(encoder.max_input_tokens)
    num_characters = sum(len(text) for text in texts if len(text) > most)
    if num_characters > MAX_WINDOW_CHARACTERS:
        raise InvalidRequest(
            f"'inputs' have long texts of {num_characters} characters in all, more than {MAX_WINDOW_CHARACTERS}.",
            param="inputs",
        )


@dataclass(frozen=True, slots=True)
class WindowedText:
    """A text's tokens, those of it that a window has room for, and those that stand beside it in each window."""

    num_tokens: int
    room: int
    num_beside: int

    def num_windows(self, stride: int) -> int:
        """A stride matters only where there are several."""
        num_further = self.num_tokens - self.room
        return 1 if num_further <= 0 else 1 + math.ceil(num_further / (self.room - stride))

    def num_window_tokens(self, stride: int) -> int:
        """Of all its windows; 0 if it fits into one."""
        num_windows = self.num_windows(stride)
        if num_windows == 1:
            return 0
        return self.num_tokens + num_windows * self.num_beside + (num_windows - 1) * stride


def require_few_windows(texts: Sequence[WindowedText], stride: int, *, param: str) -> None:
    """Raises: InvalidRequest for windows with more tokens than a request may have; `param` is the stride's name."""
    num_tokens = sum(text.num_window_tokens(stride) for text in texts)
    if num_tokens > MAX_WINDOW_TOKENS:
        is_stride_at_fault = sum(text.num_window_tokens(0) for text in texts) <= MAX_WINDOW_TOKENS
        raise InvalidRequest(
            f"'inputs' have {num_tokens} tokens in windows that overlap by {stride}, more than {MAX_WINDOW_TOKENS}.",
            param=param if is_stride_at_fault else "inputs",
        )


def _readable(
    encoder: TextEncoder,
    inputs: Sequence[tuple[str, ...]],
    names: Sequence[str],
    param: str,
    cut: Literal["first", "longest"] | None,
) -> list[tuple[str, ...]]:
    """Inputs as far as the tokenizer need read them.

    Raises: ContextLengthExceeded with both counts of characters, unless cutting is allowed and enough.
    """
    most = max_characters(encoder.max_input_tokens)
    read: list[tuple[str, ...]] = []
    for name, texts in zip(names, inputs, strict=True):
        num_characters = sum(map(len, texts))
        if num_characters <= most:
            read.append(texts)
        elif cut is None or (cut == "first" and len(texts[-1]) > most):
            raise ContextLengthExceeded(
                f"'{name}' has {num_characters} characters, of a text for {encoder.max_input_tokens} tokens at most "
                f"{most} are read.",
                param=param,
            )
        else:
            read.append(tuple(text[:most] for text in texts))
    return read


def _fit(
    encoder: TextEncoder,
    encodings: Sequence[Encoding],
    names: Sequence[str],
    param: str,
    cut: Callable[[int], Encoding] | None,
) -> Encoded:
    fitting, is_truncated = [], False
    for index, one in enumerate(encodings):
        if not len(one):
            raise InvalidRequest(f"'{names[index]}' needs at least one token.", param=param)
        kept = one
        if len(one) > encoder.max_input_tokens and cut is not None:
            kept, is_truncated = cut(index), True
        if len(kept) > encoder.max_input_tokens or (kept is not one and _is_bare(kept)):
            raise ContextLengthExceeded(
                f"'{names[index]}' has {len(one)} tokens, the model takes {encoder.max_input_tokens}.", param=param
            )
        fitting.append(kept)
    return Encoded(fitting, is_truncated)


def _is_bare(encoding: Encoding) -> bool:
    """Whether cutting left nothing of the text itself, or of the first of two."""
    places = zip(encoding.special_mask, encoding.text_numbers, strict=True)
    return all(is_special or number == 1 for is_special, number in places)
