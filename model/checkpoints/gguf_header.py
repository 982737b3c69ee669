"""A quick reader of a GGUF file's header: metadata and where each tensor lies.

Source: the GGUF specification, versions 2 and 3, little endian (ggml, docs/gguf.md). The whole file is mapped; every
length is checked against its end before it is believed.

    magic | version | number of tensors | number of metadata | metadata ... | tensor infos ... | padding | tensor bytes
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from model.errors import CheckpointError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32
# The most entries of an array, or bytes of a text, that are believed: far above any vocabulary, far below memory.
_MAX_ENTRIES = 1 << 24


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. `shape` is rows first; ggml writes the fastest axis first."""

    block_type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """Everything before the tensor bytes."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    file: mmap.mmap


def read_header(path: Path) -> Header:
    """Raises: CheckpointError for a file that is missing, truncated, of another format or version."""
    try:
        with path.open("rb") as opened:
            file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from error
    try:
        return _Reader(file).header()
    except (struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: the GGUF header is truncated or broken: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


class _Reader:
    def __init__(self, file: mmap.mmap) -> None:
        self._file = file
        self._at = 0

    def header(self) -> Header:
        if self._file[:4] != b"GGUF":
            raise CheckpointError("not a GGUF file")
        self._at = 4
        version = self._scalar("I")
        if version not in (2, 3):
            raise CheckpointError(f"GGUF version {version} is not read; versions 2 and 3 are (little endian)")
        num_tensors, num_metadata = self._count(), self._count()
        metadata: dict[str, Any] = {}
        for _ in range(num_metadata):
            key = self._string()
            if key in metadata:
                raise CheckpointError(f"the metadata has {key!r} twice")
            metadata[key] = self._value(self._scalar("I"))
        infos: dict[str, TensorInfo] = {}
        for _ in range(num_tensors):
            name, info = self._tensor_info()
            if name in infos:
                raise CheckpointError(f"{name} is there twice")
            infos[name] = info
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment <= 0:
            raise CheckpointError(f"general.alignment is {alignment!r}")
        return Header(metadata, {name: self._placed(name, info, alignment) for name, info in infos.items()}, self._file)

    def _placed(self, name: str, info: TensorInfo, alignment: int) -> TensorInfo:
        """With the offset from the beginning of the file: in it, it counts from the end of the header."""
        if info.offset % alignment:
            raise CheckpointError(f"{name} begins at {info.offset}, not at a multiple of {alignment}")
        offset = -(-self._at // alignment) * alignment + info.offset
        if offset + info.num_bytes > len(self._file):
            raise CheckpointError(
                f"the file is truncated: {name} ends at {offset + info.num_bytes}, it at {len(self._file)}"
            )
        return TensorInfo(info.block_type, info.shape, offset, info.num_bytes)

    def _tensor_info(self) -> tuple[str, TensorInfo]:
        name = self._string()
        num_dimensions = self._scalar("I")
        if not 0 < num_dimensions <= _MAX_DIMENSIONS:
            raise CheckpointError(f"{name} has {num_dimensions} dimensions")
        shape = tuple(reversed([self._scalar("Q") for _ in range(num_dimensions)]))
        if 0 in shape:
            raise CheckpointError(f"{name} is empty: {list(shape)}")
        number, offset = self._scalar("I"), self._scalar("Q")
        try:
            block_type = GGMLQuantizationType(number)
        except ValueError:
            raise CheckpointError(f"{name} has the unknown block type {number}") from None
        block_elements, block_bytes = GGML_QUANT_SIZES[block_type]
        if shape[-1] % block_elements:
            raise CheckpointError(f"{name}: rows of {shape[-1]} are not whole blocks of {block_elements}")
        return name, TensorInfo(block_type, shape, offset, math.prod(shape) // block_elements * block_bytes)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise CheckpointError(f"metadata of the unknown type {kind}")
        return self._scalar(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind, count = self._scalar("I"), self._count()
        if kind == _STRING:
            return [self._string() for _ in range(count)]
        if kind not in _SCALARS:
            raise CheckpointError("an array of arrays" if kind == _ARRAY else f"an array of the unknown type {kind}")
        return list(self._unpack(f"<{count}{_SCALARS[kind]}"))

    def _count(self) -> int:
        """How many of something follow; each takes at least a byte."""
        count = self._scalar("Q")
        if count > len(self._file) - self._at:
            raise CheckpointError(f"the header promises {count} entries, more than the file has bytes left")
        if count > _MAX_ENTRIES:
            raise CheckpointError(f"the header promises {count} entries; up to {_MAX_ENTRIES} are read")
        return count

    def _string(self) -> str:
        length = self._count()
        self._at += length
        return self._file[self._at - length : self._at].decode("utf-8")

    def _scalar(self, kind: str) -> Any:
        return self._unpack(f"<{kind}")[0]

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._file, self._at)
        self._at += struct.calcsize(layout)
        return values
