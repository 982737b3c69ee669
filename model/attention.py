"""Multi-head attention: self, causal, grouped-query and cross, in one forward.

MultiHead(Q, K, V) = Concat(head_1 ... head_H) W_O, head_h = softmax(q_h k_h^T / sqrt(E)) v_h
(Vaswani et al., "Attention Is All You Need", 2017, §3.2; grouped-query: Ainslie et al., 2023). What differs between
BERT, GPT and cross-attention is data, the metadata and the spec; what differs between devices is the kernel.
"""

from torch import Tensor, nn

from model.kernels import AttentionKernel
from model.kv_cache import LayerCache
from model.linear import Linear
from model.metadata import AttentionMetadata, AttentionSpec, Memory
from model.relative import RelativeBias
from model.rotary import Rotary


class Attend(nn.Module):
    """Scaled dot-product attention over projected rows, with what the kernels' contract says of a bias.

    Shape: q, k and v side by side `[T, (H+2G)E]`, or q alone `[T, HE]` when it looks at a memory -> `[T, HE]`.
    Mutates: `cache`, unless it holds a memory: new keys and values are written before they are read.
    """

    def __init__(self, spec: AttentionSpec, kernel: AttentionKernel) -> None:
        super().__init__()
        self.spec = spec
        self.kernel = kernel

    def forward(
        self,
        row_TX: Tensor,
        metadata: AttentionMetadata,
        cache: LayerCache | None = None,
        memory: Memory | None = None,
        bias_HJ: Tensor | None = None,
    ) -> Tensor:
        if memory is not None:
            assert cache is not None
            (q_THE,) = self._heads(row_TX, 1)
            mixed_THE = self.kernel(q_THE, cache.keys, cache.values, metadata.across(memory), self.spec, bias_HJ)
        elif cache is not None:
            assert metadata.slot_mapping_T is not None
            q_THE, k_TGE, v_TGE = self._heads(row_TX, 3)
            self.kernel.write(cache, k_TGE, v_TGE, metadata.slot_mapping_T)
            mixed_THE = self.kernel(q_THE, cache.keys, cache.values, metadata, self.spec, bias_HJ)
        else:
            q_THE, k_TGE, v_TGE = self._heads(row_TX, 3)
            mixed_THE = self.kernel(q_THE, k_TGE, v_TGE, metadata, self.spec, bias_HJ)
        return mixed_THE.flatten(1)

    def _heads(self, row_TX: Tensor, num_parts: int) -> list[Tensor]:
        parts = row_TX.split(self.spec.row_widths[:num_parts], dim=1)
        return [part.unflatten(1, (-1, self.spec.head_width)) for part in parts]


class Store(nn.Module):
    """Writes a memory's keys and values, side by side `[U, 2GE]`, for an Attend to look at. Mutates: `cache`."""

    def __init__(self, spec: AttentionSpec, kernel: AttentionKernel) -> None:
        super().__init__()
        self.spec = spec
        self.kernel = kernel

    def forward(self, row_UX: Tensor, memory: Memory, cache: LayerCache) -> None:
        k_UGE, v_UGE = (part.unflatten(1, (-1, self.spec.head_width)) for part in row_UX.chunk(2, dim=1))
        self.kernel.write(cache, k_UGE, v_UGE, memory.slot_mapping_U)


class MultiHeadAttention(nn.Module):
    """Tokens look at tokens: of their own sequence, or of a memory. Shape: `[T, D] -> [T, D]`.

    With `is_cross`, only queries come from x; the memory's keys and values are computed once, by `remember`.
    """

    def __init__(
        self,
        width: int,
        spec: AttentionSpec,
        kernel: AttentionKernel,
        *,
        has_bias: bool,
        has_output_bias: bool | None = None,
        rotary: Rotary | None = None,
        relative_bias: RelativeBias | None = None,
        is_cross: bool = False,
    ) -> None:
        super().__init__()
        widths = dict(zip(("query", "key", "value"), spec.row_widths, strict=True))
        if is_cross:
            self.project_in = Linear(width, {"query": widths.pop("query")}, has_bias=has_bias)
            self.project_memory = Linear(width, widths, has_bias=has_bias)
            self.store = Store(spec, kernel)
        else:
            self.project_in = Linear(width, widths, has_bias=has_bias)
        self.rotary = rotary
        self.relative_bias = relative_bias
        self.attend = Attend(spec, kernel)
        output_bias = has_bias if has_output_bias is None else has_output_bias
        self.project_out = Linear(spec.row_widths[0], width, has_bias=output_bias)

    def forward(
        self,
        x_TD: Tensor,
        metadata: AttentionMetadata,
        cache: LayerCache | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        row_TX = self.project_in(x_TD, metadata)
        if self.rotary is not None:
            row_TX = self.rotary(row_TX, metadata)
        bias_HJ = None if self.relative_bias is None else self.relative_bias(metadata)
        return self.project_out(self.attend(row_TX, metadata, cache, memory, bias_HJ), metadata)

    @property
    def kernel_name(self) -> str:
        return self.attend.kernel.name

    def new_cache(self, num_blocks: int, block_size: int) -> LayerCache:
        """Empty pages, in the dtype of what the products give, on their device."""
        return self.attend.kernel.new_cache(
            self.attend.spec, num_blocks, block_size, dtype=self.project_out.dtype, device=self.project_out.device
        )

    def remember(self, memory_UD: Tensor, metadata: AttentionMetadata, memory: Memory, cache: LayerCache) -> None:
        """Stores the keys and values of an encoder's output, packed as `metadata` says. Mutates: `cache`."""
        self.store(self.project_memory(memory_UD, metadata), memory, cache)
