"""Every attention kernel against a plain oracle in float64: softmax(scale q k^T + bias) v, one sequence at a time."""

import pytest
import torch
from attention_oracle import oracle, random_heads
from torch import Tensor

from model.kernels import AttentionKernel
from model.kernels.native.attention import NativeKernel
from model.kernels.native.library import NativeLibrary, native_library
from model.kernels.portable import PortableKernel
from model.metadata import AttentionMetadata, AttentionSpec

NATIVE_KERNELS = [
    NativeKernel(NativeLibrary(native_library().path, variant)) for variant in native_library().kernel_names()
]
KERNELS: list[AttentionKernel] = [PortableKernel(), *NATIVE_KERNELS]
CPU = torch.device("cpu")
HEADS = [(4, 4), (6, 2), (3, 1)]
# A window and whether there is a bias. The longest sequence has 40 tokens: one window reaches over all of it.
REACHES = [(None, False), (0, False), (3, False), (60, False), (None, True), (3, True)]
LONGEST = 40


def random_bias(num_heads: int, longest: int = LONGEST) -> Tensor:
    return torch.randn(num_heads, 2 * longest - 1, generator=torch.Generator().manual_seed(6))


def spec_of(heads: tuple[int, int], *, is_causal: bool, window: int | None = None) -> AttentionSpec:
    return AttentionSpec(*heads, head_width=8, scale=8**-0.5, is_causal=is_causal, window=window)


def assert_packed(kernel: AttentionKernel, lengths: list[int], spec: AttentionSpec, bias_HJ: Tensor | None) -> None:
    total = sum(lengths)
    q, k, v = (
        random_heads(total, num_heads, seed)
        for seed, num_heads in enumerate((spec.num_query_heads, spec.num_key_value_heads, spec.num_key_value_heads))
    )
    mixed = kernel(q, k, v, AttentionMetadata.pack(lengths), spec, bias_HJ)
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    expected = torch.cat([oracle(*part, spec, bias_HJ) for part in parts])
    torch.testing.assert_close(mixed.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("lengths", [[1], [5, 5, 5], [1, 1, 1], [7, 1, 30]])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("window", "is_biased"), REACHES)
def test_packed(
    kernel: AttentionKernel,
    lengths: list[int],
    is_causal: bool,
    heads: tuple[int, int],
    window: int | None,
    is_biased: bool,
) -> None:
    bias = random_bias(heads[0]) if is_biased else None
    assert_packed(kernel, lengths, spec_of(heads, is_causal=is_causal, window=window), bias)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("lengths", [[300], [700, 20, 256]])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [5, 299, 400])
@pytest.mark.parametrize("is_biased", [False, True])
def test_texts_longer_than_their_windows(
    kernel: AttentionKernel, lengths: list[int], is_causal: bool, window: int, is_biased: bool
) -> None:
    bias = random_bias(2, max(lengths)) if is_biased else None
    assert_packed(kernel, lengths, spec_of((2, 1), is_causal=is_causal, window=window), bias)


@pytest.mark.parametrize(
    ("kernel", "block_size"),
    [
        *((PortableKernel(), block_size) for block_size in (1, 4, 16)),
        *((kernel, block_size) for kernel in NATIVE_KERNELS for block_size in (16, 32)),
    ],
    ids=lambda k: str(getattr(k, "name", k)),
)
@pytest.mark.parametrize(
    ("query_lengths", "key_lengths"),
    [([9], [9]), ([3], [20]), ([1, 1, 1], [1, 17, 8]), ([5, 1, 8], [21, 13, 8]), ([1], [40])],
)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("window", "is_biased"), REACHES)
def test_paged(
    kernel: AttentionKernel,
    query_lengths: list[int],
    key_lengths: list[int],
    block_size: int,
    is_causal: bool,
    heads: tuple[int, int],
    window: int | None,
    is_biased: bool,
) -> None:
    """Scattered pages, part of the last one empty, neighbours' pages full of other keys."""
    spec = spec_of(heads, is_causal=is_causal, window=window)
    bias = random_bias(heads[0]) if is_biased else None
    counts = [-(-n // block_size) for n in key_lengths]
    order = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(4)).tolist()
    tables = [[order.pop() for _ in range(count)] for count in counts]
    cache = kernel.new_cache(spec, sum(counts) + 3, block_size, dtype=torch.float32, device=CPU)
    queries, expected = [], []
    for s, (num_queries, num_keys) in enumerate(zip(query_lengths, key_lengths, strict=True)):
        q, k, v = (
            random_heads(num_queries, heads[0], s),
            random_heads(num_keys, heads[1], 50 + s),
            random_heads(num_keys, heads[1], 90 + s),
        )
        slots = torch.tensor([tables[s][i // block_size] * block_size + i % block_size for i in range(num_keys)])
        kernel.write(cache, k, v, slots)
        queries.append(q)
        expected.append(oracle(q, k, v, spec, bias))
    metadata = AttentionMetadata.pack(query_lengths, key_lengths=key_lengths, block_table=tables)
    mixed = kernel(torch.cat(queries), cache.keys, cache.values, metadata, spec, bias)
    torch.testing.assert_close(mixed.double(), torch.cat(expected), atol=1e-5, rtol=0)
