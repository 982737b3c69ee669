"""MPNet (Song et al., 2020): BERT's blocks with a bias by distance, one table for all of them, and no segments.

Positions start late, as RoBERTa's do; the row of a padding token is 1 whatever the config says of its id.
"""

from collections.abc import Mapping
from typing import Any

import torch

from model.attention import MultiHeadAttention
from model.block import EncoderBlock
from model.embeddings import Embedding, LaterRows, UnsegmentedEmbeddings
from model.encoder import Encoder, EncoderModel
from model.families import bert
from model.families.bert import BertConfig
from model.families.config import (
    MAX_BLOCKS,
    MAX_POSITIONS,
    MAX_VOCABULARY,
    refuse_other,
    require_count,
    require_heads,
    require_number,
    require_text,
)
from model.families.weight_map import WeightMap
from model.feed_forward import FeedForward
from model.kernels import select_kernel
from model.normalization import LayerNorm
from model.relative import RelativeBias

_BODY = {
    "embeddings.word_embeddings": "encoder.embeddings.tokens",
    "embeddings.position_embeddings": "encoder.embeddings.positions",
    "embeddings.LayerNorm": "encoder.embeddings.norm",
    # The blocks share it, so it stands in the first.
    "encoder.relative_attention_bias": "encoder.blocks.0.attention.relative_bias",
    "encoder.layer.{i}.attention.attn.q": "encoder.blocks.{i}.attention.project_in[query]",
    "encoder.layer.{i}.attention.attn.k": "encoder.blocks.{i}.attention.project_in[key]",
    "encoder.layer.{i}.attention.attn.v": "encoder.blocks.{i}.attention.project_in[value]",
    "encoder.layer.{i}.attention.attn.o": "encoder.blocks.{i}.attention.project_out",
    "encoder.layer.{i}.attention.LayerNorm": "encoder.blocks.{i}.attention_norm",
    "encoder.layer.{i}.intermediate.dense": "encoder.blocks.{i}.feed_forward.up",
    "encoder.layer.{i}.output.dense": "encoder.blocks.{i}.feed_forward.down",
    "encoder.layer.{i}.output.LayerNorm": "encoder.blocks.{i}.feed_forward_norm",
}
_HEADS = {
    "MPNetModel": {},
    "MPNetForSequenceClassification": {"classifier.dense": "head.pooler", "classifier.out_proj": "head.classifier"},
    "MPNetForTokenClassification": {"classifier": "head.classifier"},
    "MPNetForQuestionAnswering": {"qa_outputs": "head.start_end"},
    "MPNetForMaskedLM": {
        "lm_head.dense": "head.transform",
        "lm_head.layer_norm": "head.norm",
        "lm_head": "head.decoder",
    },
}
ARCHITECTURES = tuple(_HEADS)
# Position numbers, a pooler that no head here reads, and the copies of tied weights.
_IGNORED = (r"embeddings\.position_ids", r"pooler\..*", r"lm_head\.decoder\..*")
_FIRST_POSITION = 2
_NUM_BUCKETS, _MAX_DISTANCE = 32, 128


def read(config: Mapping[str, Any]) -> BertConfig:
    """What a checkpoint's config.json says.

    Raises: CheckpointError for a key that is missing or wrong, or other buckets.
    """
    refuse_other(config, relative_attention_num_buckets=(_NUM_BUCKETS, None))
    width, num_heads = require_heads(config, "hidden_size", "num_attention_heads")
    num_rows = require_count(config, "max_position_embeddings", least=_FIRST_POSITION + 1, most=MAX_POSITIONS)
    return BertConfig(
        vocabulary_size=require_count(config, "vocab_size", most=MAX_VOCABULARY),
        max_positions=num_rows - _FIRST_POSITION,
        num_segments=0,
        width=width,
        num_blocks=require_count(config, "num_hidden_layers", most=MAX_BLOCKS),
        num_heads=num_heads,
        inner_width=require_count(config, "intermediate_size"),
        activation=require_text(config, "hidden_act"),
        epsilon=require_number(config, "layer_norm_eps"),
        num_labels=bert.count_labels(config),
    )


def build(config: Mapping[str, Any], architecture: str, device: torch.device) -> EncoderModel:
    """An encoder with the head that the architecture names; weights are empty.

    Raises: CheckpointError for a head with a table of its own.
    """
    c = read(config)
    if architecture == "MPNetForMaskedLM":
        refuse_other(config, tie_word_embeddings=(True, None))
    embeddings = UnsegmentedEmbeddings(
        Embedding(c.vocabulary_size, c.width),
        LaterRows(_FIRST_POSITION + c.max_positions, c.width, first=_FIRST_POSITION),
        LayerNorm(c.width, c.epsilon),
    )
    relative_bias = RelativeBias(_NUM_BUCKETS, _MAX_DISTANCE, c.num_heads, c.max_positions)
    encoder = Encoder(embeddings, [_block(c, relative_bias, device) for _ in range(c.num_blocks)])
    head = bert.compose_head(c, architecture, embeddings.tokens, pooler="tanh", transform="gelu")
    return EncoderModel(encoder, head, c)


def weights(config: Mapping[str, Any], architecture: str) -> WeightMap:
    return WeightMap({**_BODY, **_HEADS[architecture]}, optional_prefix="mpnet.", ignored=_IGNORED)


def _block(c: BertConfig, relative_bias: RelativeBias, device: torch.device) -> EncoderBlock:
    return EncoderBlock(
        attention=MultiHeadAttention(
            c.width, c.attention_spec, select_kernel(device), has_bias=True, relative_bias=relative_bias
        ),
        attention_norm=LayerNorm(c.width, c.epsilon),
        feed_forward=FeedForward(c.width, c.inner_width, c.activation, has_bias=True),
        feed_forward_norm=LayerNorm(c.width, c.epsilon),
    )
