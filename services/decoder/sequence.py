"""A sequence: the tokens of one choice, and how far the cache has caught up with them.

    token_ids   0 ............ num_prompt_tokens ............ num_tokens
                └── prompt ───┘└── output ─────────────────┘
    computed    0 ...................... num_computed_tokens < num_tokens

There is no prefill state and no decode state: a step computes some of the tokens that are not computed yet, and when it
has reached the last one, a new token is drawn. What others computed is found in the cache, and counts as computed; the
last token never is, since its scores are what the next one is drawn from.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

MAX_PRIORITY = 100


class FinishReason(Enum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a sequence. Units: output tokens; `deadline` is a monotonic time in seconds."""

    max_tokens: int
    min_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    deadline: float | None = None


@dataclass(eq=False, slots=True)
class Sequence:
    """Mutable; owned by the scheduler. `params` is what the runner draws with, opaque here.

    Sequences of one `cache_namespace` may find each other's blocks. A smaller `priority` comes first;
    it is a whole number from -MAX_PRIORITY to MAX_PRIORITY.
    """

    token_ids: list[int]
    num_prompt_tokens: int
    limits: Limits
    params: Any = None
    cache_namespace: str = ""
    priority: int = 0
    num_computed_tokens: int = 0
    # As far as it ever came, preempted or not.
    max_computed_tokens: int = 0
    # Found in the cache before it had computed them itself.
    num_cached_tokens: int = 0
    block_ids: list[int] = field(default_factory=list)
    # Of its full blocks, as many as were ever asked for; the block manager's.
    block_keys: list[bytes] = field(default_factory=list)
    # The smallest comes first; the scheduler's.
    turn: tuple[int, int] = (0, 0)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def max_total_tokens(self) -> int:
        """As long as it can ever get."""
        return self.num_prompt_tokens + self.limits.max_tokens

    def finish_reason(self) -> FinishReason | None:
        """Why the last output token ends the sequence, if it does. Stop strings are the text's business."""
        if self.num_output_tokens == 0:
            return FinishReason.LENGTH if self.limits.max_tokens == 0 else None
        is_early = self.num_output_tokens < self.limits.min_tokens
        if self.token_ids[-1] in self.limits.stop_ids and not is_early:
            return FinishReason.STOP
        return FinishReason.LENGTH if self.num_output_tokens >= self.limits.max_tokens else None
