"""A GGUF file of a Llama: config, tokenizer, chat template and block-quantised weights in one file."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from model.checkpoints.gguf_header import TensorInfo, read_header
from model.checkpoints.gguf_tokenizer import read_tokenizer
from model.errors import CheckpointError, UnsupportedArchitecture
from model.tokenizer import Tokenizer

_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_PLAIN_TYPES = {GGMLQuantizationType.F32: numpy.float32, GGMLQuantizationType.F16: numpy.float16}
_ROPE_FACTORS = "rope_freqs.weight"


class GGUFCheckpoint:
    """Blocks stay in the mapped file until they are read. Raises: CheckpointError for whatever is missing or broken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path)
        self._metadata, self._file = header.metadata, header.file
        family = self._metadata.get("general.architecture")
        if family != "llama":
            raise UnsupportedArchitecture(f"{path}: a GGUF file of {family!r} is not served; served: 'llama'")
        if _ROPE_FACTORS in header.tensors:
            raise CheckpointError(f"{path}: stretched rotary positions ({_ROPE_FACTORS}) are not read from GGUF")
        self.architecture = "LlamaForCausalLM"
        self._infos = {_textbook_name(name): info for name, info in header.tensors.items()}
        self.config: Mapping[str, Any] = self._config()
        self.generation_config: Mapping[str, Any] = {"eos_token_id": self._stop_ids()}
        self.chat_template: str | None = self._metadata.get("tokenizer.chat_template")

    def _config(self) -> dict[str, Any]:
        num_heads = self._required("llama.attention.head_count")
        width = self._required("llama.embedding_length")
        config = {
            "hidden_size": width,
            "intermediate_size": self._required("llama.feed_forward_length"),
            "num_hidden_layers": self._required("llama.block_count"),
            "num_attention_heads": num_heads,
            "num_key_value_heads": self._metadata.get("llama.attention.head_count_kv", num_heads),
            "head_dim": self._metadata.get("llama.attention.key_length", width // num_heads),
            "rms_norm_eps": self._required("llama.attention.layer_norm_rms_epsilon"),
            "rope_theta": self._metadata.get("llama.rope.freq_base", 10_000.0),
            "max_position_embeddings": self._required("llama.context_length"),
            "vocab_size": len(self._required("tokenizer.ggml.tokens")),
            "hidden_act": "silu",
            "tie_word_embeddings": "lm_head.weight" not in self._infos,
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self._infos,
        }
        scaling = self._metadata.get("llama.rope.scaling.type", "none")
        if scaling == "linear":
            config["rope_scaling"] = {"rope_type": "linear", "factor": self._required("llama.rope.scaling.factor")}
        elif scaling != "none":
            raise CheckpointError(f"{self.path}: rotary positions stretched by {scaling!r} are not read from GGUF")
        return config

    def _stop_ids(self) -> list[int]:
        keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
        return sorted({self._metadata[key] for key in keys if key in self._metadata})

    def _required(self, key: str) -> Any:
        if key not in self._metadata:
            raise CheckpointError(f"{self.path}: the metadata lacks {key!r}")
        return self._metadata[key]

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self._file).hexdigest()

    @cached_property
    def weight_type(self) -> str:
        matrices = Counter(info.block_type.name for info in self._infos.values() if len(info.shape) > 1)
        return matrices.most_common(1)[0][0]

    def names(self) -> frozenset[str]:
        return frozenset(self._infos)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._infos[name].shape

    def blocks(self, name: str) -> tuple[TensorInfo, memoryview]:
        """A tensor as it lies in the file: its type, its shape and its bytes, in llama.cpp's order of rows."""
        info = self._infos[name]
        return info, memoryview(self._file)[info.offset : info.offset + info.num_bytes]

    def read(self, name: str) -> Tensor:
        info, raw = self.blocks(name)
        values = self._dequantized(name, info, raw)
        tensor = torch.from_numpy(values.reshape(info.shape))
        if match := re.fullmatch(r"model\.layers\.\d+\.self_attn\.([qk])_proj\.(weight|bias)", name):
            heads = "num_attention_heads" if match[1] == "q" else "num_key_value_heads"
            return _unpermuted(tensor, self.config[heads])
        return tensor

    def _dequantized(self, name: str, info: TensorInfo, raw: memoryview) -> numpy.ndarray[Any, Any]:
        if info.block_type in _PLAIN_TYPES:
            return numpy.frombuffer(raw, dtype=_PLAIN_TYPES[info.block_type]).copy()
        try:
            rows = numpy.frombuffer(raw, dtype=numpy.uint8).reshape(*info.shape[:-1], -1)
            return numpy.ascontiguousarray(dequantize(rows, info.block_type))
        except NotImplementedError as error:
            raise CheckpointError(f"{self.path}: {name}: blocks of {info.block_type.name} can't be read") from error

    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.path, self._metadata)


def _textbook_name(name: str) -> str:
    """llama.cpp's name of a tensor in the checkpoint's own words; an unknown one stays as it is."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        return f"model.layers.{match[1]}.{_BLOCK_NAMES.get(match[2], match[2])}.{match[3]}"
    stem, _, suffix = name.rpartition(".")
    return f"{_OTHER_NAMES.get(stem, stem)}.{suffix}"


def _unpermuted(tensor: Tensor, num_heads: int) -> Tensor:
    """Undoes the converter's order of rows: it interleaves the two halves of each head for its own rotary layout."""
    pairs = tensor.unflatten(0, (num_heads, -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2).contiguous()
