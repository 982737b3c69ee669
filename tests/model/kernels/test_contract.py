"""Every attention kernel against a plain oracle in float64: softmax(scale q k^T + bias) v, one sequence at a time."""

import pytest
import torch
from torch import Tensor

from model.kernels import AttentionKernel
from model.kernels.portable import PortableKernel
from model.metadata import AttentionMetadata, AttentionSpec

KERNELS = [PortableKernel()]
CPU = torch.device("cpu")
HEADS = [(4, 4), (6, 2), (3, 1)]
# A window and whether there is a bias. The longest sequence has 40 tokens: one window reaches over all of it.
REACHES = [(None, False), (0, False), (3, False), (60, False), (None, True), (3, True)]
LONGEST = 40


def oracle(q_THE: Tensor, k_UGE: Tensor, v_UGE: Tensor, spec: AttentionSpec, bias_HJ: Tensor | None) -> Tensor:
    """One sequence: T queries, the last of U keys."""
    num_queries, num_keys = len(q_THE), len(k_UGE)
    group = spec.num_query_heads // spec.num_key_value_heads
    mixed = torch.empty(q_THE.shape, dtype=torch.float64)
    for h in range(spec.num_query_heads):
        scores = spec.scale * q_THE[:, h].double() @ k_UGE[:, h // group].double().T
        for t in range(num_queries):
            position = num_keys - num_queries + t
            window = num_keys if spec.window is None else spec.window
            seen = range(max(position - window, 0), min(position + (0 if spec.is_causal else window) + 1, num_keys))
            scores_U = scores[t, seen]
            if bias_HJ is not None:
                scores_U = scores_U + bias_HJ[h, [bias_HJ.shape[1] // 2 + u - position for u in seen]].double()
            mixed[t, h] = scores_U.softmax(0) @ v_UGE[seen, h // group].double()
    return mixed


def random_heads(num_tokens: int, num_heads: int, seed: int) -> Tensor:
    return torch.randn(num_tokens, num_heads, 8, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("block_size", [1, 4, 16])
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
