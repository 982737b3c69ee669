"""A Llama's config.json and generation_config.json, from the metadata of its GGUF file.

Source: the GGUF specification's keys (ggml, docs/gguf.md), written there by llama.cpp's converter.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.gguf_metadata import GGUFMetadata
from model.errors import UnsupportedArchitecture
from model.rotary import rotary_frequencies

# Llama 3.1 and later: a file has the factor of each pair of features, but not what they were computed from.
_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# A model keeps a table of angles of every position, so a broken length would be memory; the longest known one.
_MAX_POSITIONS = 1 << 22


def read_config(
    metadata: GGUFMetadata, shapes: Mapping[str, tuple[int, ...]], rope_factors: Tensor | None
) -> dict[str, Any]:
    """The keys of Hugging Face's LlamaConfig. `shapes` are those of the tensors that there are, in its words.

    Raises: CheckpointError for metadata that is missing, of another type or at odds with the tensors, or for an
    unknown stretch of positions.
    """
    width, num_heads = metadata.size("llama.embedding_length"), metadata.size("llama.attention.head_count")
    if metadata.has("llama.expert_count"):
        raise UnsupportedArchitecture(str(metadata.error("a mixture of experts is not served")))
    head_width = metadata.size("llama.attention.key_length", width // num_heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if metadata.size(key, head_width) != head_width:
            raise metadata.error(f"{key} is not the width of a head, {head_width}")
    num_positions = metadata.size("llama.context_length")
    if num_positions > _MAX_POSITIONS:
        raise metadata.error(f"llama.context_length is {num_positions}; up to {_MAX_POSITIONS} are served")
    num_key_value_heads = metadata.size("llama.attention.head_count_kv", num_heads)
    num_blocks, inner_width = metadata.size("llama.block_count"), metadata.size("llama.feed_forward_length")
    expected = {
        "layers.0.self_attn.q_proj": (num_heads * head_width, width),
        "layers.0.self_attn.k_proj": (num_key_value_heads * head_width, width),
        "layers.0.mlp.gate_proj": (inner_width, width),
    }
    _check_sizes(metadata, shapes, num_blocks, {f"model.{name}.weight": shape for name, shape in expected.items()})
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner_width,
        "num_hidden_layers": num_blocks,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": head_width,
        "rms_norm_eps": metadata.number("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": (theta := metadata.number("llama.rope.freq_base", 10_000.0)),
        "rope_scaling": _rope_scaling(metadata, rope_factors, head_width, theta),
        "max_position_embeddings": num_positions,
        "vocab_size": len(metadata.tokens),
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in shapes,
        "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in shapes,
        "bos_token_id": metadata.token_id("bos"),
        "eos_token_id": metadata.token_id("eos"),
    }


def _check_sizes(
    metadata: GGUFMetadata,
    shapes: Mapping[str, tuple[int, ...]],
    num_blocks: int,
    expected: Mapping[str, tuple[int, int]],
) -> None:
    """Sizes that the tensors contradict are refused before anyone makes a model of them."""
    found = {name.split(".")[2] for name in shapes if name.startswith("model.layers.")}
    if num_blocks > len(found):
        raise metadata.error(f"llama.block_count is {num_blocks}, but there are tensors of {len(found)} blocks")
    for name, shape in expected.items():
        if shapes.get(name, shape) != shape:
            raise metadata.error(f"{name} has shape {list(shapes[name])}, the metadata asks for {list(shape)}")


def read_generation_config(metadata: GGUFMetadata) -> dict[str, Any]:
    """Every token that ends an answer: of a text, of a turn, of a message."""
    ends = {end for name in ("eos", "eot", "eom") if (end := metadata.token_id(name)) is not None}
    return {"bos_token_id": metadata.token_id("bos"), "eos_token_id": sorted(ends)}


def _rope_scaling(
    metadata: GGUFMetadata, factors: Tensor | None, head_width: int, theta: float
) -> dict[str, Any] | None:
    if factors is not None:
        stretch = {**_LLAMA3, "factor": float(factors.max())}
        plain = rotary_frequencies(head_width, {"rope_theta": theta})
        expected = plain / rotary_frequencies(head_width, {"rope_theta": theta, **stretch})
        if factors.shape != expected.shape or not torch.allclose(factors.float(), expected, rtol=1e-3):
            raise metadata.error("the factors of its rotary positions (rope_freqs.weight) are not Llama 3's")
        return stretch
    # Older files name the factor alone, and mean a linear stretch.
    key = next((k for k in ("llama.rope.scaling.factor", "llama.rope.scale_linear") if metadata.has(k)), None)
    kind = metadata.text("llama.rope.scaling.type") or ("linear" if key else "none")
    if kind == "none":
        return None
    if kind != "linear" or key is None:
        raise metadata.error(f"rotary positions stretched by {kind!r} are not read from GGUF")
    return {"rope_type": "linear", "factor": metadata.number(key)}
