"""Mask filling: what the model expects in the place of each mask.

Source: Devlin et al., "BERT", 2019, §3.1; equal to transformers' fill-mask pipeline.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from janus.v1 import encoder_pb2
from services.common.errors import InvalidRequest
from services.common.tokenization import max_characters
from services.encoder.batcher import Item
from services.encoder.tasks.inputs import (
    Encoded,
    EncodedInputs,
    TextEncoder,
    TextTokenizer,
    encode_texts,
    require_texts,
)
from services.encoder.tasks.scores import Scores, softmax
from services.encoder.tasks.task import Head

_TOP_K = 5
_PADDINGS = ("[PAD]", "<pad>")
# A candidate brings the whole text along: a few masks and a large top_k would make an answer without end.
_MAX_SEQUENCE_TOKENS = 2**18


class FillMask:
    """The best candidates for each mask of each text."""

    name = "fill-mask"

    async def encode(self, request: encoder_pb2.FillMaskRequest, head: Head, encoder: TextEncoder) -> EncodedInputs:
        parameters = request.parameters
        if parameters.HasField("top_k") and parameters.top_k < 1:
            raise InvalidRequest("'parameters.top_k' must be at least 1.", param="parameters.top_k")
        target_ids = await _target_ids(encoder, parameters.targets) if parameters.targets else None
        num_words = encoder.vocabulary_size if target_ids is None else len(target_ids)
        top_k = min(parameters.top_k if parameters.HasField("top_k") else _TOP_K, num_words)
        encoded = await encode_texts(encoder, request.inputs, param="inputs", may_truncate=request.truncate)
        return EncodedInputs(_items(request, head, encoder, encoded, target_ids, top_k), encoded.is_truncated)

    def decode(
        self, request: encoder_pb2.FillMaskRequest, head: Head, outputs: Sequence[Sequence[Any]]
    ) -> encoder_pb2.FillMaskResponse:
        return encoder_pb2.FillMaskResponse(results=[encoder_pb2.FilledText(masks=masks) for [masks] in outputs])


@dataclass(frozen=True, slots=True, eq=False)
class _Filling:
    """What the scores of one input's masks become; `target_ids` None: the whole vocabulary.

    The sequences are spelt out here too, in the runner's thread: it takes milliseconds where masks or candidates are
    many, and the event loop has none to spare.
    """

    token_ids: Sequence[int]
    masks: Sequence[int]
    target_ids: Sequence[int] | None
    top_k: int
    tokenizer: TextTokenizer
    padding_id: int | None

    def __call__(self, scores: Scores) -> list[encoder_pb2.FilledMask]:
        """Shape: `[masks, vocabulary]`."""
        return [self._filled(place, row) for place, row in zip(self.masks, scores, strict=True)]

    def _filled(self, place: int, row: Scores) -> encoder_pb2.FilledMask:
        scores = softmax(row)
        if self.target_ids is not None:
            scores = scores[self.target_ids]
        best = numpy.argpartition(-scores, self.top_k - 1)[: self.top_k]
        best = best[numpy.lexsort((best, -scores[best]))]
        tokens = [index if self.target_ids is None else self.target_ids[index] for index in best.tolist()]
        return encoder_pb2.FilledMask(
            candidates=[
                encoder_pb2.MaskCandidate(
                    score=score,
                    token=token,
                    token_str=self.tokenizer.decode([token], skip_special_tokens=False),
                    sequence=self._sequence(place, token),
                )
                for token, score in zip(tokens, scores[best].tolist(), strict=True)
            ]
        )

    def _sequence(self, place: int, token: int) -> str:
        """Without special tokens; but of several masks the others are to be seen, so there all special tokens are."""
        ids = [*self.token_ids[:place], token, *self.token_ids[place + 1 :]]
        shown = [one for one in ids if one != self.padding_id]
        return self.tokenizer.decode(shown, skip_special_tokens=len(self.masks) == 1)


def _items(
    request: encoder_pb2.FillMaskRequest,
    head: Head,
    encoder: TextEncoder,
    encoded: Encoded,
    target_ids: Sequence[int] | None,
    top_k: int,
) -> list[list[Item]]:
    """Raises: InvalidRequest for a text without a mask, or candidates whose texts are too much for one answer."""
    tokenizer = encoder.tokenizer
    assert tokenizer.mask_token is not None
    mask_id, padding_id = tokenizer.token_to_id(tokenizer.mask_token), _padding_id(tokenizer)
    items = []
    num_tokens = 0
    for index, one in enumerate(encoded.encodings):
        ids = one.ids
        masks = [place for place, token in enumerate(ids) if token == mask_id]
        if not masks:
            is_cut_off = encoded.is_truncated and tokenizer.mask_token in request.inputs[index]
            why = "has no mask left where it was cut" if is_cut_off else "has no mask"
            raise InvalidRequest(
                f"'inputs[{index}]' {why}: {tokenizer.mask_token} stands for the word to find.", param="inputs"
            )
        num_tokens += len(masks) * top_k * len(ids)
        filling = _Filling(ids, masks, target_ids, top_k, tokenizer, padding_id)
        items.append([Item(ids, one.type_ids, head, rows=masks, reduce=filling)])
    if num_tokens > _MAX_SEQUENCE_TOKENS:
        raise InvalidRequest(
            f"'parameters.top_k' asks for texts of {num_tokens} tokens in all, an answer has {_MAX_SEQUENCE_TOKENS}.",
            param="parameters.top_k",
        )
    return items


async def _target_ids(encoder: TextEncoder, targets: Sequence[str]) -> list[int]:
    """Of a target that is no word of the vocabulary, the first of its tokens.

    Raises: InvalidRequest for a target without a token, or with one that the vocabulary doesn't know.
    """
    param = "parameters.targets"
    require_texts(targets, param=param)
    tokenizer = encoder.tokenizer
    ids = [tokenizer.token_to_id(target) for target in targets]
    others = [index for index, token_id in enumerate(ids) if token_id is None]
    if others:
        longest = max_characters(encoder.max_input_tokens)
        texts = [targets[index][:longest] for index in others]
        unknown_id = None if tokenizer.unknown_token is None else tokenizer.token_to_id(tokenizer.unknown_token)
        encodings = await asyncio.to_thread(tokenizer.encode_batch, texts, add_special_tokens=False)
        for index, one in zip(others, encodings, strict=True):
            if not len(one) or one.ids[0] == unknown_id:
                raise InvalidRequest(f"'{param}[{index}]' is no word of the vocabulary.", param=param)
            ids[index] = one.ids[0]
    return sorted({token_id for token_id in ids if token_id is not None})


def _padding_id(tokenizer: TextTokenizer) -> int | None:
    """Padding is shown in no sequence, not even where other special tokens are."""
    ids = [tokenizer.token_to_id(token) for token in _PADDINGS]
    return next((one for one in ids if one in tokenizer.special_ids), None)
