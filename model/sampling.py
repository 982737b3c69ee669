"""The sampler: a pure function of a row's scores, its parameters, the tokens so far and (seed, choice, position).

No generator keeps state, so neither the batch nor the worker that a token is drawn in can change it. In this order:

    scores ── penalties ── bias ── what may not be drawn ── temperature ── top-k ── min-p ── top-p ── one draw
      └── log probabilities, of the model's own distribution

Each filter is over what the one before left. Equal scores are ordered by token id, also where a filter cuts among them.
Here it is written out with torch, a row at a time; `model.kernels.native.sampler` draws the same tokens.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.errors import StepError

LEAST_LOGPROB = -9999.0
"""Stands for the logarithm of no chance at all, which JSON can't hold."""
# Enough candidates for nearly every nucleus; a row that needs more is sorted whole.
_NUM_CANDIDATES = 256
_MASK_64 = (1 << 64) - 1

TokenMask = NDArray[numpy.uint32]
"""Which tokens may be drawn: token t by bit t % 32 of word t // 32."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one choice is drawn. Temperature 0 takes the likeliest token; top_k 0 and min_p 0 are off.

    `repetition_penalty` divides a score above 0, and multiplies one below, of every token of the prompt and the output;
    of those in the output alone, `presence_penalty` is taken off once and `frequency_penalty` for each time.
    `logit_bias` is added to the scores of its tokens. `stop_ids` can't be drawn before the output has `min_tokens`;
    `allowed`, where it is there, names the only tokens that ever may. `top_logprobs` asks for the log probability of
    what is drawn, and of so many of the likeliest beside it.
    """

    temperature: float
    seed: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    choice: int = 0
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed: TokenMask | None = field(default=None, compare=False)
    top_logprobs: int | None = None

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def banned_ids(self, position: int) -> tuple[int, ...]:
        """What can't be drawn yet."""
        return self.stop_ids if position < self.min_tokens else ()

    def needs_scores(self, position: int) -> bool:
        """Whether a draw takes more than the likeliest token of the model's own scores."""
        return (
            self.temperature > 0
            or self.top_logprobs is not None
            or self.has_penalties
            or bool(self.logit_bias)
            or self.allowed is not None
            or bool(self.banned_ids(position))
        )


@dataclass(frozen=True, slots=True)
class SampledRow:
    """What the next token of a sequence is drawn by: parameters, all tokens so far, and what a grammar allows next.

    With `given` that token stands there already, and only its log probabilities are wanted.
    """

    params: SamplingParams
    token_ids: Sequence[int]
    num_prompt_tokens: int
    grammar: TokenMask | None = None
    given: int | None = None

    @property
    def position(self) -> int:
        """Of the token, in the output, from 0."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def needs_scores(self) -> bool:
        return self.grammar is not None or self.given is not None or self.params.needs_scores(self.position)

    @property
    def chance(self) -> float:
        """The number in [0, 1) that this token is drawn with."""
        return uniform(self.params.seed, self.params.choice, self.position)

    @property
    def allowed(self) -> TokenMask | None:
        """What parameters and grammar allow."""
        if self.grammar is None or self.params.allowed is None:
            return self.params.allowed if self.grammar is None else self.grammar
        return self.grammar & self.params.allowed


@dataclass(frozen=True, slots=True)
class Draw:
    """A token; where asked for, its log probability and the likeliest tokens with theirs, the likeliest first.

    They are of the scores as the model gave them, before penalties, bias and temperature.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws one token a row."""

    def __call__(self, scores_LV: Tensor, rows: Sequence[SampledRow]) -> list[Draw]:
        """The next token of each row.

        Raises: StepError for a row without a largest score, or in which no token may be drawn.
        """
        assert scores_LV.shape[0] == len(rows)
        return [
            _draw(scores_V, row, number) for number, (scores_V, row) in enumerate(zip(scores_LV, rows, strict=True))
        ]


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else: SplitMix64 (Steele et al., 2014), chained over the parts."""
    state = 0
    for part in (seed, choice, position):
        state = _mix((state ^ (part & _MASK_64)) + 0x9E3779B97F4A7C15 & _MASK_64)
    return (state >> 11) / (1 << 53)


def token_mask(token_ids: Sequence[int], vocabulary_size: int) -> TokenMask:
    """The mask that allows these tokens alone."""
    mask = numpy.zeros(-(-vocabulary_size // 32), numpy.uint32)
    ids = numpy.asarray(token_ids, numpy.int64)
    numpy.bitwise_or.at(mask, ids // 32, numpy.uint32(1) << (ids % 32).astype(numpy.uint32))
    return mask


def no_numbers(row: int) -> StepError:
    return StepError(f"row {row} of the scores has no largest number")


def none_allowed(row: int) -> StepError:
    return StepError(f"no token may be drawn in row {row}")


def _mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK_64
    return z ^ (z >> 31)


def _draw(scores_V: Tensor, row: SampledRow, number: int) -> Draw:
    scores_V = scores_V.float()
    if bool(scores_V.isnan().any()) or not math.isfinite(scores_V.max()):
        raise no_numbers(number)
    if row.given is not None:
        return _told(row.given, scores_V, row.params.top_logprobs)
    adjusted_V = _adjusted(scores_V, row)
    if adjusted_V.max() == -math.inf:
        raise none_allowed(number)
    token = int(_likeliest(adjusted_V, 1)) if row.params.temperature == 0 else _drawn(adjusted_V, row)
    return _told(token, scores_V, row.params.top_logprobs)


def _told(token: int, scores_V: Tensor, num_top: int | None) -> Draw:
    if num_top is None:
        return Draw(token)
    logprobs_V = scores_V.double().log_softmax(dim=0).clamp(min=LEAST_LOGPROB)
    top = [int(each) for each in _likeliest(scores_V, min(num_top, len(scores_V)))] if num_top else []
    return Draw(token, float(logprobs_V[token]), tuple((each, float(logprobs_V[each])) for each in top))


def _adjusted(scores_V: Tensor, row: SampledRow) -> Tensor:
    """The scores after penalties and bias; minus infinity where a token may not be drawn."""
    p = row.params
    adjusted_V = scores_V.clone()

    def of(values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=scores_V.device)

    if p.has_penalties:
        seen = of(sorted(set(row.token_ids)), torch.int64)
        x = adjusted_V[seen]
        adjusted_V[seen] = torch.where(x > 0, x / p.repetition_penalty, x * p.repetition_penalty)
        counts = Counter(row.token_ids[row.num_prompt_tokens :])
        penalties = of(list(counts.values())) * p.frequency_penalty + p.presence_penalty
        adjusted_V[of(list(counts), torch.int64)] -= penalties.float()
    if p.logit_bias:
        adjusted_V[of([each for each, _ in p.logit_bias], torch.int64)] += of([b for _, b in p.logit_bias]).float()
    adjusted_V[of(p.banned_ids(row.position), torch.int64)] = -math.inf
    if row.allowed is not None:
        bits = numpy.unpackbits(row.allowed.astype("<u4").view(numpy.uint8), bitorder="little")[: len(scores_V)]
        adjusted_V[of(bits, torch.uint8) == 0] = -math.inf
    return adjusted_V


def _drawn(scores_V: Tensor, row: SampledRow) -> int:
    """Inverse transform sampling over the candidates, the likeliest first."""
    p, chance = row.params, row.chance
    # Weights are shares of the likeliest's, so that no temperature, however small, overflows.
    weights_V = ((scores_V.double() - scores_V.max()) / p.temperature).exp()
    has_top_k = 0 < p.top_k < len(scores_V)
    for count in (p.top_k,) if has_top_k else (_NUM_CANDIDATES, len(scores_V)):
        ids_K = _likeliest(scores_V, min(count, len(scores_V)))
        cumulative_K = weights_V[ids_K].cumsum(dim=0)
        is_all = has_top_k or len(ids_K) < count or count == len(scores_V)
        mass = float(cumulative_K[-1] if has_top_k else weights_V.sum())
        kept = len(ids_K)
        if p.min_p > 0:
            kept = max(1, int((weights_V[ids_K] >= p.min_p).sum()))
            if kept == len(ids_K) and not is_all:
                continue
            mass = float(cumulative_K[kept - 1])
        if p.top_p < 1:
            num_inside = int(torch.searchsorted(cumulative_K[:kept], p.top_p * mass))
            if num_inside == kept and p.min_p == 0 and not is_all:
                continue
            kept = min(num_inside + 1, kept)
            mass = float(cumulative_K[kept - 1])
        # Rounding never reaches past the last that adds anything.
        point = min(chance * mass, math.nextafter(float(cumulative_K[kept - 1]), 0))
        if p.min_p > 0 or p.top_p < 1 or is_all or chance * mass < float(cumulative_K[-1]):
            return int(ids_K[torch.searchsorted(cumulative_K[:kept], point, right=True)])
    raise AssertionError


def _likeliest(scores_V: Tensor, count: int) -> Tensor:
    """The ids of the largest scores that aren't minus infinity, the lower id first among equals, also at the cut."""
    threshold = torch.topk(scores_V, count).values[-1]
    ids_K = ((scores_V >= threshold) & (scores_V > -math.inf)).nonzero().flatten()
    return ids_K[scores_V[ids_K].sort(descending=True, stable=True).indices[:count]]
