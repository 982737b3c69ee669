"""Texts to items: tokenized in a batch off the event loop, refused or cut where they are too long."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.common.errors import ContextLengthExceeded, InvalidRequest
from services.encoder.batcher import Item


@dataclass(frozen=True, slots=True)
class Tokens:
    """One input: token ids and the segment of each."""

    ids: list[int]
    type_ids: list[int]


class TextEncoder(Protocol):
    """The part of the runner that knows the vocabulary and the model's sizes."""

    max_input_tokens: int
    vocabulary_size: int
    width: int

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]: ...

    def truncated(self, tokens: Tokens) -> Tokens:
        """Cut to the longest input, special tokens kept."""
        ...


@dataclass(frozen=True, slots=True)
class EncodedInputs:
    """Items in the order of the inputs, and whether any was cut."""

    items: list[Item]
    is_truncated: bool

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.items)


async def encode_texts(encoder: TextEncoder, texts: Sequence[str], *, param: str) -> list[Tokens]:
    """Raises: InvalidRequest for no text or an empty one."""
    if not texts:
        raise InvalidRequest(f"'{param}' needs at least one text.", param=param)
    for index, text in enumerate(texts):
        if not text:
            raise InvalidRequest(f"'{param}[{index}]' is an empty text.", param=param)
    return await asyncio.to_thread(encoder.encode_batch, texts)


def fit(
    encoder: TextEncoder, tokens: Sequence[Tokens], head: object, *, param: str, may_truncate: bool
) -> EncodedInputs:
    """Raises: InvalidRequest for an input without a token, which a text can be too (blanks, for some tokenizers);
    ContextLengthExceeded with both counts, unless cutting is allowed.
    """
    items, is_truncated = [], False
    for index, one in enumerate(tokens):
        if not one.ids:
            raise InvalidRequest(f"'{param}[{index}]' needs at least one token.", param=param)
        fitting = one
        if len(one.ids) > encoder.max_input_tokens:
            if not may_truncate:
                raise ContextLengthExceeded(
                    f"'{param}[{index}]' has {len(one.ids)} tokens, the model takes {encoder.max_input_tokens}.",
                    param=param,
                )
            fitting, is_truncated = encoder.truncated(one), True
        items.append(Item(fitting.ids, fitting.type_ids, head))
    return EncodedInputs(items, is_truncated)
