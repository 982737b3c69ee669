"""A GGUF file of a Llama: config, tokenizer, chat template and block-quantised weights in one file."""

import hashlib
import mmap
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from model.checkpoints.gguf_config import read_config, read_generation_config
from model.checkpoints.gguf_header import TensorInfo, read_header
from model.checkpoints.gguf_metadata import GGUFMetadata
from model.checkpoints.gguf_tokenizer import read_tokenizer
from model.errors import CheckpointError, UnsupportedArchitecture
from model.kernels.native.matrix import EXACT, Source
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
_PLAIN_TYPES = {
    GGMLQuantizationType.F64: torch.float64,
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_PACKED_TYPES = {"F32", "F16", "BF16", *EXACT}
_ROPE_FACTORS = "rope_freqs.weight"
_HEADS = {"q": "num_attention_heads", "k": "num_key_value_heads"}
_STRIDE_BYTES = 1 << 24


class GGUFCheckpoint:
    """Blocks stay in the mapped file until they are read. Raises: CheckpointError for whatever is missing or broken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path)
        self._file = header.file
        self._metadata = GGUFMetadata(path, header.metadata)
        family = self._metadata.text("general.architecture")
        if family != "llama":
            raise UnsupportedArchitecture(f"{path}: a GGUF file of {family!r} is not served; served: 'llama'")
        if self._metadata.has("split.count") and self._metadata.size("split.count") > 1:
            raise CheckpointError(f"{path}: one of {self._metadata.size('split.count')} parts: merge them first")
        self.architecture = "LlamaForCausalLM"
        self._infos = {_textbook_name(name): info for name, info in header.tensors.items()}
        if not self._infos:
            raise CheckpointError(f"{path}: the file holds no tensor")
        # Not a weight but a part of the config, in a tensor's clothes.
        rope_factors = self.read(_ROPE_FACTORS) if _ROPE_FACTORS in self._infos else None
        self._infos.pop(_ROPE_FACTORS, None)
        shapes = {name: info.shape for name, info in self._infos.items()}
        self.config: Mapping[str, Any] = read_config(self._metadata, shapes, rope_factors)
        self.generation_config: Mapping[str, Any] = read_generation_config(self._metadata)
        self.chat_template = self._metadata.text("tokenizer.chat_template")

    @cached_property
    def digest(self) -> str:
        sums = hashlib.sha256()
        for begin in range(0, len(self._file), _STRIDE_BYTES):
            sums.update(memoryview(self._file)[begin : begin + _STRIDE_BYTES])
            self.release()
        return sums.hexdigest()

    @cached_property
    def weight_type(self) -> str:
        types = Counter(info.block_type for info in self._infos.values() if len(info.shape) > 1)
        most_common = types.most_common(1)[0][0] if types else GGMLQuantizationType.F32
        plain = _PLAIN_TYPES.get(most_common)
        return str(plain).removeprefix("torch.") if plain else most_common.name

    @property
    def unpacked_types(self) -> tuple[str, ...]:
        types = {info.block_type.name for info in self._infos.values() if len(info.shape) > 1}
        return tuple(sorted(types - _PACKED_TYPES))

    def names(self) -> frozenset[str]:
        return frozenset(self._infos)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._info(name).shape

    def num_bytes(self, name: str) -> int:
        return self._info(name).num_bytes

    def blocks(self, name: str) -> tuple[TensorInfo, memoryview]:
        """A tensor as it lies in the file: its type, its shape and its bytes, in llama.cpp's order of rows."""
        info = self._info(name)
        return info, memoryview(self._file)[info.offset : info.offset + info.num_bytes]

    def read(self, name: str) -> Tensor:
        info, raw = self.blocks(name)
        tensor = self._values(name, info, raw).reshape(info.shape)
        num_heads = self._num_permuted_heads(name)
        return tensor if num_heads is None else _unpermuted(tensor, num_heads)

    def source(self, name: str) -> Source:
        info, raw = self.blocks(name)
        num_rows, num_columns = info.shape
        num_heads = self._num_permuted_heads(name)
        order = None if num_heads is None else _unpermuted(torch.arange(num_rows), num_heads)
        if info.block_type.name in _PACKED_TYPES:
            return Source(raw, info.block_type.name, num_rows, num_columns, order)
        plain = Source.of(self._values(name, info, raw).reshape(info.shape))
        if plain.is_exact_in_bf16() and isinstance(plain.content, Tensor):
            plain = Source.of(plain.content.to(torch.bfloat16))
        return replace(plain, order=order)

    def release(self) -> None:
        self._file.madvise(mmap.MADV_DONTNEED)

    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self._metadata)

    def _num_permuted_heads(self, name: str) -> int | None:
        """How many heads' rows the converter has interleaved in a tensor; None where it left them as they were."""
        match = re.fullmatch(r"model\.layers\.\d+\.self_attn\.([qk])_proj\.(weight|bias)", name)
        if match is None:
            return None
        num_rows, num_heads = self.shape(name)[0], self.config[_HEADS[match[1]]]
        if num_rows % (2 * num_heads):
            raise CheckpointError(f"{self.path}: {name}: {num_rows} rows are not {num_heads} heads of pairs")
        return int(num_heads)

    def _info(self, name: str) -> TensorInfo:
        if name not in self._infos:
            raise CheckpointError(f"{self.path}: there is no tensor {name}")
        return self._infos[name]

    def _values(self, name: str, info: TensorInfo, raw: memoryview) -> Tensor:
        if info.block_type in _PLAIN_TYPES:
            return torch.frombuffer(bytearray(raw), dtype=_PLAIN_TYPES[info.block_type])
        rows = numpy.frombuffer(raw, dtype=numpy.uint8).reshape(*info.shape[:-1], -1)
        try:
            # A broken scale makes numbers that are none, which is no warning's business.
            with numpy.errstate(all="ignore"):
                return torch.from_numpy(dequantize(rows, info.block_type))
        except NotImplementedError as error:
            raise CheckpointError(f"{self.path}: {name}: blocks of {info.block_type.name} can't be read") from error


def _textbook_name(name: str) -> str:
    """llama.cpp's name of a tensor in the checkpoint's own words; an unknown one stays as it is."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        return f"model.layers.{match[1]}.{_BLOCK_NAMES.get(match[2], match[2])}.{match[3]}"
    stem, dot, suffix = name.rpartition(".")
    return f"{_OTHER_NAMES.get(stem, stem)}{dot}{suffix}"


def _unpermuted(tensor: Tensor, num_heads: int) -> Tensor:
    """Undoes the converter's order of rows: it interleaves the two halves of each head for its own rotary layout."""
    pairs = tensor.unflatten(0, (num_heads, -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2).contiguous()
