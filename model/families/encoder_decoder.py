"""A BERT that reads, a GPT-2 that writes, joined by cross-attention: transformers' EncoderDecoderModel of the two."""

from collections.abc import Mapping
from typing import Any

import torch

from model.encoder_decoder import EncoderDecoder
from model.errors import CheckpointError
from model.families import bert, gpt2
from model.families.config import require_object
from model.families.weight_map import WeightMap

ARCHITECTURES = ("EncoderDecoderModel",)


def build(config: Mapping[str, Any], architecture: str, device: torch.device) -> EncoderDecoder:
    """Raises: CheckpointError when the two halves differ in kind or width from what can be joined."""
    encoder_config, decoder_config = _halves(config)
    reader = bert.build(encoder_config, "BertModel", device)
    writer = gpt2.build({**decoder_config, "add_cross_attention": True}, "GPT2LMHeadModel", device)
    if reader.config.width != writer.config.width:
        raise CheckpointError(
            f"the encoder is {reader.config.width} wide and the decoder {writer.config.width}: they can't be joined"
        )
    return EncoderDecoder(reader.encoder, writer.decoder, writer.head)


def weights(config: Mapping[str, Any], architecture: str) -> WeightMap:
    encoder_config, decoder_config = _halves(config)
    reads = bert.weights(encoder_config, "BertModel").prefixed("encoder.", "")
    writes = gpt2.weights(decoder_config, "GPT2LMHeadModel").prefixed("decoder.transformer.", "")
    return WeightMap(
        {**reads.entries, **writes.entries},
        ignored=(*reads.ignored, *writes.ignored, r"decoder\.lm_head\.weight"),
        transposed=writes.transposed,
    )


def _halves(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    halves = require_object(config, "encoder"), require_object(config, "decoder")
    kinds = tuple(half.get("model_type") for half in halves)
    if kinds != ("bert", "gpt2"):
        raise CheckpointError(f"an encoder-decoder of {kinds[0]} and {kinds[1]} is not served; served: bert and gpt2")
    return halves
