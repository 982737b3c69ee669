"""Whatever is wrong in a GGUF file, it is refused or it loads, packed: no crash, no hang, no memory without end."""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import gguf_files
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize

from model.checkpoints.gguf_header import read_header
from model.checkpoints.packing import PACKINGS
from model.checkpoints.registry import load, open_checkpoint
from model.errors import CheckpointError
from model.metadata import AttentionMetadata

T = GGMLQuantizationType
TYPES = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.F16, T.BF16, T.F32, T.MXFP4]
# Numbers that sizes, counts, offsets and types are wrong with.
ODD = [
    0,
    1,
    2,
    31,
    33,
    255,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]


def whole_file(path: Path) -> Path:
    """A random Llama of every packed type, and one that has no form of its own."""
    tensors = gguf_files.llama_tensors()
    matrices = [name for name, values in tensors.items() if values.ndim == 2]
    blocks = {
        name: (quantize(tensors.pop(name), block_type), block_type)
        for name, block_type in zip(matrices, TYPES * len(matrices), strict=False)
    }
    return gguf_files.write(path, tensors=tensors, blocks=blocks)


def flip(content: bytearray, end: int, random: Random) -> None:
    content[random.randrange(end)] ^= 1 << random.randrange(8)


def put(content: bytearray, end: int, random: Random) -> None:
    at, size = random.randrange(end), random.choice([1, 4, 8])
    content[at : at + size] = (random.choice(ODD) % (1 << 8 * size)).to_bytes(size, "little")


def copy(content: bytearray, end: int, random: Random) -> None:
    size = random.randrange(1, 64)
    begin, at = random.randrange(end), random.randrange(end)
    content[at : at + size] = content[begin : begin + size]


def insert(content: bytearray, end: int, random: Random) -> None:
    at = random.randrange(end)
    content[at:at] = random.randbytes(random.randrange(1, 16))


def delete(content: bytearray, end: int, random: Random) -> None:
    at = random.randrange(end)
    del content[at : at + random.randrange(1, 64)]


def truncate(content: bytearray, end: int, random: Random) -> None:
    del content[random.randrange(len(content)) :]


MUTATIONS: list[Callable[[bytearray, int, Random], None]] = [flip, put, put, put, copy, insert, delete, truncate]


def use(path: Path, random: Random) -> None:
    """All that is read of a file before it serves, and a step."""
    checkpoint = open_checkpoint(path)
    tokenizer = checkpoint.tokenizer()
    tokenizer.decode(tokenizer.encode("w1 <s> hello é").ids)
    model = load(checkpoint, device=torch.device("cpu"), dtype=torch.float32, packing=random.choice(PACKINGS))
    with torch.inference_mode():
        model(torch.tensor([0]), AttentionMetadata.pack([1]))


def run(folder: Path, seed: int, count: int) -> int:
    """How many files of `count` were refused."""
    whole = whole_file(folder / "whole.gguf").read_bytes()
    header_length = min(info.offset for info in read_header(folder / "whole.gguf").tensors.values())
    path = folder / "m.gguf"
    random = Random(seed)
    num_refused = 0
    for _ in range(count):
        content = bytearray(whole)
        # Most of what can go wrong goes wrong in the header, and most of the file is not that.
        end = header_length if random.random() < 0.8 else len(whole)
        for _ in range(random.choice([1, 1, 1, 2, 4])):
            if content:
                random.choice(MUTATIONS)(content, min(end, len(content)), random)
        path.write_bytes(content)
        started = time.process_time()
        try:
            use(path, random)
        except CheckpointError:
            num_refused += 1
        assert time.process_time() - started < 2
    return num_refused


def test_the_whole_file_loads(tmp_path: Path) -> None:
    path = whole_file(tmp_path / "whole.gguf")
    for seed in range(8):
        use(path, Random(seed))


def test_wrong_files(tmp_path: Path) -> None:
    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 0 < run(tmp_path, 0, 400) < 400
    # In KiB, the most that this process ever had.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before < 1 << 19


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_wrong_files(seed: int, tmp_path: Path) -> None:
    assert 0 < run(tmp_path, seed, 10_000) < 10_000
