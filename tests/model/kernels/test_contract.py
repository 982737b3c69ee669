"""Every attention kernel against a plain oracle in float64: softmax(scale q k^T) v, one sequence at a time."""

import pytest
import torch
from torch import Tensor

from model.kernels import AttentionKernel
from model.kernels.portable import PortableKernel
from model.metadata import AttentionMetadata, AttentionSpec

KERNELS = [PortableKernel()]
CPU = torch.device("cpu")
HEADS = [(4, 4), (6, 2), (3, 1)]


def oracle(q_THE: Tensor, k_UGE: Tensor, v_UGE: Tensor, spec: AttentionSpec) -> Tensor:
    """One sequence: T queries, the last of U keys."""
    num_queries, num_keys = len(q_THE), len(k_UGE)
    group = spec.num_query_heads // spec.num_key_value_heads
    mixed = torch.empty(q_THE.shape, dtype=torch.float64)
    for h in range(spec.num_query_heads):
        scores = spec.scale * q_THE[:, h].double() @ k_UGE[:, h // group].double().T
        for t in range(num_queries):
            seen = num_keys - num_queries + t + 1 if spec.is_causal else num_keys
            mixed[t, h] = scores[t, :seen].softmax(0) @ v_UGE[:seen, h // group].double()
    return mixed


def random_heads(num_tokens: int, num_heads: int, seed: int) -> Tensor:
    return torch.randn(num_tokens, num_heads, 8, generator=torch.Generator().manual_seed(seed))


def spec_of(heads: tuple[int, int], *, is_causal: bool) -> AttentionSpec:
    return AttentionSpec(*heads, head_width=8, scale=8**-0.5, is_causal=is_causal)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("lengths", [[1], [5, 5, 5], [1, 1, 1], [7, 1, 30]])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("heads", HEADS)
def test_packed(kernel: AttentionKernel, lengths: list[int], is_causal: bool, heads: tuple[int, int]) -> None:
    spec = spec_of(heads, is_causal=is_causal)
    total = sum(lengths)
    q, k, v = random_heads(total, heads[0], 1), random_heads(total, heads[1], 2), random_heads(total, heads[1], 3)
    mixed = kernel(q, k, v, AttentionMetadata.pack(lengths), spec)
    expected = torch.cat(
        [oracle(*parts, spec) for parts in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)]
    )
    torch.testing.assert_close(mixed.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize(
    ("query_lengths", "key_lengths"),
    [([9], [9]), ([3], [20]), ([1, 1, 1], [1, 17, 8]), ([5, 1, 8], [21, 13, 8]), ([1], [40])],
)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("heads", HEADS)
def test_paged(
    kernel: AttentionKernel,
    query_lengths: list[int],
    key_lengths: list[int],
    block_size: int,
    is_causal: bool,
    heads: tuple[int, int],
) -> None:
    """Scattered pages, part of the last one empty, neighbours' pages full of other keys."""
    spec = spec_of(heads, is_causal=is_causal)
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
        expected.append(oracle(q, k, v, spec))
    metadata = AttentionMetadata.pack(query_lengths, key_lengths=key_lengths, block_table=tables)
    mixed = kernel(torch.cat(queries), cache.keys, cache.values, metadata, spec)
    torch.testing.assert_close(mixed.double(), torch.cat(expected), atol=1e-5, rtol=0)
