"""Token classification: names in a text, parts of speech, anything that a token or a word is labelled with.

Source: Devlin et al., "BERT", 2019, §5.3; equal to transformers' token-classification pipeline.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from janus.v1 import encoder_pb2
from services.common.errors import InvalidRequest
from services.encoder.batcher import Item
from services.encoder.tasks.entities import Aggregation, Entity, Strategy, Token, without_overlaps
from services.encoder.tasks.inputs import (
    EncodedInputs,
    Encoding,
    TextEncoder,
    TextTokenizer,
    WindowedText,
    encode_texts,
    require_few_windows,
    require_readable,
    require_texts,
)
from services.encoder.tasks.task import Head

_STRATEGIES: Mapping[int, Strategy] = {
    encoder_pb2.AGGREGATION_STRATEGY_UNSPECIFIED: "none",
    encoder_pb2.AGGREGATION_STRATEGY_NONE: "none",
    encoder_pb2.AGGREGATION_STRATEGY_SIMPLE: "simple",
    encoder_pb2.AGGREGATION_STRATEGY_FIRST: "first",
    encoder_pb2.AGGREGATION_STRATEGY_AVERAGE: "average",
    encoder_pb2.AGGREGATION_STRATEGY_MAX: "max",
}
_IGNORED = ("O",)


class ClassifyTokens:
    """The entities of each text, in the order of the text."""

    name = "token-classify"

    async def encode(
        self, request: encoder_pb2.ClassifyTokensRequest, head: Head, encoder: TextEncoder
    ) -> EncodedInputs:
        parameters = request.parameters
        if parameters.aggregation_strategy not in _STRATEGIES:
            param = "parameters.aggregation_strategy"
            raise InvalidRequest(f"'{param}' is no known strategy.", param=param)
        if parameters.HasField("stride"):
            _require_stride(parameters, encoder)
            require_texts(request.inputs, param="inputs")
            require_readable(encoder, request.inputs)
            windows = await asyncio.to_thread(_windows, encoder, request.inputs, parameters.stride)
            is_truncated = False
        else:
            encoded = await encode_texts(encoder, request.inputs, param="inputs", may_truncate=request.truncate)
            windows, is_truncated = [[one] for one in encoded.encodings], encoded.is_truncated
        items = await asyncio.to_thread(_items, request, head, encoder.tokenizer, windows)
        return EncodedInputs(items, is_truncated)

    def decode(
        self, request: encoder_pb2.ClassifyTokensRequest, head: Head, outputs: Sequence[Sequence[Any]]
    ) -> encoder_pb2.ClassifyTokensResponse:
        results = []
        for of_windows in outputs:
            entities = [entity for of_window in of_windows for entity in of_window]
            if len(of_windows) > 1:
                entities = without_overlaps(entities)
            results.append(encoder_pb2.TokenClassification(entities=[_message(entity) for entity in entities]))
        return encoder_pb2.ClassifyTokensResponse(results=results)


def _require_stride(parameters: encoder_pb2.ClassifyTokensParameters, encoder: TextEncoder) -> None:
    """Raises: InvalidRequest for a stride that makes no windows."""
    param = "parameters.stride"
    room = encoder.max_input_tokens - encoder.tokenizer.num_special_tokens(is_pair=False)
    if _STRATEGIES[parameters.aggregation_strategy] == "none":
        raise InvalidRequest(f"'{param}' needs an aggregation strategy other than none.", param=param)
    if not 0 <= parameters.stride < room:
        raise InvalidRequest(
            f"'{param}' must be from 0 to {room - 1}: a window has {room} tokens of the text.", param=param
        )


def _windows(encoder: TextEncoder, texts: Sequence[str], stride: int) -> list[list[Encoding]]:
    """Inputs of each text that the model takes.

    Raises: InvalidRequest for a text without a token, or windows with more tokens than one request may have.
    """
    tokenizer, size = encoder.tokenizer, encoder.max_input_tokens
    encodings = tokenizer.encode_batch(texts)
    for index, one in enumerate(encodings):
        if not len(one):
            raise InvalidRequest(f"'inputs[{index}]' needs at least one token.", param="inputs")
    num_special = tokenizer.num_special_tokens(is_pair=False)
    windowed = [WindowedText(len(one) - num_special, size - num_special, num_special) for one in encodings]
    require_few_windows(windowed, stride, param="parameters.stride")
    return [
        [one] if len(one) <= size else [*tokenizer.encode_windows(text, max_tokens=size, stride=stride)]
        for text, one in zip(texts, encodings, strict=True)
    ]


def _items(
    request: encoder_pb2.ClassifyTokensRequest,
    head: Head,
    tokenizer: TextTokenizer,
    windows: Sequence[Sequence[Encoding]],
) -> list[list[Item]]:
    assert head.labels is not None
    parameters = request.parameters
    strategy = _STRATEGIES[parameters.aggregation_strategy]
    ignored = parameters.ignore_labels.texts if parameters.HasField("ignore_labels") else _IGNORED

    def item(text: str, one: Encoding) -> Item:
        tokens = tuple(_tokens(text, one, tokenizer))
        reduce = Aggregation(tokens, names, strategy, frozenset(ignored), tokenizer.tokens_to_text)
        return Item(one.ids, one.type_ids, head, reduce=reduce)

    names = head.labels.names
    return [[item(text, one) for one in row] for text, row in zip(request.inputs, windows, strict=True)]


def _tokens(text: str, encoding: Encoding, tokenizer: TextTokenizer) -> Iterator[Token]:
    """What the tokenizer found in the text, not what it added; an unknown token is spelt as the text has it."""
    unknown_id = None if tokenizer.unknown_token is None else tokenizer.token_to_id(tokenizer.unknown_token)
    has_prefix = bool(tokenizer.subword_prefix)
    places = zip(encoding.ids, encoding.offsets, encoding.special_mask, strict=True)
    for index, (token_id, (start, end), is_special) in enumerate(places):
        if is_special:
            continue
        if token_id == unknown_id:
            yield Token(text[start:end], start, end, index, is_subword=False)
            continue
        spelling = tokenizer.id_to_token(token_id) or ""
        yield Token(spelling, start, end, index, is_subword=_is_subword(spelling, text, start, end, has_prefix))


def _is_subword(spelling: str, text: str, start: int, end: int, has_prefix: bool) -> bool:
    """Where such a token has a prefix, it is spelt longer than in the text; else no space parts it from the last."""
    return len(spelling) != end - start if has_prefix else start > 0 and " " not in text[start - 1 : start + 1]


def _message(entity: Entity) -> encoder_pb2.Entity:
    name = {"entity_group" if entity.index is None else "entity": entity.label}
    return encoder_pb2.Entity(
        score=entity.score, word=entity.word, start=entity.start, end=entity.end, index=entity.index, **name
    )
