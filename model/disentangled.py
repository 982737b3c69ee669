"""Disentangled attention: what a token is and how far away it is are two vectors, and each looks at the other.

Source: He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention" (2020), §3.1; distances in buckets came
with DeBERTa-v2. A distance counts from the key to the query here, t - u, as the paper's δ(i, j) does.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from model.linear import Linear
from model.metadata import AttentionMetadata, AttentionSpec

# Content to position, position to content.
Term = Literal["c2p", "p2c"]
_SEGMENTS: dict[Term, str] = {"c2p": "key", "p2c": "query"}


def log_buckets(max_positions: int, num_buckets: int, max_distance: int) -> Tensor:
    """The bucket of each distance, of its sign: near ones have their own, from `num_buckets / 2` on they grow.

    Shape: `[J]`, distances from 1 - max_positions to max_positions - 1. Without buckets (0), each distance is its own.
    """
    distances_J = torch.arange(1 - max_positions, max_positions)
    if not num_buckets:
        return distances_J
    middle = num_buckets // 2
    far_J = distances_J.abs().clamp(min=middle - 1)
    whole = torch.tensor((max_distance - 1) / middle, dtype=torch.float32).log()
    wide_J = ((far_J.float() / middle).log() / whole * (middle - 1)).ceil().long() + middle
    return torch.where(far_J <= middle, distances_J, wide_J * distances_J.sign())


class PositionTable(nn.Module):
    """The rows for all buckets that tokens of the longest sequence are apart. Shape: the batch -> `[J, D]`.

        row      0 ........ span - b ........ span ........ span + b ........ 2 span - 1
        returned               └── far after    └── no distance └── far before ──┘

    The row of no distance comes back as number `J // 2`, also where the table ends before span + b.
    """

    def __init__(self, span: int, width: int, bucket_J: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * span, width))
        self.span = span
        self.farthest = bucket_J[len(bucket_J) // 2 :].tolist()

    def forward(self, metadata: AttentionMetadata) -> Tensor:
        bucket = min(self.farthest[max(metadata.query_lengths) - 1], self.span)
        return self.weight[self.span - bucket : self.span + bucket + 1]


class Positions(nn.Module):
    """What every block knows of distances: a table, and where the checkpoint has it a norm of its rows."""

    def __init__(self, table: PositionTable, norm: nn.Module | None) -> None:
        super().__init__()
        self.table = table
        self.norm = norm

    def forward(self, metadata: AttentionMetadata) -> Tensor:
        rows_JD = self.table(metadata)
        return rows_JD if self.norm is None else self.norm(rows_JD)


class ProjectPositions(nn.Module):
    """Keys and queries of positions, side by side in the order of the terms. Shape: `[J, D] -> [J, HE or 2HE]`.

    The weights are segments of a Linear, the block's own for content where it shares them. Positions belong to no
    sequence of the batch, so no adapter changes them.
    """

    def __init__(self, source: Linear, terms: tuple[Term, ...]) -> None:
        super().__init__()
        self.source = source
        self.terms = terms

    def forward(self, rows_JD: Tensor) -> Tensor:
        return torch.cat([self.source.segment(_SEGMENTS[term], rows_JD) for term in self.terms], dim=1)


class DisentangledAttend(nn.Module):
    """Attention with scores of content and of position; K and Q are a position's key and query:

        score(t, u) = scale * (q_t k_u + q_t K_δ(t, u) + k_u Q_δ(t, u))

    The released models read both at δ(t, u), where the paper has δ(u, t) in the last term. A sequence at a time, since
    the last two terms are `[H, T, T]`; torch adds them to the first as a mask.

    Shape: q, k and v side by side `[T, 3HE]`, what ProjectPositions made -> `[T, HE]`.
    """

    def __init__(self, spec: AttentionSpec, terms: tuple[Term, ...], bucket_J: Tensor) -> None:
        super().__init__()
        self.spec = spec
        self.terms = terms
        self.register_buffer("bucket_J", bucket_J, persistent=False)
        self.bucket_J: Tensor

    def forward(self, row_TX: Tensor, positions_JX: Tensor, metadata: AttentionMetadata) -> Tensor:
        content = [part.unflatten(1, (-1, self.spec.head_width)).transpose(0, 1) for part in row_TX.chunk(3, dim=1)]
        parts = positions_JX.chunk(len(self.terms), dim=1)
        positions = {
            term: part.unflatten(1, (-1, self.spec.head_width)).permute(1, 2, 0)
            for term, part in zip(self.terms, parts, strict=True)
        }
        mixed = []
        for q_HTE, k_HTE, v_HTE in zip(*(x.split(list(metadata.query_lengths), dim=1) for x in content), strict=True):
            bias_HTT = self.spec.scale * self._position_scores(q_HTE, k_HTE, positions)
            out = scaled_dot_product_attention(
                q_HTE[None], k_HTE[None], v_HTE[None], bias_HTT[None], scale=self.spec.scale
            )
            mixed.append(out[0].transpose(0, 1).flatten(1))
        return torch.cat(mixed)

    def _position_scores(self, q_HTE: Tensor, k_HTE: Tensor, positions: dict[Term, Tensor]) -> Tensor:
        """The last two terms for one sequence. Shape: `[H, T, T]`."""
        num_heads, num_tokens, _ = q_HTE.shape
        tokens_T = torch.arange(num_tokens, device=q_HTE.device)
        bucket_TT = self.bucket_J[len(self.bucket_J) // 2 + tokens_T[:, None] - tokens_T]
        num_rows = next(iter(positions.values())).shape[2]
        row_HTT = (bucket_TT + num_rows // 2).clamp(0, num_rows - 1).expand(num_heads, -1, -1)
        scores = []
        if "c2p" in positions:
            scores.append((q_HTE @ positions["c2p"]).gather(2, row_HTT))
        if "p2c" in positions:
            scores.append((k_HTE @ positions["p2c"]).mT.gather(1, row_HTT))
        return sum(scores[1:], start=scores[0])


class DisentangledAttention(nn.Module):
    """Tokens look at tokens of their own sequence, and at how far they are. Shape: `[T, D] -> [T, D]`.

    `positions` is shared by all blocks; with `is_shared`, a position's key and query come from the weights of content.
    """

    def __init__(
        self,
        width: int,
        spec: AttentionSpec,
        positions: Positions,
        terms: tuple[Term, ...],
        bucket_J: Tensor,
        *,
        is_shared: bool,
    ) -> None:
        super().__init__()
        widths = dict(zip(("query", "key", "value"), spec.row_widths, strict=True))
        self.project_in = Linear(width, widths, has_bias=True)
        self.positions = positions
        own = None if is_shared else Linear(width, {_SEGMENTS[term]: widths["key"] for term in terms}, has_bias=True)
        self.project_positions = ProjectPositions(own or self.project_in, terms)
        self.attend = DisentangledAttend(spec, terms, bucket_J)
        self.project_out = Linear(spec.row_widths[0], width, has_bias=True)

    @property
    def kernel_name(self) -> str:
        return "disentangled"

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        row_TX = self.project_in(x_TD, metadata)
        positions_JX = self.project_positions(self.positions(metadata))
        return self.project_out(self.attend(row_TX, positions_JX, metadata), metadata)
