"""What work costs: seconds of a step by its tokens, learned from the steps that were measured.

A step has a fixed price (the weights are read once) and one for each token, and neither is the same at all sizes, so
nothing is fitted: steps are averaged by size, each size twice the one before, and between two sizes the line counts.

    seconds │                  ·      beyond the largest, at its price a token: too dear, so the next step is larger,
            │            ○─ ─ ─       and measured
            │   ○───○───
            │  /
            └────────────────── tokens
"""

import random
from itertools import pairwise


class WorkClock:
    """Seconds for tokens and tokens for seconds; the queue's pace."""

    def __init__(self) -> None:
        # By the number of bits of a step's tokens: mean tokens and seconds of the last ones, and those of the fastest.
        self._steps: dict[int, tuple[float, float]] = {}
        self._fastest: dict[int, tuple[float, float]] = {}
        # Of the last steps of any size, later ones weigh more.
        self._tokens = 0.0
        self._seconds = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step was measured."""
        size = num_tokens.bit_length()
        mean_tokens, mean_seconds = self._steps.get(size, (num_tokens, seconds))
        self._steps[size] = (
            mean_tokens + (num_tokens - mean_tokens) / 4,
            mean_seconds + (seconds - mean_seconds) / 4,
        )
        best_tokens, best_seconds = self._fastest.get(size, (num_tokens, seconds))
        if seconds * best_tokens <= best_seconds * num_tokens:
            self._fastest[size] = (num_tokens, seconds)
        self._tokens += (num_tokens - self._tokens) / 32
        self._seconds += (seconds - self._seconds) / 32

    def seconds_for(self, num_tokens: int) -> float:
        """About how long a step of this size takes; 0 when none was measured."""
        points = _line(self._steps)
        tokens, seconds = points[-1]
        return num_tokens * seconds / tokens if num_tokens > tokens > 0 else _height(points, num_tokens)

    def at_least(self, num_tokens: int) -> float:
        """How long a step of this size takes on the best of days; nothing is made up beyond the largest."""
        return _height(_line(self._fastest), num_tokens)

    def tokens_within(self, seconds: float) -> int:
        """How many tokens a step of this length has; 0 when none was measured."""
        points = _line(self._steps)
        for (tokens, known), (more_tokens, more_known) in pairwise(points):
            if seconds < more_known:
                return int(tokens + (seconds - known) * (more_tokens - tokens) / (more_known - known))
        tokens, known = points[-1]
        return int(tokens * seconds / known) if known else 0

    def wait_ms(self, num_tokens: int) -> int:
        """How long a queue of this work takes at the pace of the last steps, at least a tenth of a second.

        And up to half as long again, by chance: callers that are refused together must not come back together.
        """
        seconds = num_tokens * self._seconds / self._tokens if self._tokens else 1.0
        return round(1000 * max(0.1, seconds) * random.uniform(1, 1.5))


def _line(steps: dict[int, tuple[float, float]]) -> list[tuple[float, float]]:
    """From nothing upwards: more tokens never cost less."""
    points = [(0.0, 0.0)]
    for tokens, seconds in sorted(steps.values()):
        points.append((tokens, max(seconds, points[-1][1])))
    return points


def _height(points: list[tuple[float, float]], num_tokens: int) -> float:
    """Of a line at so many tokens, of its end beyond that."""
    for (tokens, seconds), (more_tokens, more_seconds) in pairwise(points):
        if num_tokens <= more_tokens:
            return seconds + (num_tokens - tokens) * (more_seconds - seconds) / (more_tokens - tokens)
    return points[-1][1]
