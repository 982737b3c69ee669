"""Contenders measured in turn, several rounds, and what the rounds say.

The load of a shared machine comes and goes, so figures of two runs say little. Those of one round lie seconds apart:
their ratio is firm, and the median of the rounds' ratios with its range says how firm.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Rounds = dict[str, list[float]]
"""A figure a round, by contender."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of the rounds' ratios, and the least and the greatest of them."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> "Ratio":
        """Ours to theirs, round by round. Raises: ValueError when one has more rounds than the other, or none."""
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        if not ratios:
            raise ValueError("there is no ratio of no rounds")
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}-{self.greatest:.2f})"


def interleaved(contenders: Mapping[str, Callable[[], float]], num_rounds: int) -> Rounds:
    """Every contender once a round; every second round runs backwards, so that none is always the first."""
    figures: Rounds = {name: [] for name in contenders}
    for number in range(num_rounds):
        names = list(contenders)
        for name in reversed(names) if number % 2 else names:
            figures[name].append(contenders[name]())
    return figures
