"""The native attention of every variant: exact for any heads, lengths and chunks, and the same bytes in any company.

What lies in memory that nothing was written to is no number here, in pages and results alike.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from attention_oracle import oracle, random_heads
from torch import Tensor

from model.errors import CannotLower
from model.kernels.native.attention import NativeKernel
from model.kernels.native.library import NativeLibrary, ThreadPlan, native_library
from model.kv_cache import LayerCache
from model.metadata import AttentionMetadata, AttentionSpec

CPU = torch.device("cpu")
LIBRARIES = [NativeLibrary(native_library().path, variant) for variant in native_library().kernel_names()]
WIDTHS = [2, 6, 8, 16, 20, 32, 48, 64, 80, 96, 128, 256]
HEADS = [(1, 1), (2, 1), (9, 3), (4, 1), (10, 2), (6, 1), (7, 1), (8, 1), (3, 3)]
# On and beside the borders of groups of 16 keys and of stretches of 512.
POSITIONS = [0, 1, 14, 15, 16, 31, 32, 33, 510, 511, 512, 513, 1023, 1024]


@pytest.fixture(params=LIBRARIES, ids=lambda library: library.variant)
def library(request: pytest.FixtureRequest) -> Iterator[NativeLibrary]:
    request.param.use_threads(ThreadPlan(2))
    yield request.param
    request.param.use_threads(ThreadPlan(1))


@pytest.fixture(autouse=True)
def no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty tensors and new pages hold NaN."""

    def full(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(shape if isinstance(shape[0], int) else shape[0], torch.nan, dtype=dtype)

    monkeypatch.setattr("model.kernels.native.attention.torch.empty", full)
    monkeypatch.setattr("model.kernels.native.attention.torch.zeros", full)


@dataclass
class Text:
    """All queries, keys and values of one sequence."""

    q_THE: Tensor
    k_TGE: Tensor
    v_TGE: Tensor

    @classmethod
    def random(cls, length: int, spec: AttentionSpec, seed: int) -> "Text":
        heads = (spec.num_query_heads, spec.num_key_value_heads, spec.num_key_value_heads)
        return cls(*(random_heads(length, n, 3 * seed + i, spec.head_width) for i, n in enumerate(heads)))

    def __len__(self) -> int:
        return len(self.q_THE)


class Paged:
    """Texts in scattered pages of one cache, of which each step computes some more tokens."""

    def __init__(
        self, kernel: NativeKernel, spec: AttentionSpec, texts: Sequence[Text], *, dtype: torch.dtype, block_size: int
    ) -> None:
        counts = [-(-len(text) // block_size) for text in texts]
        order = random.Random(4).sample(range(sum(counts) + 3), sum(counts) + 3)
        self.kernel, self.spec, self.texts, self.block_size = kernel, spec, texts, block_size
        self.tables = [[order.pop() for _ in range(count)] for count in counts]
        self.cache: LayerCache = kernel.new_cache(spec, sum(counts) + 3, block_size, dtype=dtype, device=CPU)
        self.done = [0] * len(texts)
        self.mixed: list[list[Tensor]] = [[] for _ in texts]

    def step(self, num_tokens: dict[int, int]) -> None:
        """Some tokens of some texts, by the texts' numbers."""
        rows = {s: slice(self.done[s], self.done[s] + n) for s, n in num_tokens.items()}
        slots = [
            self.tables[s][i // self.block_size] * self.block_size + i % self.block_size
            for s, part in rows.items()
            for i in range(part.start, part.stop)
        ]
        q, k, v = (
            torch.cat([getattr(self.texts[s], name)[part] for s, part in rows.items()])
            for name in ("q_THE", "k_TGE", "v_TGE")
        )
        metadata = AttentionMetadata.pack(
            list(num_tokens.values()),
            key_lengths=[part.stop for part in rows.values()],
            slot_mapping=slots,
            block_table=[self.tables[s] for s in rows],
        )
        assert metadata.slot_mapping_T is not None
        self.kernel.write(self.cache, k, v, metadata.slot_mapping_T)
        mixed = self.kernel(q, self.cache.keys, self.cache.values, metadata, self.spec)
        for s, part in zip(rows, mixed.split(list(num_tokens.values())), strict=True):
            self.mixed[s].append(part)
            self.done[s] = rows[s].stop

    def run(self, chunks: random.Random | None = None) -> list[Tensor]:
        """All tokens of all texts, at once or in random chunks of random texts."""
        while left := {s: len(text) - n for s, (text, n) in enumerate(zip(self.texts, self.done, strict=True))
                       if n < len(text)}:  # fmt: skip
            if chunks is not None:
                chosen = chunks.sample(sorted(left), chunks.randint(1, len(left)))
                left = {s: min(left[s], chunks.choice([1, 1, 2, 17, 300])) for s in chosen}
            self.step(left)
        return [torch.cat(parts) for parts in self.mixed]


def run(kernel: NativeKernel, spec: AttentionSpec, texts: Sequence[Text], dtype: torch.dtype, block_size: int = 16,
        chunks: random.Random | None = None) -> list[Tensor]:  # fmt: skip
    return Paged(kernel, spec, texts, dtype=dtype, block_size=block_size).run(chunks)


def assert_near_oracle(
    library: NativeLibrary, spec: AttentionSpec, text: Text, dtype: torch.dtype, mixed: Tensor
) -> None:
    """At the positions where something may go wrong. With a bf16 cache, a share may be off by the rounding of bf16."""
    q, k, v = text.q_THE.double(), text.k_TGE.to(dtype).double(), text.v_TGE.to(dtype).double()
    is_rounded = dtype == torch.bfloat16 and library.variant == "avx512_bf16"
    if is_rounded:
        q = (text.q_THE * spec.scale).to(dtype).double() / spec.scale
    whole = None if spec.is_causal else [oracle(q, k, values, spec, None) for values in (v, v.abs())]
    for t in {*POSITIONS, len(text) - 2, len(text) - 1} & set(range(len(text))):
        if whole is None:
            past = slice(t + 1)
            expected, scale = (oracle(q[t : t + 1], k[past], each[past], spec, None)[0] for each in (v, v.abs()))
        else:
            expected, scale = (mixed_THE[t] for mixed_THE in whole)
        bound = 1e-5 + (2**-8 * scale if is_rounded else 0)
        assert ((mixed[t].double() - expected).abs() <= bound).all(), f"at position {t}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_random_shapes(library: NativeLibrary, dtype: torch.dtype, seed: int) -> None:
    """Every width, in chunks of mixed steps."""
    draw = random.Random(seed)
    width = WIDTHS[seed]
    window = draw.choice([None, None, 0, 5, 100, 600])
    spec = AttentionSpec(*draw.choice(HEADS), width, draw.choice([width**-0.5, 0.3]), is_causal=True, window=window)
    longest = draw.choice([40, 600, 1100])
    texts = [Text.random(draw.randint(1, longest), spec, s) for s in range(draw.randint(1, 3))]
    results = run(NativeKernel(library), spec, texts, dtype, draw.choice([16, 32, 48, 256]), draw)
    for text, mixed in zip(texts, results, strict=True):
        assert_near_oracle(library, spec, text, dtype, mixed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("window", [None, 37, 700])
def test_a_row_is_the_same_in_any_company(
    library: NativeLibrary, dtype: torch.dtype, heads: tuple[int, int], window: int | None
) -> None:
    """Alone, in a batch, token by token, in any chunks, with any number of threads and in blocks of any size."""
    spec = AttentionSpec(*heads, 24, 0.2, is_causal=True, window=window)
    kernel = NativeKernel(library)
    texts = [Text.random(length, spec, s) for s, length in enumerate((530, 3, 1040))]
    together = run(kernel, spec, texts, dtype)
    for num_threads, text, expected in zip((1, 3, 4), texts, together, strict=True):
        library.use_threads(ThreadPlan(num_threads))
        (alone,) = run(kernel, spec, [text], dtype, 64)
        assert torch.equal(alone, expected)
    for seed in range(2):
        chunked = run(kernel, spec, texts, dtype, 16, random.Random(seed))
        assert all(map(torch.equal, chunked, together))


def test_single_tokens_equal_a_prompt(library: NativeLibrary) -> None:
    spec = AttentionSpec(6, 2, 16, 0.25, is_causal=True)
    kernel = NativeKernel(library)
    text = Text.random(560, spec, 1)
    (whole,) = run(kernel, spec, [text], torch.bfloat16)
    paged = Paged(kernel, spec, [text], dtype=torch.bfloat16, block_size=16)
    paged.step({0: 500})
    for _ in range(60):
        paged.step({0: 1})
    assert torch.equal(torch.cat(paged.mixed[0]), whole)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [None, 60])
def test_packed_keys_give_what_pages_give(library: NativeLibrary, is_causal: bool, window: int | None) -> None:
    """Parts of a fused row, of texts of different lengths, alone and together."""
    spec = AttentionSpec(4, 2, 20, 0.3, is_causal=is_causal, window=window)
    kernel = NativeKernel(library)
    lengths = [70, 1, 530]
    row_TX = torch.randn(sum(lengths), sum(spec.row_widths), generator=torch.Generator().manual_seed(3))
    q, k, v = (part.unflatten(1, (-1, 20)) for part in row_TX.split(spec.row_widths, dim=1))
    mixed = kernel(q, k, v, AttentionMetadata.pack(lengths), spec)
    for n, *parts in zip(lengths, mixed.split(lengths), *(x.split(lengths) for x in (q, k, v)), strict=True):
        together, *alone = parts
        assert torch.equal(kernel(*alone, AttentionMetadata.pack([n]), spec), together)
        text = Text(*alone)
        assert_near_oracle(library, spec, text, torch.float32, together)
        if is_causal:
            assert torch.equal(run(kernel, spec, [text], torch.float32)[0], together)


def test_a_memory_shorter_than_its_queries(library: NativeLibrary) -> None:
    """Cross-attention: every query sees all of it."""
    spec = AttentionSpec(2, 2, 16, 0.25, is_causal=False)
    kernel = NativeKernel(library)
    text = Text.random(9, spec, 1)
    cache = kernel.new_cache(spec, 2, 16, dtype=torch.float32, device=CPU)
    kernel.write(cache, text.k_TGE[:4], text.v_TGE[:4], torch.arange(16, 20))
    metadata = AttentionMetadata(
        query_lengths=(9,), key_lengths=(4,), positions_T=torch.arange(9), block_table_SM=torch.tensor([[1]])
    )
    mixed = kernel(text.q_THE, cache.keys, cache.values, metadata, spec)
    expected = torch.cat([oracle(q[None], text.k_TGE[:4], text.v_TGE[:4], spec, None) for q in text.q_THE])
    torch.testing.assert_close(mixed.double(), expected, atol=1e-5, rtol=0)


def test_a_bf16_model_gets_bf16(library: NativeLibrary) -> None:
    spec = AttentionSpec(2, 1, 16, 0.25, is_causal=True)
    kernel = NativeKernel(library)
    text = Text.random(30, spec, 1)
    q, k, v = (x.to(torch.bfloat16) for x in (text.q_THE, text.k_TGE, text.v_TGE))
    mixed = kernel(q, k, v, AttentionMetadata.pack([30]), spec)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, run(kernel, spec, [Text(q.float(), k, v)], torch.bfloat16)[0].to(torch.bfloat16))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"block_size": 8}, "blocks of 8 tokens"),
        ({"dtype": torch.float16}, "pages in torch.float16"),
        ({"head_width": 258}, "a head of 258 numbers"),
        ({"device": torch.device("meta")}, "pages on meta"),
    ],
)
def test_pages_that_it_does_not_have(change: dict[str, object], reason: str) -> None:
    wanted = {"block_size": 16, "dtype": torch.float32, "head_width": 64, "device": CPU, **change}
    spec = AttentionSpec(2, 1, wanted.pop("head_width"), 0.25, is_causal=True)
    with pytest.raises(CannotLower, match=reason):
        NativeKernel().new_cache(spec, 4, wanted.pop("block_size"), **wanted)


def test_it_has_no_gradient() -> None:
    spec = AttentionSpec(2, 1, 16, 0.25, is_causal=True)
    text = Text.random(3, spec, 1)
    with pytest.raises(CannotLower, match="a gradient is asked for"):
        NativeKernel()(text.q_THE.requires_grad_(), text.k_TGE, text.v_TGE, AttentionMetadata.pack([3]), spec)


@pytest.mark.parametrize("slot", [-1, 64])
def test_a_slot_that_there_is_not(slot: int) -> None:
    spec = AttentionSpec(2, 1, 16, 0.25, is_causal=True)
    text = Text.random(1, spec, 1)
    cache = NativeKernel().new_cache(spec, 4, 16, dtype=torch.float32, device=CPU)
    with pytest.raises(IndexError, match=f"slots {slot} to {slot} of 4 blocks"):
        NativeKernel().write(cache, text.k_TGE, text.v_TGE, torch.tensor([slot]))
