"""GPT-2 (Radford et al., 2019): pre-norm, causal, learned positions, one fused q k v."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from model.attention import MultiHeadAttention
from model.block import DecoderBlock
from model.decoder import CausalLanguageModel, Decoder
from model.embeddings import PositionedEmbeddings
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
from model.heads import LanguageModelHead
from model.kernels import select_kernel
from model.linear import Linear
from model.metadata import AttentionSpec
from model.normalization import LayerNorm

ARCHITECTURES = ("GPT2LMHeadModel",)
_PRODUCTS = {
    "h.{i}.attn.c_attn": "decoder.blocks.{i}.attention.project_in",
    "h.{i}.attn.c_proj": "decoder.blocks.{i}.attention.project_out",
    "h.{i}.crossattention.q_attn": "decoder.blocks.{i}.cross_attention.project_in",
    "h.{i}.crossattention.c_attn": "decoder.blocks.{i}.cross_attention.project_memory",
    "h.{i}.crossattention.c_proj": "decoder.blocks.{i}.cross_attention.project_out",
    "h.{i}.mlp.c_fc": "decoder.blocks.{i}.feed_forward.up",
    "h.{i}.mlp.c_proj": "decoder.blocks.{i}.feed_forward.down",
}
_TABLES_AND_NORMS = {
    "wte": "decoder.embeddings.tokens",
    "wpe": "decoder.embeddings.positions",
    "h.{i}.ln_1": "decoder.blocks.{i}.attention_norm",
    "h.{i}.ln_cross_attn": "decoder.blocks.{i}.cross_attention_norm",
    "h.{i}.ln_2": "decoder.blocks.{i}.feed_forward_norm",
    "ln_f": "decoder.norm",
}
# Causal masks that old exports carry, and the tied head's copy of the token table.
_IGNORED = (r"h\.\d+\.(attn|crossattention)\.(bias|masked_bias)", r"lm_head\.weight")


@dataclass(frozen=True, slots=True)
class GPT2Config:
    """What a checkpoint's config.json says, in this house's words."""

    vocabulary_size: int
    max_positions: int
    width: int
    num_blocks: int
    num_heads: int
    inner_width: int
    activation: str
    epsilon: float
    has_cross_attention: bool

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "GPT2Config":
        """Raises: CheckpointError for a key that is missing or wrong, or an attention scale that is not served."""
        refuse_other(
            config,
            scale_attn_by_inverse_layer_idx=(False, None),
            scale_attn_weights=(True, None),
            tie_word_embeddings=(True, None),
        )
        width, num_heads = require_heads(config, "n_embd", "n_head")
        return cls(
            vocabulary_size=require_count(config, "vocab_size", most=MAX_VOCABULARY),
            max_positions=require_count(config, "n_positions", most=MAX_POSITIONS),
            width=width,
            num_blocks=require_count(config, "n_layer", most=MAX_BLOCKS),
            num_heads=num_heads,
            inner_width=require_count(config, "n_inner", 4 * width),
            activation=require_text(config, "activation_function"),
            epsilon=require_number(config, "layer_norm_epsilon"),
            has_cross_attention=bool(config.get("add_cross_attention")),
        )

    def attention_spec(self, *, is_causal: bool) -> AttentionSpec:
        head_width = self.width // self.num_heads
        return AttentionSpec(self.num_heads, self.num_heads, head_width, head_width**-0.5, is_causal=is_causal)


def build(config: Mapping[str, Any], architecture: str, device: torch.device) -> CausalLanguageModel:
    """A causal language model whose head is its token table; weights are empty."""
    c = GPT2Config.read(config)
    embeddings = PositionedEmbeddings(c.vocabulary_size, c.max_positions, c.width)
    decoder = Decoder(
        embeddings,
        [_block(c, device) for _ in range(c.num_blocks)],
        LayerNorm(c.width, c.epsilon),
    )
    output = Linear(c.width, c.vocabulary_size, has_bias=False)
    output.weight = embeddings.tokens.weight
    return CausalLanguageModel(decoder, LanguageModelHead(output), c)


def weights(config: Mapping[str, Any], architecture: str) -> WeightMap:
    return WeightMap(
        {**_PRODUCTS, **_TABLES_AND_NORMS},
        optional_prefix="transformer.",
        ignored=_IGNORED,
        transposed=frozenset(_PRODUCTS),
    )


def _block(c: GPT2Config, device: torch.device) -> DecoderBlock:
    def attention(*, is_cross: bool) -> MultiHeadAttention:
        spec = c.attention_spec(is_causal=not is_cross)
        return MultiHeadAttention(c.width, spec, select_kernel(device), has_bias=True, is_cross=is_cross)

    return DecoderBlock(
        attention=attention(is_cross=False),
        attention_norm=LayerNorm(c.width, c.epsilon),
        feed_forward=FeedForward(c.width, c.inner_width, c.activation, has_bias=True),
        feed_forward_norm=LayerNorm(c.width, c.epsilon),
        cross_attention=attention(is_cross=True) if c.has_cross_attention else None,
        cross_attention_norm=LayerNorm(c.width, c.epsilon) if c.has_cross_attention else None,
    )
