"""Llama (Touvron et al., 2023), SmolLM2 and all of their shape: pre-norm RMS, rotary, gated, grouped-query."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from model.attention import MultiHeadAttention
from model.block import DecoderBlock
from model.decoder import CausalLanguageModel, Decoder
from model.embeddings import TokenEmbeddings
from model.errors import CheckpointError
from model.families.config import (
    MAX_BLOCKS,
    MAX_HEADS,
    MAX_POSITIONS,
    MAX_VOCABULARY,
    require_count,
    require_heads,
    require_number,
    require_object,
    require_text,
)
from model.families.weight_map import WeightMap
from model.feed_forward import GatedFeedForward
from model.heads import LanguageModelHead
from model.kernels import select_kernel
from model.linear import Linear
from model.metadata import AttentionSpec
from model.normalization import RMSNorm
from model.rotary import Rotary, rotary_frequencies

ARCHITECTURES = ("LlamaForCausalLM",)
_ENTRIES = {
    "model.embed_tokens": "decoder.embeddings.tokens",
    "model.layers.{i}.input_layernorm": "decoder.blocks.{i}.attention_norm",
    "model.layers.{i}.self_attn.q_proj": "decoder.blocks.{i}.attention.project_in[query]",
    "model.layers.{i}.self_attn.k_proj": "decoder.blocks.{i}.attention.project_in[key]",
    "model.layers.{i}.self_attn.v_proj": "decoder.blocks.{i}.attention.project_in[value]",
    "model.layers.{i}.self_attn.o_proj": "decoder.blocks.{i}.attention.project_out",
    "model.layers.{i}.post_attention_layernorm": "decoder.blocks.{i}.feed_forward_norm",
    "model.layers.{i}.mlp.gate_proj": "decoder.blocks.{i}.feed_forward.gate_up[gate]",
    "model.layers.{i}.mlp.up_proj": "decoder.blocks.{i}.feed_forward.gate_up[up]",
    "model.layers.{i}.mlp.down_proj": "decoder.blocks.{i}.feed_forward.down",
    "model.norm": "decoder.norm",
}
# Tables that can be computed.
_IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """What a checkpoint's config.json says, in this house's words."""

    vocabulary_size: int
    max_positions: int
    width: int
    num_blocks: int
    num_query_heads: int
    num_key_value_heads: int
    head_width: int
    inner_width: int
    activation: str
    epsilon: float
    rotary: Mapping[str, Any]
    has_attention_bias: bool
    has_feed_forward_bias: bool
    is_tied: bool

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "LlamaConfig":
        """Raises: CheckpointError for a key that is missing or wrong."""
        if config.get("head_dim") is None:
            width, num_heads = require_heads(config, "hidden_size", "num_attention_heads")
        else:
            width = require_count(config, "hidden_size")
            num_heads = require_count(config, "num_attention_heads", most=MAX_HEADS)
        num_key_value_heads = require_count(config, "num_key_value_heads", num_heads, most=num_heads)
        if num_heads % num_key_value_heads:
            raise CheckpointError(
                f"the checkpoint's num_key_value_heads, {num_key_value_heads}, don't divide {num_heads} heads"
            )
        # Older exports keep theta at the root and the stretch in `rope_scaling`; newer ones have one dictionary.
        rotary = {
            "rope_theta": require_number(config, "rope_theta", 10_000.0),
            **require_object(config, "rope_scaling", {}),
            **require_object(config, "rope_parameters", {}),
        }
        return cls(
            vocabulary_size=require_count(config, "vocab_size", most=MAX_VOCABULARY),
            max_positions=require_count(config, "max_position_embeddings", most=MAX_POSITIONS),
            width=width,
            num_blocks=require_count(config, "num_hidden_layers", most=MAX_BLOCKS),
            num_query_heads=num_heads,
            num_key_value_heads=num_key_value_heads,
            head_width=require_count(config, "head_dim", width // num_heads),
            inner_width=require_count(config, "intermediate_size"),
            activation=require_text(config, "hidden_act", "silu"),
            epsilon=require_number(config, "rms_norm_eps"),
            rotary=rotary,
            has_attention_bias=bool(config.get("attention_bias")),
            has_feed_forward_bias=bool(config.get("mlp_bias")),
            is_tied=bool(config.get("tie_word_embeddings")),
        )

    @property
    def attention_spec(self) -> AttentionSpec:
        return AttentionSpec(
            self.num_query_heads, self.num_key_value_heads, self.head_width, self.head_width**-0.5, is_causal=True
        )


def build(config: Mapping[str, Any], architecture: str, device: torch.device) -> CausalLanguageModel:
    """A causal language model; weights are empty, and a tied head holds the token table itself."""
    c = LlamaConfig.read(config)
    rotary = Rotary(c.attention_spec, rotary_frequencies(c.head_width, c.rotary), c.max_positions)
    embeddings = TokenEmbeddings(c.vocabulary_size, c.width)
    decoder = Decoder(
        embeddings,
        [_block(c, rotary, device) for _ in range(c.num_blocks)],
        RMSNorm(c.width, c.epsilon),
    )
    output = Linear(c.width, c.vocabulary_size, has_bias=False)
    if c.is_tied:
        output.weight = embeddings.tokens.weight
    return CausalLanguageModel(decoder, LanguageModelHead(output), c)


def weights(config: Mapping[str, Any], architecture: str) -> WeightMap:
    if config.get("tie_word_embeddings"):
        return WeightMap(_ENTRIES, ignored=(*_IGNORED, r"lm_head\.weight"))
    return WeightMap({**_ENTRIES, "lm_head": "head.output"}, ignored=_IGNORED)


def _block(c: LlamaConfig, rotary: Rotary, device: torch.device) -> DecoderBlock:
    return DecoderBlock(
        attention=MultiHeadAttention(
            c.width, c.attention_spec, select_kernel(device), has_bias=c.has_attention_bias, rotary=rotary
        ),
        attention_norm=RMSNorm(c.width, c.epsilon),
        feed_forward=GatedFeedForward(c.width, c.inner_width, c.activation, has_bias=c.has_feed_forward_bias),
        feed_forward_norm=RMSNorm(c.width, c.epsilon),
    )
