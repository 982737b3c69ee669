"""ModernBERT (Warner et al., 2024): pre-norm, rotary, gated, and most blocks see only the tokens around each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model.attention import MultiHeadAttention
from model.block import PreNormEncoderBlock
from model.embeddings import Embedding, NormedEmbeddings
from model.encoder import Encoder, EncoderModel
from model.errors import CheckpointError
from model.families import bert
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
from model.feed_forward import GatedFeedForward
from model.heads import (
    FirstToken,
    MaskedLanguageModel,
    MeanToken,
    SequenceClassifier,
    SpanExtractor,
    TokenClassifier,
    Transform,
)
from model.kernels import select_kernel
from model.metadata import AttentionSpec
from model.normalization import LayerNorm
from model.rotary import Rotary, rotary_frequencies

_BODY = {
    "embeddings.tok_embeddings": "encoder.embeddings.tokens",
    "embeddings.norm": "encoder.embeddings.norm",
    "layers.{i}.attn_norm": "encoder.blocks.{i}.attention_norm",
    "layers.{i}.attn.Wqkv": "encoder.blocks.{i}.attention.project_in",
    "layers.{i}.attn.Wo": "encoder.blocks.{i}.attention.project_out",
    "layers.{i}.mlp_norm": "encoder.blocks.{i}.feed_forward_norm",
    "layers.{i}.mlp.Wi": "encoder.blocks.{i}.feed_forward.gate_up",
    "layers.{i}.mlp.Wo": "encoder.blocks.{i}.feed_forward.down",
    "final_norm": "encoder.norm",
}
_HEADS = {
    "ModernBertModel": {},
    "ModernBertForSequenceClassification": {
        "head.dense": "head.pooler",
        "head.norm": "head.norm",
        "classifier": "head.classifier",
    },
    "ModernBertForTokenClassification": {
        "head.dense": "head.transform.dense",
        "head.norm": "head.transform.norm",
        "classifier": "head.classifier",
    },
    "ModernBertForQuestionAnswering": {
        "head.dense": "head.transform.dense",
        "head.norm": "head.transform.norm",
        "classifier": "head.start_end",
    },
    "ModernBertForMaskedLM": {"head.dense": "head.transform", "head.norm": "head.norm", "decoder": "head.decoder"},
}
ARCHITECTURES = tuple(_HEADS)
# The copy of the tied token table.
_IGNORED = (r"decoder\.weight",)
# A kind of attention, the key of its theta in configs that don't have `rope_parameters`, and what it is otherwise.
_THETAS = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}
_POOLS: dict[str, type[FirstToken | MeanToken]] = {"cls": FirstToken, "mean": MeanToken}


@dataclass(frozen=True, slots=True)
class ModernBertConfig:
    """What a checkpoint's config.json says, in this house's words.

    `kinds` has a word for each block, `rotary` the parameters of each kind; `window` counts tokens to each side.
    """

    vocabulary_size: int
    max_positions: int
    width: int
    num_heads: int
    inner_width: int
    kinds: tuple[str, ...]
    window: int
    rotary: Mapping[str, Mapping[str, Any]]
    activation: str
    head_activation: str
    epsilon: float
    has_norm_bias: bool
    has_attention_bias: bool
    has_feed_forward_bias: bool
    has_head_bias: bool
    has_decoder_bias: bool
    pooling: str
    num_labels: int

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "ModernBertConfig":
        """Raises: CheckpointError for a key that is missing or wrong, or an unknown kind of attention or of pooling."""
        refuse_other(config, classifier_pooling=(*_POOLS, None))
        width, num_heads = require_heads(config, "hidden_size", "num_attention_heads")
        return cls(
            vocabulary_size=require_count(config, "vocab_size", most=MAX_VOCABULARY),
            max_positions=require_count(config, "max_position_embeddings", most=MAX_POSITIONS),
            width=width,
            num_heads=num_heads,
            inner_width=require_count(config, "intermediate_size"),
            kinds=_kinds(config),
            window=require_count(config, "local_attention", most=MAX_POSITIONS) // 2,
            rotary={kind: _rotary(config, kind) for kind in _THETAS},
            activation=require_text(config, "hidden_activation", "gelu"),
            head_activation=require_text(config, "classifier_activation", "gelu"),
            epsilon=require_number(config, "norm_eps", 1e-5),
            has_norm_bias=bool(config.get("norm_bias")),
            has_attention_bias=bool(config.get("attention_bias")),
            has_feed_forward_bias=bool(config.get("mlp_bias")),
            has_head_bias=bool(config.get("classifier_bias")),
            has_decoder_bias=bool(config.get("decoder_bias", True)),
            pooling=config.get("classifier_pooling") or "cls",
            num_labels=bert.count_labels(config),
        )

    def attention_spec(self, kind: str) -> AttentionSpec:
        head_width = self.width // self.num_heads
        window = self.window if kind == "sliding_attention" else None
        return AttentionSpec(
            self.num_heads, self.num_heads, head_width, head_width**-0.5, is_causal=False, window=window
        )

    def norm(self) -> LayerNorm:
        return LayerNorm(self.width, self.epsilon, has_bias=self.has_norm_bias)


def build(config: Mapping[str, Any], architecture: str, device: torch.device) -> EncoderModel:
    """An encoder with the head that the architecture names; weights are empty.

    Raises: CheckpointError for a head with a table of its own.
    """
    c = ModernBertConfig.read(config)
    if architecture == "ModernBertForMaskedLM":
        refuse_other(config, tie_word_embeddings=(True, None))
    embeddings = NormedEmbeddings(Embedding(c.vocabulary_size, c.width), c.norm())
    turns = {kind: _turn(c, kind) for kind in set(c.kinds)}
    blocks = [_block(c, i, turns[kind], device) for i, kind in enumerate(c.kinds)]
    return EncoderModel(Encoder(embeddings, blocks, c.norm()), _head(c, architecture, embeddings.tokens), c)


def weights(config: Mapping[str, Any], architecture: str) -> WeightMap:
    return WeightMap({**_BODY, **_HEADS[architecture]}, optional_prefix="model.", ignored=_IGNORED)


def _kinds(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Each block's kind of attention: listed, or in older configs global every so many blocks."""
    num_blocks = require_count(config, "num_hidden_layers", most=MAX_BLOCKS)
    every = require_count(config, "global_attn_every_n_layers", 3)
    kinds = config.get("layer_types") or [
        "sliding_attention" if i % every else "full_attention" for i in range(num_blocks)
    ]
    if not isinstance(kinds, list) or len(kinds) != num_blocks or any(kind not in list(_THETAS) for kind in kinds):
        raise CheckpointError(
            f"the checkpoint's layer_types are {kinds!r}; served: {num_blocks} of {', '.join(_THETAS)}"
        )
    return tuple(kinds)


def _rotary(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """One dictionary a kind, or in older configs a theta a kind and one stretch for both."""
    key, theta = _THETAS[kind]
    return {
        "rope_theta": require_number(config, key, theta),
        **require_object(config, "rope_scaling", {}),
        **require_object(require_object(config, "rope_parameters", {}), kind, {}),
    }


def _turn(c: ModernBertConfig, kind: str) -> Rotary:
    spec = c.attention_spec(kind)
    return Rotary(spec, rotary_frequencies(spec.head_width, c.rotary[kind]), c.max_positions)


def _block(c: ModernBertConfig, i: int, rotary: Rotary, device: torch.device) -> PreNormEncoderBlock:
    """The first block's attention reads what the embeddings' norm gives."""
    return PreNormEncoderBlock(
        attention=MultiHeadAttention(
            c.width,
            c.attention_spec(c.kinds[i]),
            select_kernel(device),
            has_bias=c.has_attention_bias,
            rotary=rotary,
        ),
        attention_norm=c.norm() if i > 0 else nn.Identity(),
        feed_forward=GatedFeedForward(c.width, c.inner_width, c.activation, has_bias=c.has_feed_forward_bias),
        feed_forward_norm=c.norm(),
    )


def _head(c: ModernBertConfig, architecture: str, tokens: Embedding) -> nn.Module | None:
    if architecture == "ModernBertForMaskedLM":
        return MaskedLanguageModel(
            c.width,
            c.head_activation,
            c.norm(),
            tokens,
            has_transform_bias=c.has_head_bias,
            has_decoder_bias=c.has_decoder_bias,
        )
    if architecture == "ModernBertForSequenceClassification":
        return SequenceClassifier(
            c.width,
            c.num_labels,
            c.head_activation,
            pool=_POOLS[c.pooling](),
            has_pooler_bias=c.has_head_bias,
            norm=c.norm(),
        )
    if architecture == "ModernBertForTokenClassification":
        return TokenClassifier(c.width, c.num_labels, _transform(c))
    if architecture == "ModernBertForQuestionAnswering":
        return SpanExtractor(c.width, _transform(c))
    return None


def _transform(c: ModernBertConfig) -> Transform:
    return Transform(c.width, c.head_activation, c.norm(), has_bias=c.has_head_bias)
