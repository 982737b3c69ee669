"""BERT (Devlin et al., 2018), MiniLM and all of their shape: post-norm, bidirectional, learned positions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model.attention import MultiHeadAttention
from model.block import EncoderBlock
from model.embeddings import Embedding, SegmentedEmbeddings, UnsegmentedEmbeddings
from model.encoder import Encoder, EncoderModel
from model.families.config import (
    MAX_BLOCKS,
    MAX_POSITIONS,
    MAX_VOCABULARY,
    refuse_other,
    require_count,
    require_heads,
    require_number,
    require_object,
    require_text,
)
from model.families.weight_map import WeightMap
from model.feed_forward import FeedForward
from model.heads import MaskedLanguageModel, SequenceClassifier, SpanExtractor, TokenClassifier
from model.kernels import select_kernel
from model.metadata import AttentionSpec
from model.normalization import LayerNorm

BODY = {
    "embeddings.word_embeddings": "encoder.embeddings.tokens",
    "embeddings.position_embeddings": "encoder.embeddings.positions",
    "embeddings.token_type_embeddings": "encoder.embeddings.segments",
    "embeddings.LayerNorm": "encoder.embeddings.norm",
    "encoder.layer.{i}.attention.self.query": "encoder.blocks.{i}.attention.project_in[query]",
    "encoder.layer.{i}.attention.self.key": "encoder.blocks.{i}.attention.project_in[key]",
    "encoder.layer.{i}.attention.self.value": "encoder.blocks.{i}.attention.project_in[value]",
    "encoder.layer.{i}.attention.output.dense": "encoder.blocks.{i}.attention.project_out",
    "encoder.layer.{i}.attention.output.LayerNorm": "encoder.blocks.{i}.attention_norm",
    "encoder.layer.{i}.intermediate.dense": "encoder.blocks.{i}.feed_forward.up",
    "encoder.layer.{i}.output.dense": "encoder.blocks.{i}.feed_forward.down",
    "encoder.layer.{i}.output.LayerNorm": "encoder.blocks.{i}.feed_forward_norm",
}
_HEADS = {
    "BertModel": {},
    "BertForSequenceClassification": {"pooler.dense": "head.pooler", "classifier": "head.classifier"},
    "BertForTokenClassification": {"classifier": "head.classifier"},
    "BertForQuestionAnswering": {"qa_outputs": "head.start_end"},
    "BertForMaskedLM": {
        "cls.predictions.transform.dense": "head.transform",
        "cls.predictions.transform.LayerNorm": "head.norm",
        "cls.predictions": "head.decoder",
    },
}
ARCHITECTURES = tuple(_HEADS)
# Position numbers, a pooler that this head does not read, and the copies of tied weights.
_IGNORED = (r"embeddings\.position_ids", r"pooler\..*", r"cls\.predictions\.decoder\..*", r"cls\.seq_relationship\..*")


@dataclass(frozen=True, slots=True)
class BertConfig:
    """What a checkpoint's config.json says, in this house's words."""

    vocabulary_size: int
    max_positions: int
    num_segments: int
    width: int
    num_blocks: int
    num_heads: int
    inner_width: int
    activation: str
    epsilon: float
    num_labels: int

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "BertConfig":
        """Raises: CheckpointError for a key that is missing or wrong, or a kind of positions that BERT never had."""
        refuse_other(config, position_embedding_type=("absolute", None), is_decoder=(False, None))
        width, num_heads = require_heads(config, "hidden_size", "num_attention_heads")
        return cls(
            vocabulary_size=require_count(config, "vocab_size", most=MAX_VOCABULARY),
            max_positions=require_count(config, "max_position_embeddings", most=MAX_POSITIONS),
            num_segments=require_count(config, "type_vocab_size"),
            width=width,
            num_blocks=require_count(config, "num_hidden_layers", most=MAX_BLOCKS),
            num_heads=num_heads,
            inner_width=require_count(config, "intermediate_size"),
            activation=require_text(config, "hidden_act"),
            epsilon=require_number(config, "layer_norm_eps"),
            num_labels=count_labels(config),
        )

    @property
    def attention_spec(self) -> AttentionSpec:
        head_width = self.width // self.num_heads
        return AttentionSpec(self.num_heads, self.num_heads, head_width, head_width**-0.5, is_causal=False)


def count_labels(config: Mapping[str, Any]) -> int:
    """As many as have names, else as many as it says. Raises: CheckpointError."""
    return len(require_object(config, "id2label", {})) or require_count(config, "num_labels", 2)


def build(config: Mapping[str, Any], architecture: str, device: torch.device) -> EncoderModel:
    """An encoder with the head that the architecture names; weights are empty."""
    c = BertConfig.read(config)
    embeddings = SegmentedEmbeddings(
        Embedding(c.vocabulary_size, c.width),
        Embedding(c.max_positions, c.width),
        Embedding(c.num_segments, c.width),
        LayerNorm(c.width, c.epsilon),
    )
    head = compose_head(c, architecture, embeddings.tokens, pooler="tanh", transform=c.activation)
    return EncoderModel(compose_encoder(c, embeddings, device), head, c)


def weights(config: Mapping[str, Any], architecture: str) -> WeightMap:
    return WeightMap({**BODY, **_HEADS[architecture]}, optional_prefix="bert.", ignored=_IGNORED)


def compose_encoder(
    c: BertConfig, embeddings: SegmentedEmbeddings | UnsegmentedEmbeddings, device: torch.device
) -> Encoder:
    """BERT's blocks over any of its embeddings: what all families of its shape share."""
    return Encoder(embeddings, [_block(c, device) for _ in range(c.num_blocks)])


def compose_head(
    c: BertConfig, architecture: str, tokens: Embedding, *, pooler: str, transform: str
) -> nn.Module | None:
    """The head that an architecture names after "For"; `pooler` and `transform` are the activations in it."""
    _, _, task = architecture.partition("For")
    if task == "SequenceClassification":
        return SequenceClassifier(c.width, c.num_labels, pooler)
    if task == "TokenClassification":
        return TokenClassifier(c.width, c.num_labels)
    if task == "QuestionAnswering":
        return SpanExtractor(c.width)
    if task == "MaskedLM":
        return MaskedLanguageModel(c.width, transform, LayerNorm(tokens.weight.shape[1], c.epsilon), tokens)
    return None


def _block(c: BertConfig, device: torch.device) -> EncoderBlock:
    return EncoderBlock(
        attention=MultiHeadAttention(c.width, c.attention_spec, select_kernel(device), has_bias=True),
        attention_norm=LayerNorm(c.width, c.epsilon),
        feed_forward=FeedForward(c.width, c.inner_width, c.activation, has_bias=True),
        feed_forward_norm=LayerNorm(c.width, c.epsilon),
    )
