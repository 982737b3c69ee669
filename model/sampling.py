"""The sampler: a pure function of a row's logits, its parameters and (seed, choice, position in the output).

No generator keeps state, so neither the batch nor the worker that a token is drawn in can change it. Filters apply in
the order temperature, top-k, min-p, top-p, each over what the one before left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Enough candidates for nearly every nucleus; a row that needs more is sorted whole.
_NUM_CANDIDATES = 256
_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one choice is drawn. Temperature 0 takes the likeliest token; top_k 0 and min_p 0 are off.

    `stop_ids` can't be drawn before the output has `min_tokens`.
    """

    temperature: float
    seed: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    choice: int = 0
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()


class Sampler:
    """Draws one token a row."""

    def __call__(self, logits_LV: Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
        """The next token of each row; `positions` counts each row's output tokens from 0.

        Shape: `[L, V]` -> L ids. Mutates: `logits_LV`, where stop tokens come too early.
        """
        assert logits_LV.shape[0] == len(params) == len(positions)
        for row, (p, position) in enumerate(zip(params, positions, strict=True)):
            if position < p.min_tokens and p.stop_ids:
                logits_LV[row, list(p.stop_ids)] = -torch.inf
        tokens: list[int] = logits_LV.argmax(dim=1).tolist()
        for row, (p, position) in enumerate(zip(params, positions, strict=True)):
            if p.temperature > 0:
                tokens[row] = _draw(logits_LV[row], p, uniform(p.seed, p.choice, position))
        return tokens


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else: SplitMix64 (Steele et al., 2014), chained over the parts."""
    state = 0
    for part in (seed, choice, position):
        state = _mix((state ^ (part & _MASK_64)) + 0x9E3779B97F4A7C15 & _MASK_64)
    return (state >> 11) / (1 << 53)


def _mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK_64
    return z ^ (z >> 31)


def _draw(logits_V: Tensor, p: SamplingParams, chance: float) -> int:
    """Inverse transform sampling over the candidates, likeliest first and the lower id first among equals."""
    # The likeliest at 0, so that no temperature, however small, overflows.
    scaled_V = (logits_V.double() - logits_V.max()) / p.temperature
    log_total = torch.logsumexp(scaled_V, dim=0)
    if 0 < p.top_k < len(scaled_V):
        log_total = torch.logsumexp(torch.topk(scaled_V, p.top_k).values, dim=0)
    probabilities_K, ids_K = _candidates(scaled_V, log_total, p)
    kept = _num_kept(probabilities_K, p)
    cumulative = probabilities_K[:kept].cumsum(dim=0)
    index = int(torch.searchsorted(cumulative, chance * float(cumulative[-1]), right=True))
    return int(ids_K[min(index, kept - 1)])


def _candidates(scaled_V: Tensor, log_total: Tensor, p: SamplingParams) -> tuple[Tensor, Tensor]:
    """The tokens that may be drawn, in order, with their probabilities."""
    limit = p.top_k if 0 < p.top_k < len(scaled_V) else len(scaled_V)
    ids_K = _likeliest(scaled_V, min(limit, _NUM_CANDIDATES))
    probabilities_K = (scaled_V[ids_K] - log_total).exp()
    covers_top_p = p.min_p == 0 and float(probabilities_K.sum()) >= p.top_p
    covers_min_p = float(probabilities_K[-1]) < p.min_p * float(probabilities_K[0])
    if len(ids_K) < limit and not covers_top_p and not covers_min_p:
        ids_K = _likeliest(scaled_V, limit)
        probabilities_K = (scaled_V[ids_K] - log_total).exp()
    return probabilities_K, ids_K


def _likeliest(scaled_V: Tensor, count: int) -> Tensor:
    """The ids of the largest entries, the lower id first among equals, also where the cut falls among equals."""
    threshold = torch.topk(scaled_V, count).values[-1]
    ids_K = (scaled_V >= threshold).nonzero().flatten()
    return ids_K[scaled_V[ids_K].sort(descending=True, stable=True).indices[:count]]


def _num_kept(probabilities_K: Tensor, p: SamplingParams) -> int:
    """How many of the candidates min-p and top-p leave: at least one."""
    kept = len(probabilities_K)
    if p.min_p > 0:
        kept = int((probabilities_K >= p.min_p * probabilities_K[0]).sum())
    if p.top_p < 1:
        remaining = probabilities_K[:kept]
        total = remaining.sum() if p.min_p > 0 else 1.0
        before = remaining.cumsum(dim=0) - remaining
        kept = int((before < p.top_p * total).sum())
    return max(kept, 1)
