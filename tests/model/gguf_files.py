"""Small GGUF files: a random Llama and vocabularies, written with the format's own library."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy
from gguf.constants import GGMLQuantizationType as BlockType

WIDTH, INNER, NUM_HEADS, NUM_KEY_VALUE_HEADS, NUM_LAYERS = 32, 64, 4, 2, 2
TOKENS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(29))]


def llama_metadata(**changes: Any) -> dict[str, Any]:
    """A whole Llama's keys; dots stand as double underscores in `changes`, and None leaves a key out."""
    values: dict[str, Any] = {
        "llama.block_count": NUM_LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": NUM_HEADS,
        "llama.attention.head_count_kv": NUM_KEY_VALUE_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10_000.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(TOKENS))],
        "tokenizer.ggml.token_type": [2, 3, 3, *([1] * (len(TOKENS) - 3))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in values.items() if value is not None}


def llama_tensors(seed: int = 0) -> dict[str, numpy.ndarray]:
    """A random Llama under llama.cpp's names."""
    random = numpy.random.default_rng(seed)
    head_width = WIDTH // NUM_HEADS
    shapes = {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,), "output": (len(TOKENS), WIDTH)}
    for i in range(NUM_LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm": (WIDTH,),
            f"blk.{i}.attn_q": (NUM_HEADS * head_width, WIDTH),
            f"blk.{i}.attn_k": (NUM_KEY_VALUE_HEADS * head_width, WIDTH),
            f"blk.{i}.attn_v": (NUM_KEY_VALUE_HEADS * head_width, WIDTH),
            f"blk.{i}.attn_output": (WIDTH, WIDTH),
            f"blk.{i}.ffn_norm": (WIDTH,),
            f"blk.{i}.ffn_gate": (INNER, WIDTH),
            f"blk.{i}.ffn_up": (INNER, WIDTH),
            f"blk.{i}.ffn_down": (WIDTH, INNER),
        }
    return {f"{name}.weight": random.standard_normal(shape, dtype=numpy.float32) for name, shape in shapes.items()}


def write(
    path: Path,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, numpy.ndarray] | None = None,
    blocks: Mapping[str, tuple[numpy.ndarray, BlockType]] | None = None,
    family: str = "llama",
) -> Path:
    """Writes `tensors` as they are and `blocks` as packed bytes of a type."""
    writer = gguf.GGUFWriter(path, family)
    for key, value in (llama_metadata() if metadata is None else metadata).items():
        _add(writer, key, value)
    for name, values in (llama_tensors() if tensors is None else tensors).items():
        writer.add_tensor(name, values)
    for name, (packed, block_type) in (blocks or {}).items():
        writer.add_tensor(name, packed, raw_dtype=block_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)
