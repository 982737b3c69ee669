"""What the engine tells of a request: started, deltas, one finished a choice, and at last ended, or an error."""

from dataclasses import dataclass
from typing import TypeAlias

from services.common.errors import JanusError
from services.decoder.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class Started:
    """The first token is there; its delta follows. Where the time went until then, and how much was cached."""

    num_cached_tokens: int
    queue_seconds: float
    prefill_seconds: float


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token with its log probability, and the likeliest in its place with theirs."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of a choice, and the tokens that it came from; scores, if asked for, of those whose text is out."""

    token_ids: tuple[int, ...]
    text: str
    choice: int = 0
    scores: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    reason: FinishReason
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """Usage and where the time went."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    error: JanusError


Event: TypeAlias = Started | Delta | Finished | Ended | Failed
