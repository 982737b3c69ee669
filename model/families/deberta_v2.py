"""DeBERTa-v2 and v3 (He et al., 2020 and 2021): BERT's blocks with disentangled attention.

A masked-language head has two names: `cls.predictions`, and `lm_predictions.lm_head` for the one that the published
checkpoints were trained with. `legacy` in the config says which counts; where it says nothing, the one that is there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from model.attention import MultiHeadAttention
from model.block import ConvolvedEncoderBlock, EncoderBlock
from model.convolution import Convolution
from model.disentangled import DisentangledAttention, Positions, PositionTable, Term, log_buckets
from model.embeddings import Embedding, OptionalEmbeddings
from model.encoder import Encoder, EncoderModel
from model.errors import CheckpointError
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
from model.feed_forward import Activation, FeedForward
from model.kernels import select_kernel
from model.linear import Linear
from model.metadata import AttentionSpec
from model.normalization import LayerNorm

_BODY = {
    "embeddings.word_embeddings": "encoder.embeddings.tokens",
    "embeddings.position_embeddings": "encoder.embeddings.positions",
    "embeddings.token_type_embeddings": "encoder.embeddings.segments",
    "embeddings.embed_proj": "encoder.embeddings.projection",
    "embeddings.LayerNorm": "encoder.embeddings.norm",
    # The blocks share them, so they stand in the first.
    "encoder.rel_embeddings": "encoder.blocks.0.attention.positions.table",
    "encoder.LayerNorm": "encoder.blocks.0.attention.positions.norm",
    "encoder.conv.conv": "encoder.blocks.0.convolution",
    "encoder.conv.LayerNorm": "encoder.blocks.0.convolution_norm",
    "encoder.layer.{i}.attention.self.query_proj": "encoder.blocks.{i}.attention.project_in[query]",
    "encoder.layer.{i}.attention.self.key_proj": "encoder.blocks.{i}.attention.project_in[key]",
    "encoder.layer.{i}.attention.self.value_proj": "encoder.blocks.{i}.attention.project_in[value]",
    "encoder.layer.{i}.attention.self.pos_query_proj": "encoder.blocks.{i}.attention.project_positions.source[query]",
    "encoder.layer.{i}.attention.self.pos_key_proj": "encoder.blocks.{i}.attention.project_positions.source[key]",
    "encoder.layer.{i}.attention.output.dense": "encoder.blocks.{i}.attention.project_out",
    "encoder.layer.{i}.attention.output.LayerNorm": "encoder.blocks.{i}.attention_norm",
    "encoder.layer.{i}.intermediate.dense": "encoder.blocks.{i}.feed_forward.up",
    "encoder.layer.{i}.output.dense": "encoder.blocks.{i}.feed_forward.down",
    "encoder.layer.{i}.output.LayerNorm": "encoder.blocks.{i}.feed_forward_norm",
}
_HEADS = {
    "DebertaV2Model": {},
    "DebertaV2ForSequenceClassification": {"pooler.dense": "head.pooler", "classifier": "head.classifier"},
    "DebertaV2ForTokenClassification": {"classifier": "head.classifier"},
    "DebertaV2ForQuestionAnswering": {"qa_outputs": "head.start_end"},
    "DebertaV2ForMaskedLM": {},
}
_LEGACY_MASKED = {
    "cls.predictions.transform.dense": "head.transform",
    "cls.predictions.transform.LayerNorm": "head.norm",
    "cls.predictions": "head.decoder",
}
_MASKED = {
    "lm_predictions.lm_head.dense": "head.transform",
    "lm_predictions.lm_head.LayerNorm": "head.norm",
    "lm_predictions.lm_head": "head.decoder",
}
ARCHITECTURES = tuple(_HEADS)
# Position numbers; tables that the config doesn't ask for; the copies of tied weights; heads and a pooler of training
# that no head here reads.
_IGNORED = (
    r"embeddings\.position_ids",
    r"embeddings\.position_embeddings\..*",
    r"encoder\.(rel_embeddings|LayerNorm)\..*",
    r"cls\.predictions\.decoder\..*",
    r"(mask_predictions|pooler)\..*",
)


@dataclass(frozen=True, slots=True)
class DebertaV2Config(BertConfig):
    """BERT's, with what attention knows of distances: a table of 2 `span` rows, if there are `terms` to read it.

    `num_buckets` is 0 where each distance has its own row; `max_distance` is where the last bucket begins.
    """

    table_width: int
    has_positions: bool
    has_relative: bool
    terms: tuple[Term, ...]
    is_shared: bool
    has_relative_norm: bool
    num_buckets: int
    max_distance: int
    convolution_size: int
    convolution_groups: int
    convolution_activation: str
    pooler_activation: str

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "DebertaV2Config":
        """Raises: CheckpointError for a key that is missing or wrong, or for a part that DeBERTa-v2 has not."""
        width, num_heads = require_heads(config, "hidden_size", "num_attention_heads")
        refuse_other(config, attention_head_size=(width // num_heads, None), pooler_hidden_size=(width, None))
        max_positions = require_count(config, "max_position_embeddings", most=MAX_POSITIONS)
        has_relative = bool(config.get("relative_attention"))
        relative_norms = _words(config, "norm_rel_ebd", ("none", "layer_norm"))
        # These three say "none" as 0 or -1.
        max_distance = require_count(config, "max_relative_positions", -1, least=-1, most=MAX_POSITIONS)
        num_buckets = require_count(config, "position_buckets", -1, least=-1, most=MAX_POSITIONS)
        convolution_size = require_count(config, "conv_kernel_size", 0, least=-1)
        if num_buckets == 1:
            raise CheckpointError("the checkpoint's position_buckets is 1; served: two and more")
        if convolution_size > 0 and convolution_size % 2 == 0:
            raise CheckpointError(f"the checkpoint's conv_kernel_size is {convolution_size}; served: odd sizes")
        convolution_groups = require_count(config, "conv_groups", 1)
        if width % convolution_groups:
            raise CheckpointError(
                f"the checkpoint's hidden_size, {width}, can't be cut into {convolution_groups} groups"
            )
        return cls(
            vocabulary_size=require_count(config, "vocab_size", most=MAX_VOCABULARY),
            max_positions=max_positions,
            num_segments=require_count(config, "type_vocab_size", 0, least=0),
            width=width,
            num_blocks=require_count(config, "num_hidden_layers", most=MAX_BLOCKS),
            num_heads=num_heads,
            inner_width=require_count(config, "intermediate_size"),
            activation=require_text(config, "hidden_act"),
            epsilon=require_number(config, "layer_norm_eps"),
            num_labels=bert.count_labels(config),
            table_width=require_count(config, "embedding_size", width),
            has_positions=bool(config.get("position_biased_input", True)),
            has_relative=has_relative,
            terms=_words(config, "pos_att_type", ("c2p", "p2c")),
            is_shared=bool(config.get("share_att_key")),
            has_relative_norm="layer_norm" in relative_norms,
            num_buckets=max(num_buckets, 0),
            max_distance=max_distance if max_distance >= 1 else max_positions,
            convolution_size=max(convolution_size, 0),
            convolution_groups=convolution_groups,
            convolution_activation=require_text(config, "conv_act", "tanh"),
            pooler_activation=require_text(config, "pooler_hidden_act", "gelu"),
        )

    @property
    def attention_spec(self) -> AttentionSpec:
        """Scores are a sum of content's and a term's each, so the scale counts them (He et al., 2020, §3.1)."""
        head_width = self.width // self.num_heads
        scale = (head_width * (1 + len(self.terms))) ** -0.5
        return AttentionSpec(self.num_heads, self.num_heads, head_width, scale, is_causal=False)

    @property
    def span(self) -> int:
        return self.num_buckets or self.max_distance

    def norm(self) -> LayerNorm:
        return LayerNorm(self.width, self.epsilon)


def build(config: Mapping[str, Any], architecture: str, device: torch.device) -> EncoderModel:
    """An encoder with the head that the architecture names; weights are empty.

    Raises: CheckpointError for a head with a table of its own.
    """
    c = DebertaV2Config.read(config)
    if architecture == "DebertaV2ForMaskedLM":
        refuse_other(config, tie_word_embeddings=(True, None))
    embeddings = OptionalEmbeddings(
        Embedding(c.vocabulary_size, c.table_width),
        c.norm(),
        positions=Embedding(c.max_positions, c.table_width) if c.has_positions else None,
        segments=Embedding(c.num_segments, c.table_width) if c.num_segments else None,
        projection=Linear(c.table_width, c.width, has_bias=False) if c.table_width != c.width else None,
    )
    blocks = [
        _block(c, attention, is_convolved=i == 0 and c.convolution_size > 0)
        for i, attention in enumerate(_attentions(c, device))
    ]
    head = bert.compose_head(c, architecture, embeddings.tokens, pooler=c.pooler_activation, transform=c.activation)
    return EncoderModel(Encoder(embeddings, blocks), head, c)


def weights(config: Mapping[str, Any], architecture: str) -> WeightMap:
    entries: dict[str, str] = {**_BODY, **_HEADS[architecture]}
    ignored: tuple[str, ...] = _IGNORED
    is_legacy = config.get("legacy")
    if architecture != "DebertaV2ForMaskedLM":
        ignored = (*ignored, r"(cls|lm_predictions)\..*")
    elif is_legacy is None:
        entries |= _LEGACY_MASKED | _MASKED
    else:
        entries |= _LEGACY_MASKED if is_legacy else _MASKED
        ignored = (*ignored, r"lm_predictions\..*" if is_legacy else r"cls\..*")
    return WeightMap(entries, optional_prefix="deberta.", ignored=ignored)


def _words(config: Mapping[str, Any], key: str, known: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list of words, or one text with bars between them; in the order in which they are known."""
    value = config.get(key) or ()
    listed = value.split("|") if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(word, str) for word in listed):
        raise CheckpointError(f"the checkpoint's {key} is {value!r}; served: {', '.join(known)}")
    words = [word.strip().lower() for word in listed]
    if unknown := [word for word in words if word not in known]:
        raise CheckpointError(f"the checkpoint's {key} is {value!r}, with {unknown[0]!r}; served: {', '.join(known)}")
    return tuple(word for word in known if word in words)


def _block(
    c: DebertaV2Config, attention: MultiHeadAttention | DisentangledAttention, *, is_convolved: bool
) -> EncoderBlock:
    feed_forward = FeedForward(c.width, c.inner_width, c.activation, has_bias=True)
    if not is_convolved:
        return EncoderBlock(attention, c.norm(), feed_forward, c.norm())
    return ConvolvedEncoderBlock(
        attention,
        c.norm(),
        feed_forward,
        c.norm(),
        convolution=Convolution(c.width, c.convolution_size, c.convolution_groups),
        convolution_activation=Activation(c.convolution_activation),
        convolution_norm=c.norm(),
    )


def _attentions(c: DebertaV2Config, device: torch.device) -> Sequence[MultiHeadAttention | DisentangledAttention]:
    """Plain ones where nothing reads a table of distances; the scale is as if something did."""
    if not (c.has_relative and c.terms):
        return [
            MultiHeadAttention(c.width, c.attention_spec, select_kernel(device), has_bias=True)
            for _ in range(c.num_blocks)
        ]
    bucket_J = log_buckets(c.max_positions, c.num_buckets, c.max_distance)
    positions = Positions(PositionTable(c.span, c.width, bucket_J), c.norm() if c.has_relative_norm else None)
    return [
        DisentangledAttention(c.width, c.attention_spec, positions, c.terms, bucket_J, is_shared=c.is_shared)
        for _ in range(c.num_blocks)
    ]
