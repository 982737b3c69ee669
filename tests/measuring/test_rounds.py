"""What the rounds of a comparison say."""

import pytest

from tests.performance.rounds import Ratio, interleaved


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians() -> None:
    ratio = Ratio.of([10, 2, 90], [10, 1, 30])
    assert (ratio.median, ratio.least, ratio.greatest) == (2, 1, 3)
    assert str(ratio) == "2.00 (1.00-3.00)"


@pytest.mark.parametrize(
    ("ours", "theirs", "what"), [([], [], "no rounds"), ([1.0], [1.0, 2.0], "longer"), ([1.0, 2.0], [1.0], "shorter")]
)
def test_rounds_that_are_no_pairs_have_no_ratio(ours: list[float], theirs: list[float], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Ratio.of(ours, theirs)


def test_each_contender_runs_once_a_round_and_none_is_always_the_first() -> None:
    order: list[str] = []

    def contender(name: str) -> float:
        order.append(name)
        return float(len(order))

    figures = interleaved({name: lambda name=name: contender(name) for name in "abc"}, 3)  # type: ignore[misc]
    assert "".join(order) == "abccbaabc"
    assert figures == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}
