"""DistilBERT (Sanh et al., 2019): BERT of half the blocks, without segments and without a pooler of its own."""

from collections.abc import Mapping
from typing import Any

import torch

from model.embeddings import Embedding, UnsegmentedEmbeddings
from model.encoder import EncoderModel
from model.families import bert
from model.families.bert import BertConfig
from model.families.config import (
    MAX_BLOCKS,
    MAX_POSITIONS,
    MAX_VOCABULARY,
    require_count,
    require_heads,
    require_text,
)
from model.families.weight_map import WeightMap
from model.normalization import LayerNorm

_BODY = {
    "embeddings.word_embeddings": "encoder.embeddings.tokens",
    "embeddings.position_embeddings": "encoder.embeddings.positions",
    "embeddings.LayerNorm": "encoder.embeddings.norm",
    "transformer.layer.{i}.attention.q_lin": "encoder.blocks.{i}.attention.project_in[query]",
    "transformer.layer.{i}.attention.k_lin": "encoder.blocks.{i}.attention.project_in[key]",
    "transformer.layer.{i}.attention.v_lin": "encoder.blocks.{i}.attention.project_in[value]",
    "transformer.layer.{i}.attention.out_lin": "encoder.blocks.{i}.attention.project_out",
    "transformer.layer.{i}.sa_layer_norm": "encoder.blocks.{i}.attention_norm",
    "transformer.layer.{i}.ffn.lin1": "encoder.blocks.{i}.feed_forward.up",
    "transformer.layer.{i}.ffn.lin2": "encoder.blocks.{i}.feed_forward.down",
    "transformer.layer.{i}.output_layer_norm": "encoder.blocks.{i}.feed_forward_norm",
}
_HEADS = {
    "DistilBertModel": {},
    "DistilBertForSequenceClassification": {"pre_classifier": "head.pooler", "classifier": "head.classifier"},
    "DistilBertForTokenClassification": {"classifier": "head.classifier"},
    "DistilBertForQuestionAnswering": {"qa_outputs": "head.start_end"},
    "DistilBertForMaskedLM": {
        "vocab_transform": "head.transform",
        "vocab_layer_norm": "head.norm",
        "vocab_projector": "head.decoder",
    },
}
ARCHITECTURES = tuple(_HEADS)
# Position numbers, and the copy of the tied token table.
_IGNORED = (r"embeddings\.position_ids", r"vocab_projector\.weight")


def read(config: Mapping[str, Any]) -> BertConfig:
    """What a checkpoint's config.json says, under names of its own.

    Raises: CheckpointError for a key that is missing or wrong.
    """
    width, num_heads = require_heads(config, "dim", "n_heads")
    return BertConfig(
        vocabulary_size=require_count(config, "vocab_size", most=MAX_VOCABULARY),
        max_positions=require_count(config, "max_position_embeddings", most=MAX_POSITIONS),
        num_segments=0,
        width=width,
        num_blocks=require_count(config, "n_layers", most=MAX_BLOCKS),
        num_heads=num_heads,
        inner_width=require_count(config, "hidden_dim"),
        activation=require_text(config, "activation"),
        epsilon=1e-12,
        num_labels=bert.count_labels(config),
    )


def build(config: Mapping[str, Any], architecture: str, device: torch.device) -> EncoderModel:
    """An encoder with the head that the architecture names; weights are empty."""
    c = read(config)
    embeddings = UnsegmentedEmbeddings(
        Embedding(c.vocabulary_size, c.width), Embedding(c.max_positions, c.width), LayerNorm(c.width, c.epsilon)
    )
    head = bert.compose_head(c, architecture, embeddings.tokens, pooler="relu", transform=c.activation)
    return EncoderModel(bert.compose_encoder(c, embeddings, device), head, c)


def weights(config: Mapping[str, Any], architecture: str) -> WeightMap:
    return WeightMap({**_BODY, **_HEADS[architecture]}, optional_prefix="distilbert.", ignored=_IGNORED)
