"""A Hugging Face folder: config.json, *.safetensors (one file or shards with an index), tokenizer.json."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.errors import CheckpointError
from model.kernels.native.matrix import Source
from model.tokenizer import Tokenizer

_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


class SafetensorsCheckpoint:
    """Files are mapped and read a tensor at a time. Raises: CheckpointError for whatever is missing or broken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: Mapping[str, Any] = _json(path / "config.json")
        self.generation_config: Mapping[str, Any] = _optional_json(path / "generation_config.json")
        architectures = self.config.get("architectures")
        if not isinstance(architectures, list) or [type(name) for name in architectures] != [str]:
            raise CheckpointError(f"{path / 'config.json'}: `architectures` is not a list of one name")
        self.architecture: str = architectures[0]
        self._tokenizer_config = _optional_json(path / "tokenizer_config.json")
        self._special_tokens_map = _optional_json(path / "special_tokens_map.json")
        self._files = {name: opened for shard in self._shards() for name, opened in shard.items()}
        if not self._files:
            raise CheckpointError(f"{path}: the weights hold no tensor")

    def _shards(self) -> list[dict[str, tuple[Any, Path]]]:
        index_path = self.path / "model.safetensors.index.json"
        if not index_path.exists():
            files = [self.path / "model.safetensors"]
            if not files[0].exists():
                pickles = sorted(self.path.glob("*.bin")) + sorted(self.path.glob("*.pt"))
                reason = (
                    f"{pickles[0].name} is a pickle, which can run code: convert it" if pickles else "no weights at all"
                )
                raise CheckpointError(f"{self.path}: model.safetensors is not there ({reason})")
            return [_opened(files[0])]
        placed = _json(index_path).get("weight_map")
        if not isinstance(placed, dict) or not all(isinstance(file_name, str) for file_name in placed.values()):
            raise CheckpointError(f"{index_path}: there is no `weight_map` of tensors to files")
        shards: dict[str, dict[str, tuple[Any, Path]]] = {}
        for file_name in sorted(set(placed.values())):
            # A shard is a file of this folder, never a path that leads elsewhere.
            if Path(file_name).name != file_name:
                raise CheckpointError(f"{index_path}: {file_name!r} is not a file name")
            if not (self.path / file_name).is_file():
                raise CheckpointError(f"{index_path}: the shard {file_name} is not there")
            shards[file_name] = _opened(self.path / file_name)
        for name, file_name in placed.items():
            if name not in shards[file_name]:
                raise CheckpointError(f"{index_path}: {name} is not in {file_name}")
        for file_name, shard in shards.items():
            for name in shard:
                if placed.get(name) != file_name:
                    elsewhere = f"lies in {placed[name]} too" if name in placed else "is not in the index"
                    raise CheckpointError(f"{self.path / file_name}: {name} {elsewhere}")
        return list(shards.values())

    @cached_property
    def chat_template(self) -> str | None:
        template = self.path / "chat_template.jinja"
        if template.exists():
            return _text(template)
        return self._text_of("chat_template", _default_template(self._tokenizer_config.get("chat_template")))

    @cached_property
    def digest(self) -> str:
        """sha256 of the weights, shards in order of name."""
        sums = hashlib.sha256()
        for path in sorted({path for _, path in self._files.values()}):
            with path.open("rb") as file:
                while chunk := file.read(1 << 22):
                    sums.update(chunk)
        return sums.hexdigest()

    @cached_property
    def weight_type(self) -> str:
        types = Counter(file.get_slice(name).get_dtype() for name, (file, _) in self._files.items())
        most_common = types.most_common(1)[0][0]
        return _TYPES.get(most_common, most_common)

    @property
    def unpacked_types(self) -> tuple[str, ...]:
        slices = [file.get_slice(name) for name, (file, _) in self._files.items()]
        return ("F64",) if any(s.get_dtype() == "F64" and len(s.get_shape()) > 1 for s in slices) else ()

    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._place(name)[0].get_slice(name).get_shape())

    def num_bytes(self, name: str) -> int:
        dtype = self._place(name)[0].get_slice(name).get_dtype()
        bits = re.search(r"\d+", dtype)
        return math.prod(self.shape(name)) * int(bits[0] if bits else 8) // 8

    def read(self, name: str) -> Tensor:
        file, path = self._place(name)
        try:
            tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: {name} can't be read: {error}") from error
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: {name} holds {str(tensor.dtype).removeprefix('torch.')}, not floats")
        return tensor

    def source(self, name: str) -> Source:
        return Source.of(self.read(name))

    def release(self) -> None:
        """Nothing: the library that maps the files lets go of them as a whole, with this checkpoint."""

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(
            self.path / "tokenizer.json",
            bos_token=self._token("bos_token"),
            eos_token=self._token("eos_token"),
            mask_token=self._token("mask_token"),
            unknown_token=self._token("unk_token"),
        )

    def _token(self, key: str) -> str | None:
        """A special token of tokenizer_config.json, or of the older file: a string, or an object with its `content`."""
        value = self._tokenizer_config.get(key, self._special_tokens_map.get(key))
        return self._text_of(key, value.get("content") if isinstance(value, dict) else value)

    def _text_of(self, key: str, value: Any) -> str | None:
        if value is not None and not isinstance(value, str):
            raise CheckpointError(f"{self.path / 'tokenizer_config.json'}: `{key}` is not a text")
        return value

    def _place(self, name: str) -> tuple[Any, Path]:
        if name not in self._files:
            raise CheckpointError(f"{self.path}: there is no tensor {name}")
        return self._files[name]


def _opened(path: Path) -> dict[str, tuple[Any, Path]]:
    """The tensors of one file, by name."""
    try:
        file: Any = safe_open(path, framework="pt")
        return dict.fromkeys(file.offset_keys(), (file, path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a text: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def _optional_json(path: Path) -> dict[str, Any]:
    return _json(path) if path.exists() else {}


def _default_template(value: Any) -> Any:
    """A chat template is one text, or a list of named ones."""
    if not isinstance(value, list):
        return value
    named = [entry for entry in value if isinstance(entry, dict) and entry.get("name") == "default"]
    return named[0].get("template") if named else None
